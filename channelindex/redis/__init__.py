"""Connections to Redis, for the index and for the leases alike: one server, one behind Sentinels, or a cluster."""
