"""Collects what processes report of themselves, and serves it: board, metrics, health."""
