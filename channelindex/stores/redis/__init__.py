"""The index in Redis. KEYSPACE.md lists every key; each .lua file is one atomic operation."""
