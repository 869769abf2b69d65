"""The read side: what changed in some channels since a token."""
