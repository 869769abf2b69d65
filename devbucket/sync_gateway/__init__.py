"""Plays Sync Gateway's part: writes revisions of documents to a bucket, with the metadata that the decoder reads."""
