"""The dev bucket: a small server that speaks KV and DCP like a Couchbase node, for the demo, tests and benchmarks."""

from devbucket.bucket_config import DevBucketConfig, TlsFiles
from devbucket.process import DevBucket, serve
from devbucket.server import DevBucketServer

__all__ = ["DevBucket", "DevBucketConfig", "DevBucketServer", "TlsFiles", "serve"]
