"""Reaches the configured bucket, as the configured user."""

import time
from collections.abc import Mapping
from dataclasses import replace

from channelindex.decode.base import Decoder
from channelindex.errors import IndexMismatch
from channelindex.feeds.base import SourceInfo
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.client import DcpFeed, FeedOptions
from channelindex.feeds.dcp.connstr import SourceAddress, parse_source_url
from channelindex.feeds.dcp.kv import KvClient, source_info
from channelindex.feeds.dcp.srv import find_nodes
from channelindex.feeds.dcp.tls import TlsOptions
from channelindex.settings import SourceSettings

INFO_TIMEOUT_S = 10.0
"""Time for a starting node to reach the bucket: a bucket that warms up answers within seconds."""


def address_of(source: SourceSettings) -> tuple[SourceAddress, Credentials]:
    """Return the nodes of the bucket, its collections to index, and the credentials."""
    tls = TlsOptions(source.tls_ca_file, source.tls_cert_file, source.tls_key_file, source.tls_verify_host)
    collections = tuple(source.collections.split(",")) if source.collections else ()
    address = replace(find_nodes(parse_source_url(source.url, tls)), collections=collections)
    return address, Credentials(source.user, source.password, source.allow_plain)


def describe(source: SourceSettings) -> SourceInfo:
    """Ask the bucket for its UUID and shape. Blocks, at most `INFO_TIMEOUT_S`.

    Raises:
        SourceUnavailable: the node cannot be reached, or the bucket is not there.
        AuthenticationFailed: source.user and source.password are refused.
    """
    address, credentials = address_of(source)
    return source_info(address, credentials, time.monotonic() + INFO_TIMEOUT_S)


def check_source(source: SourceSettings, source_uuid: str) -> None:
    """Make sure that the bucket is the one that an index is of.

    Raises:
        IndexMismatch: it has another UUID than *source_uuid*.
        SourceUnavailable, AuthenticationFailed: see `describe`.
    """
    found = describe(source).uuid
    if found != source_uuid:
        raise IndexMismatch(
            f"the index is of the bucket with UUID {source_uuid}, source.url names one with {found}: it is another "
            "bucket, or was flushed or made again. Give index.name a new value; `rebuild` cannot change the bucket"
        )


def high_seqnos(source: SourceSettings) -> Mapping[int, int]:
    """Ask for the highest seqno of every vbucket of the bucket now.

    Raises:
        SourceUnavailable, AuthenticationFailed: as `describe`.
    """
    with KvClient(*address_of(source)) as client:
        return client.high_seqnos()


def open_feed(
    source: SourceSettings,
    name: str,
    source_uuid: str,
    end_seqnos: Mapping[int, int] | None = None,
    decoder: Decoder | None = None,
) -> DcpFeed:
    """Open a feed of the bucket; see `DcpFeed`. Without bodies only for a *decoder* that says where it needs them."""
    address, credentials = address_of(source)
    needs_body = getattr(decoder, "needs_body", None) if source.metadata == "auto" else None
    options = FeedOptions(
        bodies=source.metadata != "xattr" and needs_body is None,
        needs_body=needs_body,
        snappy=source.compression,
        replicated_only=source.rollback_mitigation,
    )
    return DcpFeed(address, credentials, name=name, source_uuid=source_uuid, end_seqnos=end_seqnos, options=options)
