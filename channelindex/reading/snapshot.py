"""Takes snapshots of an index, and judges every entry, clock and token by one."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from operator import gt
from typing import NamedTuple

from channelindex.blocks import fold_clock
from channelindex.epochs import Bounds, EpochStart, PartitionRecord, whole_record
from channelindex.errors import IndexCorrupt, StoreUnavailable, TokenAhead
from channelindex.model import IndexMeta
from channelindex.reading.since_token import Delivered, Token, heard_upto
from channelindex.stores.base import ChannelState, IndexReader
from channelindex.timeline import Moment, newest_before

_KNOWN_EPOCHS = 100
"""Epochs whose bounds are remembered: more than write at one time, and with 1,024 vbuckets less than a megabyte."""


class Archives:
    """Caches the archives of an index's partitions. One that has not grown is not fetched twice.

    Epochs are numbered over all partitions, so a partition at rest is often older than what others have archived.
    """

    def __init__(self, store: IndexReader) -> None:
        self._store = store
        self._known: dict[int, tuple[int, Sequence[EpochStart]]] = {}  # replaced whole: threads share it

    def of(self, records: Sequence[PartitionRecord]) -> Mapping[int, Sequence[EpochStart]]:
        """By partition, at least the epoch starts that each of *records* has archived; only those that have any."""
        archived = {partition: record.archived for partition, record in enumerate(records) if record.archived}
        known = self._known
        grown = [p for p, epoch in archived.items() if p not in known or known[p][0] < epoch]
        if grown:
            fetched = zip(grown, self._store.archived_starts(grown), strict=True)
            known = known | {partition: (archived[partition], starts) for partition, starts in fetched}
            self._known = known
        return {partition: known[partition][1] for partition in archived}


class EpochLimits(NamedTuple):
    """Bounds for the entries and clocks of one epoch in a snapshot; both lists are seqnos by vbucket.

    `visible`: the highest seqno at which an entry of the epoch is visible. 0 where the epoch began after the snapshot.
    `clock`: the seqno that a clock record or block header of the epoch is lowered to. Such a clock also sums up the
    epochs before its own, so an epoch that began after the snapshot must not be lowered to 0 here: entries of the
    older epochs would be skipped with it.
    """

    visible: list[int]
    clock: list[int]


class TakenBack(NamedTuple):
    """Names what a reader got of a vbucket, under *epoch* and up to the seqno `upto`, and a rollback took back.

    Up to `true_upto` it is true still.
    """

    epoch: int
    upto: int
    true_upto: int


class History:
    """Knows how the epochs of an index bound each other, as of one vector of its partitions' epochs. Never changes.

    *records* are by partition; of their checkpoints, nothing is used.
    """

    def __init__(self, records: Sequence[PartitionRecord], archives: Archives) -> None:
        assert all(one.vbuckets.stop == after.first_vb for one, after in pairwise(records)), "every vbucket, once"
        self.records = records
        self.epochs = tuple(record.epoch for record in records)
        self._archives = archives
        self._newest_archived = max((record.archived for record in records), default=0)
        self._bounds = [Bounds(record) for record in records]
        self._known: dict[int, list[int]] = {}
        self._whole: dict[int, PartitionRecord] = {}
        self._bounds_then: dict[tuple[int, int], Bounds] = {}

    def bounds(self, epoch: int) -> list[int]:
        """The `Bounds.bound` of *epoch* in each vbucket."""
        known = self._known.get(epoch)
        if known is None:
            self._reach_back_to(epoch)
            if len(self._known) >= _KNOWN_EPOCHS:
                self._known = {}
            known = self._known[epoch] = [bound for bounds in self._bounds for bound in bounds.of(epoch)]
        return known

    def position_bounds(self, epoch: int, partition: int) -> tuple[int, ...]:
        """By vbucket of *partition*, what a position that was taken under *epoch* is lowered to: a token, a moment.

        0 where the starts that bound it were pruned: what they took back is gone from the index.
        """
        assert 0 <= partition < len(self.records)
        if self.is_pruned(epoch, partition):
            return (0,) * len(self.records[partition].checkpoints)
        return self._bounds[partition].of(epoch)

    def reach_of(self, epoch: int, partition: int) -> tuple[int, ...]:
        """The `Bounds.reach_of` of *epoch* in one partition's vbuckets."""
        self._reach_back_to(epoch)
        return self._bounds[partition].reach_of(epoch)

    def is_unwatched(self, epoch: int, partition: int, vb: int) -> bool:
        """The `Bounds.is_unwatched` of *epoch* in a vbucket of *partition*."""
        self._reach_back_to(epoch)
        return self._bounds[partition].is_unwatched(epoch, vb)

    def bounds_then(self, epoch: int, partition: int) -> Bounds:
        """The bounds of one partition's epochs as they were under *epoch*, which is no pruned one."""
        key = epoch, partition
        if key not in self._bounds_then:
            self._reach_back_to(0)
            record = self._whole.get(partition, self.records[partition])
            then = tuple(start for start in record.history if start.epoch <= epoch)
            self._bounds_then[key] = Bounds(record._replace(history=then))
        return self._bounds_then[key]

    def is_pruned(self, epoch: int, partition: int) -> bool:
        """True if starts of *partition* that bound *epoch* are not known any more."""
        self._reach_back_to(epoch)
        whole = self._whole.get(partition)
        return whole is not None and epoch < whole.pruned

    def _reach_back_to(self, epoch: int) -> None:
        """Load the bounds of *epoch* from the archive if the records do not reach back so far."""
        if epoch >= self._newest_archived:
            return
        for partition, starts in self._archives.of(self.records).items():
            self._whole[partition] = whole_record(self.records[partition], starts)
            self._bounds[partition] = Bounds(self._whole[partition])
        self._newest_archived = 0  # last: threads that share this go by it


class Snapshots:
    """Takes snapshots of the index in *store*. One costs a look at its stable view, as long as no epoch begins.

    What an epoch's begin changes is read when the view has another epoch, and remembered. Threads may share it.
    """

    def __init__(self, store: IndexReader) -> None:
        self._store = store
        self._archives = Archives(store)
        self._history: tuple[IndexMeta, History] | None = None  # replaced whole

    def take(self) -> "IndexSnapshot":
        """The index as it is now.

        Raises:
            StoreUnavailable: it was made anew meanwhile, in another shape.
        """
        meta, epochs, stable = self._store.stable_view()
        known = self._history
        if known is not None and known[0] == meta and known[1].epochs == epochs:
            return IndexSnapshot(meta, stable, known[1])
        old = known[1].records if known is not None and known[0] == meta else ()
        changed = [p for p, epoch in enumerate(epochs) if not old or old[p].epoch != epoch]
        records = dict(zip(changed, self._store.partition_records(changed), strict=True))
        for partition, record in records.items():  # they are newer than the view
            if record.vbuckets != meta.vbuckets_of(partition):
                raise StoreUnavailable(f"partition {partition} now has {len(record.vbuckets)} vbuckets: made anew")
            stable[record.first_vb : record.vbuckets.stop] = record.stable
        history = History([records.get(p) or old[p] for p in range(len(epochs))], self._archives)
        self._history = meta, history
        assert len(history.records) == meta.n_partitions, "a record for each partition"
        return IndexSnapshot(meta, stable, history)


class IndexSnapshot:
    """The stable clock of an index, and how its epochs bound each other, all read at one moment.

    Take the snapshot first, read all else after: only then does every entry at or below the stable clock lie in the
    blocks that are read. Archives are fetched if an entry is older than the history in a record.
    """

    def __init__(self, meta: IndexMeta, stable: list[int], history: History) -> None:
        assert len(stable) == meta.n_vbuckets, "a seqno for each vbucket"
        assert len(history.epochs) == meta.n_partitions, "an epoch for each partition"
        self.meta = meta
        self.stable = stable
        self.epochs = history.epochs
        self._history = history
        self._limits: dict[int, EpochLimits] = {}

    @classmethod
    def take(cls, store: IndexReader) -> "IndexSnapshot":
        """The index in *store* now, for one who asks once."""
        return Snapshots(store).take()

    def limits(self, epoch: int) -> EpochLimits:
        """The bounds for entries and clocks of *epoch*."""
        known = self._limits.get(epoch)
        if known is None:
            known = self._limits[epoch] = self._computed_limits(epoch)
        return known

    def _computed_limits(self, epoch: int) -> EpochLimits:
        clock = list(map(min, self.stable, self._history.bounds(epoch)))
        if all(map(epoch.__le__, self.epochs)):
            return EpochLimits(clock, clock)
        visible = list(clock)
        for partition, newest in enumerate(self.epochs):
            if epoch > newest:
                vbuckets = self.meta.vbuckets_of(partition)
                visible[vbuckets.start : vbuckets.stop] = (0,) * len(vbuckets)
        assert len(visible) == len(clock) == self.meta.n_vbuckets
        return EpochLimits(visible, clock)

    def visibility(self, epoch: int, vb: int, seqno: int) -> str:
        """Classify an entry: "visible", "pending" (not yet stable) or "dead" (rolled back).

        Raises:
            IndexError: the index has no such vbucket.
        """
        if seqno <= self.limits(epoch).visible[vb]:
            return "visible"
        return "pending" if seqno <= self._history.bounds(epoch)[vb] else "dead"

    def shows_all(self, state: ChannelState | None) -> bool:
        """True if nothing of a channel in *state* is yet to become visible, as long as no epoch begins."""
        try:
            return state is None or all(
                group.tail is not None and self._is_stable(fold_clock(group.frames, self._bound))
                for group in state.groups.values()
            )
        except (IndexCorrupt, IndexError):
            return False

    def _bound(self, epoch: int, vb: int) -> int:
        return self._history.bounds(epoch)[vb]

    def _is_stable(self, clock: Mapping[int, int]) -> bool:
        return all(seqno <= self.stable[vb] for vb, seqno in clock.items())

    def stable_before(self, timelines: Sequence[Sequence[Moment]], time_s: float) -> list[int]:
        """The seqno of each vbucket that was stable at *time_s* (Unix time) at the latest, and still is; 0 for none.

        *timelines* are those of all partitions, read after the snapshot or before it.
        """
        assert len(timelines) == len(self.epochs), "a timeline for each partition"
        seqnos: list[int] = []
        for partition, moments in enumerate(timelines):
            vbuckets = self.meta.vbuckets_of(partition)
            moment = newest_before(moments, int(time_s * 1000))
            if moment is None:
                seqnos += (0,) * len(vbuckets)
                continue
            bounds = self._history.position_bounds(moment.epoch, partition)
            stable = self.stable[vbuckets.start : vbuckets.stop]
            then = (checkpoint.seqno for checkpoint in moment.checkpoints)
            seqnos += map(min, then, bounds, stable)
        assert len(seqnos) == len(self.stable), "a seqno for each vbucket"
        return seqnos

    @cached_property
    def position(self) -> Token:
        """The token of who has read all that is visible in this snapshot."""
        stable = tuple(self.stable)
        return Token(0, 0, self.epochs, stable, stable)

    def resume(self, token: Token) -> Token:
        """*token* lowered to this snapshot: the reader needs everything above its seqnos.

        A vbucket of which the reader had seen something that a rollback took back begins at 0 again. To begin where the
        rollback began is not enough: a document may be back at an earlier revision that the reader never got, because
        there was a newer one, or that it takes for replaced by one that no longer exists. So does one that is streamed
        anew because of a rollback, until the stable clock is where the reader was.

        One that goes back for another reason begins at the start of its epoch: what the reader got is true, and
        what is above comes again. If the source takes back some of that meanwhile, an epoch starts lower still.

        Raises:
            TokenAhead: the token has an epoch or a seqno that the index has not reached.
        """
        assert len(token.epochs) == len(self.epochs), "`since_token.decode` refuses one of another shape"
        assert len(token.seqnos) == len(token.horizons) == len(self.stable)
        seqnos, horizons = list(token.seqnos), list(token.horizons)
        for partition, (epoch, newest) in enumerate(zip(token.epochs, self.epochs, strict=True)):
            if epoch > newest:
                raise _from_the_future(f"partition {partition} is at epoch", newest, epoch)
            if epoch < newest:
                self._lower(partition, epoch, seqnos, horizons)
        for vb in [vb for vb, is_above in enumerate(map(gt, horizons, self.stable)) if is_above]:
            if horizons[vb] > self._kept(vb):
                raise _from_the_future(f"vbucket {vb} is at seqno", self.stable[vb], horizons[vb])
            seqnos[vb] = horizons[vb] = 0
        delivered = token.delivered if tuple(horizons) == token.horizons else Delivered.ANYTHING
        return token._replace(epochs=self.epochs, seqnos=tuple(seqnos), horizons=tuple(horizons), delivered=delivered)

    def heard_upto(self, begin: Token, vb: int) -> int:
        """`since_token.heard_upto` of the reader at *begin*, which is not lowered yet."""
        partition = vb // self.meta.partition_width
        bounds = self._history.position_bounds(begin.epochs[partition], partition)
        return heard_upto(begin, vb, bounds[vb - self.meta.vbuckets_of(partition).start])

    def _lower(self, partition: int, epoch: int, seqnos: list[int], horizons: list[int]) -> None:
        """Lower each vbucket of *partition* of which a reader under *epoch* saw what is dead now."""
        vbuckets = self.meta.vbuckets_of(partition)
        if not any(horizons[vbuckets.start : vbuckets.stop]):
            return
        bounds, reaches = self._history.position_bounds(epoch, partition), self._history.reach_of(epoch, partition)
        for vb, bound, reach in zip(vbuckets, bounds, reaches, strict=True):
            if horizons[vb] <= bound:
                continue
            if bound > self._kept(vb):
                raise _from_the_future(f"vbucket {vb} is at seqno", self.stable[vb], horizons[vb])
            if horizons[vb] <= reach:
                seqnos[vb], horizons[vb] = min(seqnos[vb], bound), bound
            else:
                seqnos[vb] = horizons[vb] = 0

    def taken_back(self, token: Token) -> Mapping[int, TakenBack]:
        """By vbucket, what a rollback took back of what the reader at *token* had got; *token* is not lowered yet.

        Nothing where the index alone went back and was streamed from 0: what the reader had got may yet come again.
        """
        taken: dict[int, TakenBack] = {}
        for partition, (epoch, newest) in enumerate(zip(token.epochs, self.epochs, strict=True)):
            vbuckets = self.meta.vbuckets_of(partition)
            if epoch >= newest or not any(token.seqnos[vbuckets.start : vbuckets.stop]):
                continue
            if self._history.is_pruned(epoch, partition):  # what was dead is gone
                continue
            for vb, reach in zip(vbuckets, self._history.reach_of(epoch, partition), strict=True):
                if token.seqnos[vb] > reach and not self._history.is_unwatched(epoch, partition, vb):
                    taken[vb] = TakenBack(epoch, token.seqnos[vb], reach)
        assert all(one.true_upto < one.upto for one in taken.values()), "something was taken back"
        return taken

    def dead_limits(self, epoch: int, vb: int, taken: TakenBack) -> tuple[int, int, int]:
        """Judge the entries of *epoch* in *vb* for a reader that had got *taken*, by three seqnos.

        Above the first, they are dead. Up to the second, the reader may have got them. Up to the third, one
        that is not dead is there, or will be again once the stable clock is back.
        """
        assert taken.true_upto < taken.upto, "something was taken back"
        partition = vb // self.meta.partition_width
        if epoch > self.epochs[partition]:  # nothing is known of it
            return 0, 0, 0
        live = self._history.reach_of(epoch, partition)[vb - self.meta.vbuckets_of(partition).start]
        there = max(self._kept(vb), taken.true_upto)
        if epoch > taken.epoch:
            return live, 0, there
        then = self._history.bounds_then(taken.epoch, partition)
        return live, min(taken.upto, then.bound(epoch, vb)), there

    def _kept(self, vb: int) -> int:
        """The seqno of *vb* up to which the index was complete, before it was streamed anew if it is now."""
        record = self._history.records[vb // self.meta.partition_width]
        return max(self.stable[vb], record.restarting[vb - record.first_vb] if record.restarting else 0)


def _from_the_future(what: str, ours: int, theirs: int) -> TokenAhead:
    return TokenAhead(f"since token is from the future: {what} {ours}, the token at {theirs}")
