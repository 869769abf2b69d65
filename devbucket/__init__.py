"""The dev bucket: a small server that speaks KV and DCP like a Couchbase node, for the demo, tests and benchmarks."""

from devbucket.process import DevBucket
from devbucket.server import DevBucketServer
from devbucket.serving import serve
from devbucket.setup import DevBucketConfig, TlsFiles

__all__ = ["DevBucket", "DevBucketConfig", "DevBucketServer", "TlsFiles", "serve"]
