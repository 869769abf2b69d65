"""Gathers the documents of a bucket, with their channels, from a feed that began at 0. No I/O.

One entry per document, however many channels it is in: about 500 bytes, so a million documents fit into memory.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from channelindex import blocks
from channelindex.decode.base import Decoder
from channelindex.errors import SourceUnavailable
from channelindex.feeds.base import ADVANCED, EXPIRATION, ROLLBACK, Event
from channelindex.model import DELETED, Removal, Route

_PROBLEM_CHARS = 200


class ChannelMembership(NamedTuple):
    """A document's state in a channel as of its newest version: in it, or removed by this or an older revision."""

    rev: str
    deleted: bool
    removed: bool


class DocumentVersion(NamedTuple):
    """The newest version of one document. Not `decoded`: it has no channels, or cannot be decoded.

    `problem` is the reason: the index has it in quarantine, if at all.
    """

    vb: int
    key: bytes
    seqno: int
    rev: str = ""
    deleted: bool = False
    members: tuple[str, ...] = ()
    removals: tuple[tuple[str, Removal], ...] = ()
    decoded: bool = False
    problem: str = ""

    def channels(self) -> Iterator[str]:
        """All channels that the document is in or has left."""
        yield from self.members
        for channel, _ in self.removals:
            yield channel

    def membership(self, channel: str) -> ChannelMembership | None:
        """Its membership in *channel*; None if it was never in it."""
        if channel in self.members:
            return ChannelMembership(self.rev, self.deleted, removed=False)
        for name, removal in self.removals:
            if name == channel:
                return ChannelMembership(removal.rev, removal.deleted, removed=True)
        return None


class BucketState:
    """The documents of a bucket, each in the newest version that the feed sent."""

    def __init__(self, decoder: Decoder, n_vbuckets: int) -> None:
        self._decode = decoder.decode
        self._document_by_key: list[dict[bytes, DocumentVersion]] = [{} for _ in range(n_vbuckets)]
        self._members: dict[tuple[str, ...], tuple[str, ...]] = {}
        self.high_seqnos = [0] * n_vbuckets
        """The highest seqno that the feed sent, by vbucket."""

    def add(self, events: Iterable[Event]) -> None:
        """Take over *events*, in their order.

        Raises:
            SourceUnavailable: the source rolled back, so that the gathered documents are no state of it.
        """
        for event in events:
            kind, vb = event[0], event[1]
            if kind <= EXPIRATION:
                seqno, key = event[2], event[3]
                self._document_by_key[vb][key] = self._document(kind, vb, seqno, key, event[4], event[5])
                self.high_seqnos[vb] = seqno
            elif kind == ADVANCED:
                self.high_seqnos[vb] = event[2]
            elif kind == ROLLBACK:
                raise SourceUnavailable(f"the source rolled vbucket {vb} back while it was read; verify again")

    def find(self, vb: int, key: bytes) -> DocumentVersion | None:
        """The document under *key*; None if the bucket has none."""
        return self._document_by_key[vb].get(key)

    def documents(self) -> Iterator[DocumentVersion]:
        """All documents, also those that are not decoded."""
        for by_key in self._document_by_key:
            yield from by_key.values()

    def _document(self, kind: int, vb: int, seqno: int, key: bytes, datatype: int, value: bytes) -> DocumentVersion:
        try:
            decoded = self._decode(kind, key, datatype, value)
            route = decoded if isinstance(decoded, Route) else None
            if route is not None:
                _check_size(key, route)
        except Exception as error:  # noqa: BLE001 an operator's own decoder may raise anything: the feed quarantines
            return DocumentVersion(vb, key, seqno, problem=f"{type(error).__name__}: {error}"[:_PROBLEM_CHARS])
        if route is None:
            return DocumentVersion(vb, key, seqno)
        members = tuple(channel for channel, removal in route.channels.items() if removal is None)
        members = self._members.setdefault(members, members)  # most documents share theirs with many others
        removals = tuple((channel, removal) for channel, removal in route.channels.items() if removal is not None)
        return DocumentVersion(vb, key, seqno, route.rev, bool(route.flags & DELETED), members, removals, decoded=True)


def _check_size(key: bytes, route: Route) -> None:
    """Raise ValueError if the index cannot hold the document: the feed worker quarantines it then."""
    if len(key) > blocks.MAX_KEY_BYTES:
        raise ValueError(f"key of {len(key)} bytes, at most {blocks.MAX_KEY_BYTES} can be indexed")
    blocks.pack_rev(route.rev)
    for removal in route.channels.values():
        if removal is not None:
            blocks.pack_rev(removal.rev)
