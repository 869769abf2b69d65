"""Puts documents into other channels as a resync of Sync Gateway does, after its sync function was changed."""

from collections.abc import Iterable, Mapping

from channelindex.errors import SourceUnavailable
from channelindex.feeds.dcp import operations
from channelindex.feeds.dcp.exchange import Request
from devbucket.sync_gateway.layouts import Layout
from devbucket.sync_gateway.loader import BUSY, MAX_ATTEMPTS, KeyValue
from devbucket.sync_gateway.metadata import apply_resync


def resync(kv: KeyValue, layout: Layout, channels_by_id: Mapping[str, Iterable[str]]) -> int:
    """Rewrite the metadata of these documents **under the sequence they have**; returns how many were rewritten.

    Left out are documents that are deleted, of somebody else, or in these channels already.

    Raises:
        SourceUnavailable: the bucket refuses, does not answer, or somebody keeps writing a document.
    """
    return sum(_resync_one(kv, layout, id_.encode(), sorted(channels)) for id_, channels in channels_by_id.items())


def _resync_one(kv: KeyValue, layout: Layout, key: bytes, channels: list[str]) -> bool:
    for _ in range(MAX_ATTEMPTS):
        (answer,) = kv.pipeline([layout.read(key)])
        document = layout.found(answer)
        if not document.alive or not document.sync or not document.sync.get("sequence"):
            return False
        sync = apply_resync(document.sync, channels)
        if sync["channels"] == (document.sync.get("channels") or {}):
            return False
        if _stored_all(kv, layout.rewrite(key, sync, answer), document.cas):
            return True
    raise SourceUnavailable(f"{key!r} could not be rewritten in {MAX_ATTEMPTS} attempts: others keep writing it")


def _stored_all(kv: KeyValue, requests: Iterable[Request], cas: int) -> bool:
    """Send *requests* one after the other; whether all were stored, the first over the version *cas*."""
    for request in requests:
        (answer,) = kv.pipeline([request._replace(cas=cas)])
        stored = None if answer.status in BUSY else operations.stored(answer)
        if stored is None:
            return False
        cas = stored
    return True
