"""Finds what a reader had got and a rollback of the source took back: documents that nothing has replaced. Pure.

A reader that comes with a token from before a rollback reads its vbuckets from the beginning, and gets all documents
that are there. Of one that is there no more, only dead entries are left, for `compaction.dead_retention_s`. Those that
the reader may have got are *withdrawn*: it is given them as such, once, before all else (docs/design/018-withdrawn.md).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from channelindex import blocks
from channelindex.epochs import NO_BOUND
from channelindex.model import DELETED, REMOVED
from channelindex.reading.query import Query, document_id
from channelindex.reading.scan import Found, FoundByVb, Scan, merged
from channelindex.reading.since_token import Token
from channelindex.reading.snapshot import IndexSnapshot, TakenBack

_GONE = DELETED | REMOVED


class DeadLimits(NamedTuple):
    """Of the entries of one epoch in a vbucket: dead above `live`, and delivered to the reader up to `delivered`.

    Up to `there`, one that is live is there, though it may have to become stable again.
    """

    live: int
    delivered: int
    there: int


class ReturningScan(Scan):
    """The scan of a reader that had got what was taken back: it finds in these vbuckets what is dead, too."""

    def __init__(
        self, snapshot: IndexSnapshot, since: Sequence[int], begin: Token, taken_back: Mapping[int, TakenBack]
    ) -> None:
        super().__init__(snapshot, since, begin)
        self._taken_back = taken_back
        self._dead_by_vb: FoundByVb = defaultdict(dict)
        self._there_by_vb: defaultdict[int, set[bytes]] = defaultdict(set)
        self._limits: dict[int, Mapping[int, DeadLimits]] = {}

    def withdrawn(self, query: Query) -> list[Found]:
        """The newest dead entry of each document that is withdrawn, by vbucket; within one, the newest first."""
        return [
            found
            for vb in sorted(self._dead_by_vb)
            for found in sorted(self._dead_by_vb[vb].values(), reverse=True)
            if not found[1] & _GONE and self._is_gone(vb, _key(found)) and query.wants(document_id(_key(found)))
        ]

    def clock_limits(self, epoch: int) -> Sequence[int]:
        """See `Scan`; a clock that sums up dead entries says so."""
        limits = list(super().clock_limits(epoch))
        for vb in self._taken_back:
            limits[vb] = NO_BOUND
        return limits

    def _is_gone(self, vb: int, key: bytes) -> bool:
        return key not in self._there_by_vb[vb]

    def _add_entries(self, epoch: int, body: bytes, channel_bit: int) -> None:
        super()._add_entries(epoch, body, channel_bit)
        limits_by_vb = self._limits.get(epoch)
        if limits_by_vb is None:
            limits_by_vb = self._limits[epoch] = {
                vb: DeadLimits(*self.snapshot.dead_limits(epoch, vb, taken)) for vb, taken in self._taken_back.items()
            }
        offset = 0
        while offset < len(body):
            start = offset
            vb, seqno, flags, key_size, rev_size = blocks.unpack_entry_head(body, start)
            key_start = start + blocks.ENTRY_HEAD_BYTES
            key_end = key_start + key_size
            offset = key_end + (blocks.PACKED_REV_BYTES if rev_size == blocks.PACKED else rev_size)
            if vb not in limits_by_vb:
                continue
            live, delivered, there = limits_by_vb[vb]
            key = body[key_start:key_end]
            if seqno <= min(live, there):
                self._there_by_vb[vb].add(key)
            elif live < seqno <= delivered:
                dead, new = self._dead_by_vb[vb], (seqno, flags, channel_bit, body[start:offset])
                known = dead.get(key)
                if known is None or known[0] < seqno:
                    dead[key] = new
                elif known[0] == seqno:
                    dead[key] = merged(known, new)


def _key(found: Found) -> bytes:
    _, _, _, key_size, _ = blocks.unpack_entry_head(found[3], 0)
    return found[3][blocks.ENTRY_HEAD_BYTES : blocks.ENTRY_HEAD_BYTES + key_size]
