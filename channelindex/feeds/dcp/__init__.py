"""A client of Couchbase buckets: their changes by DCP, and documents over KV. See docs/dcp-client.md."""

from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.client import DcpFeed, FeedOptions
from channelindex.feeds.dcp.connstr import SourceAddress, parse_source_url
from channelindex.feeds.dcp.kv import KvClient, source_info
from channelindex.feeds.dcp.streaming import ChangeStream, DcpChange, RolledBack, stream
from channelindex.feeds.dcp.tls import TlsOptions

__all__ = [
    "ChangeStream",
    "Credentials",
    "DcpChange",
    "DcpFeed",
    "FeedOptions",
    "KvClient",
    "RolledBack",
    "SourceAddress",
    "TlsOptions",
    "parse_source_url",
    "source_info",
    "stream",
]
