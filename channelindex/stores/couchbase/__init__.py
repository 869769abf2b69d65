"""The index store in a Couchbase bucket, by the official SDK. KEYSPACE.md names its documents."""
