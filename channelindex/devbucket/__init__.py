"""The dev bucket: a small server that speaks KV and DCP like a Couchbase node, for the demo, tests and benchmarks."""

from channelindex.devbucket.process import DevBucket
from channelindex.devbucket.server import DevBucketServer
from channelindex.devbucket.serving import serve
from channelindex.devbucket.setup import DevBucketConfig, TlsFiles

__all__ = ["DevBucket", "DevBucketConfig", "DevBucketServer", "TlsFiles", "serve"]
