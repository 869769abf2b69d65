"""Checks an index against its bucket, and takes it back to an earlier clock."""
