"""The epoch rule, pure: what a new owner changes in a partition's record, and which entries are live.

Every store keeps the records and applies these functions atomically; every reader judges entries with `Bounds`.
Why this makes late writes and rolled-back histories harmless: docs/design/001-epochs.md.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import gt, le
from typing import NamedTuple

from channelindex.errors import IndexCorrupt, StaleEpoch
from channelindex.model import ORIGIN, Checkpoint
from channelindex.timeline import Moment

NO_BOUND = (1 << 64) - 1

HISTORY_BYTES = 8192
"""A record whose history takes more gives the older part of it to the archive: every reader fetches every record."""


class EpochStart(NamedTuple):
    """The start of one epoch: `starts[i]` is the seqno of the partition's i-th vbucket above which it writes.

    Up to its *reach*, a vbucket's history is still the one that readers were sent before. Where that is above the
    start, the start is a *return*: of the store, or asked for by an operator. Where it is not, and what is above was
    stable, it is a *rollback* of the source. `reaches` are by vbucket like `starts`, and empty where they equal these.
    NO_BOUND among them is a return after which the vbucket is streamed from 0: no source is asked whether it kept what
    readers were sent, so it reaches no further than it starts. Yet it is no rollback.

    In an archive, one of NO_BOUND everywhere bounds nothing: it marks that the starts up to it were pruned.
    """

    epoch: int
    starts: tuple[int, ...]
    reaches: tuple[int, ...] = ()

    @property
    def true_upto(self) -> tuple[int, ...]:
        """The reach of each vbucket."""
        if NO_BOUND not in self.reaches:
            return self.reaches or self.starts
        pairs = zip(self.starts, self.reaches, strict=True)
        return tuple(start if reach == NO_BOUND else reach for start, reach in pairs)

    def is_unwatched(self, index: int) -> bool:
        """True if of the vbucket at *index* the index alone went back, and is streamed from 0."""
        return bool(self.reaches) and self.reaches[index] == NO_BOUND

    @property
    def is_mark(self) -> bool:
        """True if it stands for starts that were pruned."""
        return min(self.starts) == NO_BOUND


class PartitionRecord(NamedTuple):
    """Everything the index knows of one partition's ownership and progress.

    `checkpoints[i]` belongs to vbucket `first_vb + i`; their seqnos are the stable clock of the partition.
    `history` is ascending in epoch. An epoch of 0 means that the partition never had an owner.
    Starts of epochs up to `archived` are in the partition's archive instead; 0: none are. They bound only what is
    older than `archived`, which few readers meet (docs/design/004-history.md).

    `compacted_through` and `restarting` are by vbucket; empty stands for 0 everywhere. Up to the first, entries are
    gone that a rollback would make the newest again. Up to the second, entries of older epochs are live though the
    stable clock began again at 0; it means nothing once the stable clock is there (docs/design/015-compaction.md).

    `pruned` is of a `whole_record`: starts are missing that bound epochs before it. No entry of theirs is left that
    these starts took back, but what a position of such an epoch is worth is not known any more.
    """

    first_vb: int
    epoch: int
    owner: str
    checkpoints: tuple[Checkpoint, ...]
    history: tuple[EpochStart, ...]
    archived: int = 0
    compacted_through: tuple[int, ...] = ()
    restarting: tuple[int, ...] = ()
    pruned: int = 0

    @property
    def stable(self) -> tuple[int, ...]:
        """The seqno up to which the index is complete, per vbucket of the partition."""
        return tuple(checkpoint.seqno for checkpoint in self.checkpoints)

    @property
    def kept(self) -> tuple[int, ...]:
        """The seqno up to which entries stay live when another epoch begins, per vbucket of the partition."""
        return tuple(map(max, self.stable, self.restarting)) if self.restarting else self.stable

    @property
    def vbuckets(self) -> range:
        """The partition's vbuckets, ascending."""
        return range(self.first_vb, self.first_vb + len(self.checkpoints))

    def check(self) -> None:
        """Assert what holds after every step of an owner, of a compactor, and of a rollback."""
        width = len(self.checkpoints)
        epochs = [start.epoch for start in self.history]
        assert width > 0
        assert all(one < after for one, after in pairwise(epochs)), "the history is ascending"
        assert not epochs or self.archived < epochs[0], "what is archived is older than the history"
        assert not epochs or epochs[-1] == self.epoch, "the present epoch has a start"
        assert all(len(start.starts) == width for start in self.history), "a start for each vbucket"
        assert len(self.compacted_through) in {0, width}, "one for each vbucket, or 0 everywhere"
        assert len(self.restarting) in {0, width}, "one for each vbucket, or 0 everywhere"
        for checkpoint in self.checkpoints:
            assert checkpoint.snap_start <= checkpoint.seqno <= checkpoint.snap_end, "it lies in its snapshot"


def new_record(first_vb: int, n_vbuckets: int) -> PartitionRecord:
    """The record of a partition that nobody has owned yet."""
    assert first_vb >= 0
    assert n_vbuckets > 0
    return PartitionRecord(first_vb, 0, "", (ORIGIN,) * n_vbuckets, ())


def begin(
    record: PartitionRecord,
    epoch: int,
    owner: str,
    rollback: Mapping[int, Checkpoint] | None = None,
    only_if: int | None = None,
    partition: int = -1,
) -> PartitionRecord:
    """The record after *epoch* has begun at the stable clock, or lower for the vbuckets in *rollback*.

    *rollback* maps a vbucket to the checkpoint to go back to; one that is not lower than the present is ignored. It
    lies within a snapshot where the source's history is the same up to the end of that: see `returned`. Below
    `compacted_through`, the stream begins again at 0, while what is at or below the checkpoint stays live.
    With *only_if*, the record's epoch must be exactly that one: an owner that rolls back must still be the owner.

    Raises:
        StaleEpoch: the record has this epoch or a later one (or not *only_if*); nothing changes.
    """
    if epoch <= record.epoch or (only_if is not None and record.epoch != only_if):
        raise StaleEpoch(partition, only_if if only_if is not None else epoch, record.epoch)
    assert all(vb in record.vbuckets for vb in rollback or ()), "a vbucket of another partition"
    lowered, starts = list(record.checkpoints), list(record.kept)
    through = list(record.compacted_through or (0,) * len(starts))
    unwatched: set[int] = set()
    for vb, checkpoint in (rollback or {}).items():
        index = vb - record.first_vb
        if checkpoint.seqno >= starts[index]:
            continue
        starts[index] = checkpoint.seqno
        if checkpoint.seqno < through[index]:
            lowered[index], through[index] = ORIGIN, checkpoint.seqno
        else:
            lowered[index] = checkpoint if checkpoint.seqno else ORIGIN
        if lowered[index] == ORIGIN and checkpoint.seqno < checkpoint.snap_end:
            unwatched.add(index)
    assert all(now.seqno <= then.seqno for now, then in zip(lowered, record.checkpoints, strict=True))
    reaches = tuple(
        NO_BOUND if index in unwatched else at.reach if at.seqno == kept else kept
        for index, (kept, at) in enumerate(zip(starts, lowered, strict=True))
    )
    start = EpochStart(epoch, tuple(starts), reaches if reaches != tuple(starts) else ())
    behind = [kept if kept > at.seqno else 0 for kept, at in zip(starts, lowered, strict=True)]
    return record._replace(
        epoch=epoch,
        owner=owner,
        checkpoints=tuple(lowered),
        history=_without_implied((*record.history, start)),
        # To go back to 0 everywhere implies all before; to stand there does not imply a return to it.
        archived=record.archived if any(start.starts) or not all(record.kept) else 0,
        compacted_through=tuple(through) if any(through) else (),
        restarting=tuple(behind) if any(behind) else (),
    )


def compact(record: PartitionRecord, epoch: int, through: Sequence[int], partition: int = -1) -> PartitionRecord:
    """The record after `compacted_through` was raised to *through*, by vbucket; what is higher stays.

    Raises:
        StaleEpoch: *epoch* is not the record's: what was judged by it may be dead. Or the record was that of a store
            that has lost its newest writes since: less is stable. Nothing changes.
    """
    assert len(through) == len(record.checkpoints), "a seqno for each vbucket"
    if record.epoch != epoch:
        raise StaleEpoch(partition, epoch, record.epoch)
    if any(map(gt, through, record.stable)):
        raise StaleEpoch(partition, epoch, record.epoch)
    before = record.compacted_through or (0,) * len(record.checkpoints)
    raised = tuple(max(then, now) for then, now in zip(before, through, strict=True))
    return record._replace(compacted_through=raised if any(raised) else ())


def assume_compacted(record: PartitionRecord) -> PartitionRecord:
    """The record of an epoch that began after a loss of the store, which may have been of `compacted_through` too.

    Nothing above the stable clock was compacted and kept, so the stable clock is the highest that it can have been.
    """
    through = record.compacted_through or (0,) * len(record.checkpoints)
    raised = tuple(map(max, through, record.stable))
    return record._replace(compacted_through=raised if any(raised) else ())


def goes_back(before: PartitionRecord, after: PartitionRecord) -> bool:
    """True if the stable clock of a partition is lower *after* a start than *before* it: readers must learn of it."""
    return any(now < then for now, then in zip(after.stable, before.stable, strict=True))


def archive_old(record: PartitionRecord) -> tuple[PartitionRecord, tuple[EpochStart, ...]]:
    """*record* with at most HISTORY_BYTES of history, and what it lost: to be in the archive before the record changes.

    About half of the history goes at once, so that most of the epochs that begin have nothing to archive.
    """
    sizes = [8 * (1 + len(start.starts) + len(start.reaches)) for start in record.history]
    n_old = 0
    if sum(sizes) > HISTORY_BYTES:
        while n_old < len(sizes) - 1 and sum(sizes[n_old:]) > HISTORY_BYTES // 2:
            n_old += 1
    if not n_old:
        return record, ()
    assert 0 < n_old < len(record.history), "`has_begun` knows an epoch by its start, so the newest stays"
    old = record.history[:n_old]
    return record._replace(history=record.history[n_old:], archived=old[-1].epoch), old


def whole_record(record: PartitionRecord, archive: Iterable[EpochStart]) -> PartitionRecord:
    """*record* with the starts of its partition's *archive* in its history: it bounds all epochs that ever were.

    The archive has to be read after the record. It may hold a start twice, or starts that were moved into it since; it
    may have been pruned.

    Raises:
        IndexCorrupt: the archive lacks a start that the record counts, or the record counts one that it has itself.
    """
    if record.history and record.history[0].epoch <= record.archived:
        raise IndexCorrupt(
            f"vbucket {record.first_vb}: its partition's history begins at epoch {record.history[0].epoch}, which is "
            f"said to be in its archive, with all up to {record.archived}; channelindex repair has the partition "
            "indexed again"
        )
    pruned = 0
    old: dict[int, EpochStart] = {}
    for start in archive:
        if start.is_mark:
            pruned = max(pruned, start.epoch)
        elif start.epoch <= record.archived:
            old[start.epoch] = start
    pruned = min(pruned, record.archived)  # what went there and was pruned since is in the record
    if record.archived > pruned and record.archived not in old:
        raise IndexCorrupt(
            f"vbucket {record.first_vb}: its partition's archive of epochs is missing: the store has lost data; "
            "channelindex repair has the partition indexed again"
        )
    history = (*(old[epoch] for epoch in sorted(old)), *record.history)
    return record._replace(history=_without_implied(history), archived=0, pruned=pruned)


def has_begun(
    record: PartitionRecord, epoch: int, owner: str, rollback: Mapping[int, Checkpoint] | None = None
) -> bool:
    """True if *record* is the result of `begin` with these arguments: a repeated call finds it so.

    A call that wants to go back further than the epoch did is not a repetition: going back takes a new epoch.
    """
    if (record.epoch, record.owner) != (epoch, owner) or not record.history:
        return False
    starts = record.history[-1].starts
    return all(starts[vb - record.first_vb] <= checkpoint.seqno for vb, checkpoint in (rollback or {}).items())


def keeps_any(record: PartitionRecord, rollback: Mapping[int, Checkpoint]) -> bool:
    """True if `begin` with *rollback* would leave anything of what *record* says is stable."""
    return any(
        min(stable, rollback[vb].seqno if vb in rollback else stable)
        for vb, stable in zip(record.vbuckets, record.stable, strict=True)
    )


def fall_back(whole: PartitionRecord, moments: Sequence[Moment]) -> dict[int, Checkpoint]:
    """The checkpoints at the newest of *moments*, ascending, by vbucket: the *rollback* of `begin` after a loss.

    *whole* is the partition's whole record. Of a vbucket that a later start took back below a moment, an older moment
    is true, or the beginning. A vbucket that is not further yet is left out.
    """
    assert all(one.time_ms <= after.time_ms for one, after in pairwise(moments)), "a timeline is ascending"
    bounds = Bounds(whole)
    moments = [moment for moment in moments if moment.epoch >= whole.pruned]
    lowered: dict[int, Checkpoint] = {}
    for index, (vb, present) in enumerate(zip(whole.vbuckets, whole.checkpoints, strict=True)):
        known = ((moment.epoch, moment.checkpoints[index]) for moment in reversed(moments))
        true = [at for epoch, at in known if at.seqno <= bounds.bound(epoch, vb)]
        if not true:
            true = [ORIGIN]
        if true[0].seqno < present.seqno:
            lowered[vb] = returned(
                present, true[0], max((at.complete_at for at in true if at.complete_at < true[0].seqno), default=0)
            )
    return lowered


def returned(present: Checkpoint, to: Checkpoint, complete_at: int) -> Checkpoint:
    """The position to stream from when the index, not the source, goes back from *present* to the seqno of *to*.

    It lies in a snapshot that begins at *complete_at*, below it, where the index was complete, and ends where readers
    may be: so a source that has lost part of that before it is streamed again answers with a rollback. At 0 it answers
    with none; there, the snapshot shows `begin` that it is a return.
    """
    assert to.seqno < present.reach, "it is a step back"
    if to.seqno == 0:
        return Checkpoint(snap_end=present.reach)
    assert complete_at < to.seqno, "else the source would take it for complete"
    return Checkpoint(present.vbuuid, to.seqno, complete_at, present.reach, to.purge_seqno)


def lower_of(one: Mapping[int, Checkpoint], other: Mapping[int, Checkpoint]) -> dict[int, Checkpoint]:
    """Per vbucket the checkpoint of the lower seqno of two rollbacks."""
    both = one.keys() & other.keys()
    return {**one, **other, **{vb: min(one[vb], other[vb], key=lambda each: each.seqno) for vb in both}}


def advance(
    record: PartitionRecord, epoch: int, checkpoints: Mapping[int, Checkpoint], partition: int = -1
) -> PartitionRecord:
    """The record after the stable clock moved to *checkpoints* (by vbucket). A lower seqno than the present is ignored.

    Raises:
        StaleEpoch: *epoch* is not the record's current one; nothing changes.
    """
    if epoch != record.epoch:
        raise StaleEpoch(partition, epoch, record.epoch)
    assert all(vb in record.vbuckets for vb in checkpoints), "a vbucket of another partition"
    moved = list(record.checkpoints)
    for vb, checkpoint in checkpoints.items():
        index = vb - record.first_vb
        if checkpoint.seqno >= moved[index].seqno:
            moved[index] = checkpoint
    assert all(now.seqno >= then.seqno for now, then in zip(moved, record.checkpoints, strict=True))
    return record._replace(checkpoints=tuple(moved))


def _without_implied(history: tuple[EpochStart, ...]) -> tuple[EpochStart, ...]:
    """*history* less each start that the next one implies: the bound of every earlier epoch stays the same.

    A start s_i is implied by the next, s_j, where s_j <= s_i for every vbucket: an epoch before i is bound by the
    minimum over both, which is s_j's, and epoch i itself is bound by s_j alone either way. The same holds for reaches.
    That a start is an unwatched return is implied by no rollback.
    """
    kept: list[EpochStart] = []
    for start in history:
        while kept and _implies(start, kept[-1]):
            kept.pop()
        kept.append(start)
    return tuple(kept)


def _implies(new: EpochStart, old: EpochStart) -> bool:
    if not all(map(le, new.starts, old.starts)) or not all(map(le, new.true_upto, old.true_upto)):
        return False
    return NO_BOUND not in old.reaches or not any(
        old.is_unwatched(index) and not new.is_unwatched(index) for index in range(len(old.starts))
    )


class Bounds:
    """Answers, for one state of a partition's record, which entries a reader may see.

    Of epochs before `record.archived` it knows nothing: ask the Bounds of the `whole_record`.
    """

    def __init__(self, record: PartitionRecord) -> None:
        self._record = record
        self._epochs = [start.epoch for start in record.history]
        assert all(one < after for one, after in pairwise(self._epochs)), "a history is ascending"
        no_bound = (NO_BOUND,) * len(record.checkpoints)
        suffix_minima = [no_bound]
        reach_minima = [no_bound]
        for start in reversed(record.history):
            assert len(start.starts) == len(start.true_upto) == len(no_bound), "a start for each vbucket"
            assert all(map(le, start.starts, start.true_upto)), "a start reaches no less far than it is"
            suffix_minima.append(tuple(map(min, suffix_minima[-1], start.starts)))
            reach_minima.append(tuple(map(min, reach_minima[-1], start.true_upto)))
        self._minima = suffix_minima[::-1]
        self._reach_minima = reach_minima[::-1]

    def of(self, epoch: int) -> tuple[int, ...]:
        """By vbucket of the partition, the highest seqno at which an entry of *epoch* is live; NO_BOUND: any is."""
        return self._minima[bisect_right(self._epochs, epoch)]

    def reach_of(self, epoch: int) -> tuple[int, ...]:
        """By vbucket, the seqno up to which all is true that a reader under *epoch* was sent; NO_BOUND: all is."""
        return self._reach_minima[bisect_right(self._epochs, epoch)]

    def is_unwatched(self, epoch: int, vb: int) -> bool:
        """True if the index alone went back after *epoch*, and *vb* was streamed from 0: see `EpochStart`."""
        later = self._record.history[bisect_right(self._epochs, epoch) :]
        return any(start.is_unwatched(vb - self._record.first_vb) for start in later)

    def bound(self, epoch: int, vb: int) -> int:
        """`of` one vbucket."""
        return self.of(epoch)[vb - self._record.first_vb]

    def clamp(self, epoch: int, seqnos: Iterable[int]) -> tuple[int, ...]:
        """A reader's `since` seqnos, made under *epoch*, lowered to what they still mean under this record."""
        return tuple(map(min, seqnos, self.of(epoch)))
