"""The path of one change: feed, round, ring, batch, stable clock."""
