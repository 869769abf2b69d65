"""The configured bucket: how to reach it and as whom."""

import time
from collections.abc import Mapping

from channelindex.feeds.base import SourceInfo
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.client import DcpFeed
from channelindex.feeds.dcp.connstr import SourceAddress, parse_source_url
from channelindex.feeds.dcp.source import source_info
from channelindex.settings import SourceSettings

INFO_TIMEOUT_S = 10.0
"""How long a starting node waits for the bucket: a bucket that warms up answers within seconds."""


def address_of(source: SourceSettings) -> tuple[SourceAddress, Credentials]:
    """Where the bucket is and who we are there."""
    return parse_source_url(source.url), Credentials(source.user, source.password, source.allow_plain)


def describe(source: SourceSettings) -> SourceInfo:
    """What the bucket says of itself. Blocks, at most `INFO_TIMEOUT_S`.

    Raises:
        SourceUnavailable: the node cannot be reached, or the bucket is not there.
        AuthenticationFailed: source.user and source.password are refused.
    """
    address, credentials = address_of(source)
    return source_info(address, credentials, time.monotonic() + INFO_TIMEOUT_S)


def open_feed(
    source: SourceSettings, name: str, source_uuid: str, end_seqnos: Mapping[int, int] | None = None
) -> DcpFeed:
    """A feed of the bucket; see `DcpFeed`."""
    address, credentials = address_of(source)
    return DcpFeed(address, credentials, name=name, source_uuid=source_uuid, end_seqnos=end_seqnos)
