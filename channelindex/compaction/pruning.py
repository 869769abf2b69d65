"""Decides which epoch starts of an archive are needed no more. Pure; docs/design/015-compaction.md says why."""

from collections.abc import Sequence
from typing import NamedTuple

from channelindex.epochs import NO_BOUND, EpochStart, PartitionRecord

PRUNED_AT_ONCE = 128
"""Starts that must be to be pruned before it is done: all channels are read for it. 17 KB with 16 vbuckets."""


class Pruning(NamedTuple):
    """Pairs what the archive of a partition begins with and what is to take its place."""

    partition: int
    before: Sequence[EpochStart]
    after: Sequence[EpochStart]


def prunings(
    records: Sequence[PartitionRecord],
    archives: Sequence[Sequence[EpochStart]],
    upto: Sequence[int],
    least: int = PRUNED_AT_ONCE,
) -> list[Pruning]:
    """Return what is to be pruned, once no entry is left that a start up to *upto*, by partition, took back.

    *archives* were read after *records*. Nothing where no partition has *least* starts to be pruned; else all that have
    any: the work is in what comes before.
    """
    assert len(records) == len(archives) == len(upto), "one for each partition"
    found = [
        (partition, archive, [start for start in archive if start.epoch <= min(last, record.archived)])
        for partition, (record, archive, last) in enumerate(zip(records, archives, upto, strict=True))
    ]
    if max((len(gone) for _, _, gone in found), default=0) < least:
        return []
    return [
        Pruning(partition, archive, _without(archive, max(gone).epoch))
        for partition, archive, gone in found
        if any(not start.is_mark for start in gone)
    ]


def _without(archive: Sequence[EpochStart], last: int) -> list[EpochStart]:
    """*archive* with a mark for all starts up to *last*."""
    mark = EpochStart(last, (NO_BOUND,) * len(archive[0].starts))
    assert mark.is_mark
    return [mark, *(start for start in archive if start.epoch > last)]
