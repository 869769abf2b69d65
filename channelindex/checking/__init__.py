"""Checks of an index against its bucket, and what mends it."""
