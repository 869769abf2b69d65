"""Decides which removals of a document have to be indexed with the version that the feed sent. No I/O.

A document's `channels` map keeps every channel that it left, with the sequence and revision that removed it. Most of
them were indexed with an earlier version; but a bucket keeps only the newest version of a document, so the feed may
never have sent that one. Nothing in the document proves that it did: a resync writes removals under an old
sequence, a copy from another database has sequences of another count, in any order, and Sync Gateway lists its own
sequences of a document not always and never more than 20. So a removal is left out only where this process itself
received, as the last version of the same document, one with the very same removal. Indexed twice it does no harm;
indexed never, a reader keeps a document that it may no longer see. See docs/design/013-removals.md.
"""

import mmap
from array import array
from collections.abc import Container, Mapping

from channelindex.model import Route

ROWS = 1 << 16
"""Documents with removals that one feed worker remembers at most. Beyond them removals are indexed again more often."""
_WORDS = 32
"""Of a row, 8 bytes each: the document's name, a hash of all its removals, and one of each, if there are so few."""
_FIRST = 2
_MOST = _WORDS - _FIRST
_WORD_BYTES = 8
_MASK = (1 << 64) - 1


class RemovalMemory:
    """Remembers with which removals each document was last indexed, as hashes, in a table of *n_rows*.

    A row takes 256 bytes, but only what was written to takes memory: 16 MiB at most. The document that comes last
    takes the row from another. That two of 2^64 hashes are equal by chance is the risk of leaving out a removal; they
    are salted anew in each process. *n_rows* is a power of two.
    """

    def __init__(self, n_rows: int = ROWS) -> None:
        self._mask = n_rows - 1
        self._n_bytes = n_rows * _WORDS * _WORD_BYTES
        self.clear()

    def clear(self) -> None:
        """Forget all: what was indexed may have been taken back, or be another's by now."""
        self.words = memoryview(mmap.mmap(-1, self._n_bytes)).cast("Q")
        """The table. The compiled kernel reads and writes it too (kernel/removals.c): both have to do the same."""
        self.is_empty = True

    def due(self, vb: int, key: bytes, route: Route) -> Container[str]:
        """Return the channels whose removal must be indexed with *route*, a document's newest version; remember all."""
        hashes = {
            channel: hash((channel, removal.sequence, removal.rev, removal.deleted)) & _MASK | 1
            for channel, removal in route.channels.items()
            if removal is not None
        }
        if not hashes and self.is_empty:
            return hashes
        name = hash((vb, key)) & _MASK | 1  # 0 is an empty row
        at = (name >> 1 & self._mask) * _WORDS
        words = self.words
        before = words[at : at + _WORDS].tolist() if words[at] == name else []
        if not hashes:
            if before:
                words[at] = 0
            return hashes
        self._remember(at, name, hashes)
        return _new(hashes, before, route) if before else hashes

    def _remember(self, at: int, name: int, hashes: Mapping[str, int]) -> None:
        each = list(hashes.values()) if len(hashes) <= _MOST else []
        row = array("Q", [name, _digest(hashes), *each])
        row.extend([0] * (_WORDS - len(row)))
        self.words[at : at + _WORDS] = memoryview(row)
        self.is_empty = False


def _new(hashes: Mapping[str, int], before: list[int], route: Route) -> Container[str]:
    """Return the channels of those of *hashes* that the row *before* does not have."""
    if before[1] == _digest(hashes):
        return ()
    if before[_FIRST]:
        return {channel for channel, hashed in hashes.items() if hashed not in before[_FIRST:]}
    own = {channel for channel in hashes if _is_own(route, channel)}
    older = {channel: hashed for channel, hashed in hashes.items() if channel not in own}
    return own if before[1] == _digest(older) else hashes


def _digest(hashes: Mapping[str, int]) -> int:
    """Hash *hashes*, whatever their order."""
    return hash(frozenset(hashes.values())) & _MASK


def _is_own(route: Route, channel: str) -> bool:
    """Tell whether the revision *route* is the one that left *channel*."""
    removal = route.channels[channel]
    assert removal is not None
    if removal.sequence and route.sequence:
        return removal.sequence == route.sequence
    return removal.rev == route.rev
