"""The source of an abstract index: one vbucket, which fails over once. For models that visit every state.

A stream that begins anew is brought what is newest of each document only; where a compaction was the reason, no
deletion that came before either: as if that had been so long ago that their tombstones are purged.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from tests.support.model_channel import Entry


class Source(NamedTuple):
    """What the two branches say: by seqno from 1 on, the document; a deletion of it has a minus before it.

    They are the same up to `kept`.
    """

    branches: tuple[tuple[str, ...], tuple[str, ...]]
    kept: int

    def entry(self, branch: int, seqno: int, epoch: int) -> Entry:
        """The entry of a change under *epoch*."""
        doc = self.branches[branch][seqno - 1]
        rev = str(branch if seqno > self.kept else 0)
        return Entry(epoch, seqno, doc.removeprefix("-"), rev, doc.startswith("-"))

    def is_brought(self, branch: int, seqno: int, high: int, *, is_purged: bool) -> bool:
        """True if a stream that comes to *seqno* when the branch is at *high* is brought it."""
        if seqno > high:
            return True
        entry = self.entry(branch, seqno, 0)
        return not (entry.gone and is_purged) and not self.is_superseded(branch, entry, high)

    def is_superseded(self, branch: int, entry: Entry, high: int) -> bool:
        """True if a newer change of the document is at or below *high*."""
        return any(self.entry(branch, seqno, 0).doc == entry.doc for seqno in range(entry.seqno + 1, high + 1))

    def newest(self, branch: int, stable: int) -> Sequence[Entry]:
        """The newest change of each document up to *stable*, under epoch 0."""
        return _newest(self, branch, stable)


@lru_cache(None)
def _newest(source: Source, branch: int, stable: int) -> Sequence[Entry]:
    newest = {}
    for seqno in range(1, stable + 1):
        entry = source.entry(branch, seqno, 0)
        newest[entry.doc] = entry
    return tuple(newest.values())
