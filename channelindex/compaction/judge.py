"""Judges entries by a view of the partition records: which are settled, which dead, and which for long. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from channelindex.blocks import HEADER, iter_entries, iter_frames
from channelindex.epochs import NO_BOUND, Bounds, PartitionRecord


class Ages(NamedTuple):
    """Seqnos and epochs by which things are old enough.

    `settled` is by vbucket the seqno that was stable `min_lag` ago and still is, `removable` the same for
    `removal_retention`; 0 where nothing was. `dead_epochs` is by partition the newest epoch that had begun
    `dead_retention` ago, 0 for none. With `forgets_removals`, they leave at some age.
    """

    settled: Sequence[int]
    removable: Sequence[int]
    dead_epochs: Sequence[int]
    forgets_removals: bool = False


class AgeLimits(NamedTuple):
    """Of the entries of one epoch, by vbucket the highest seqno that is settled, live, was live lately, and is judged.

    An epoch that began after the view is 0, NO_BOUND, NO_BOUND and 0: nothing is known of it, and its entries stay.
    """

    settled: list[int]
    live: list[int]
    lately_live: list[int]
    judged: list[int]


class Judge:
    """Judges by *records*, which have their whole histories, and *ages*."""

    def __init__(self, records: Sequence[PartitionRecord], ages: Ages) -> None:
        n_vbuckets = sum(len(record.checkpoints) for record in records)
        assert len(ages.settled) == len(ages.removable) == n_vbuckets, "a seqno for each vbucket"
        assert len(ages.dead_epochs) == len(records), "an epoch for each partition"
        assert not any(record.archived for record in records), "histories are whole"
        self.ages = ages
        self._records = records
        self._bounds = [Bounds(record) for record in records]
        self._bounds_then = [
            Bounds(record._replace(history=tuple(start for start in record.history if start.epoch <= epoch)))
            for record, epoch in zip(records, ages.dead_epochs, strict=True)
        ]
        self._limits: dict[int, AgeLimits] = {}

    def limits(self, epoch: int) -> AgeLimits:
        """The limits of the entries of *epoch*."""
        known = self._limits.get(epoch)
        if known is None:
            known = self._limits[epoch] = self._computed(epoch)
        return known

    def _computed(self, epoch: int) -> AgeLimits:
        settled: list[int] = []
        live: list[int] = []
        lately_live: list[int] = []
        judged: list[int] = []
        for record, bounds, bounds_then in zip(self._records, self._bounds, self._bounds_then, strict=True):
            no_bound = (NO_BOUND,) * len(record.checkpoints)
            if epoch > record.epoch:
                settled += (0,) * len(no_bound)
                live += no_bound
                lately_live += no_bound
                judged += (0,) * len(no_bound)
                continue
            vbuckets = record.vbuckets
            settled += bounds.clamp(epoch, self.ages.settled[vbuckets.start : vbuckets.stop])
            live += bounds.clamp(epoch, no_bound)
            lately_live += bounds_then.clamp(epoch, no_bound)
            judged += no_bound
        assert len(settled) == len(live) == len(lately_live) == len(judged) == len(self.ages.settled), (
            "one for each vbucket"
        )
        return AgeLimits(settled, live, lately_live, judged)

    def has_long_dead(self, block: bytes) -> bool:
        """True if an entry in *block* has been dead for `dead_retention`.

        Raises:
            IndexCorrupt: the block is damaged.
        """
        return any(
            kind != HEADER
            and any(entry.seqno > self.limits(epoch).lately_live[entry.vb] for entry in iter_entries(body))
            for kind, epoch, body in iter_frames(block)
        )
