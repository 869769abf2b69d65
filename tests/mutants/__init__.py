"""Mutants: the code with one small mistake in it, each of which the fast tests have to find. See `__main__`."""
