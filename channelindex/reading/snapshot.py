"""Takes a snapshot of the partition records, and judges every entry, clock and token by it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from channelindex.epochs import Bounds, EpochStart, PartitionRecord, whole_record
from channelindex.errors import IndexCorrupt, TokenAhead
from channelindex.reading.token import Delivered, Token
from channelindex.stores.base import IndexReader
from channelindex.timeline import Moment, newest_before


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


class IndexSnapshot:
    """The partition records of an index, all read at one moment.

    Read the partition records first, all else after: only then does every entry at or below the stable clock lie in
    the blocks that are read. *archives* are fetched if an entry is older than the history in a record.
    """

    def __init__(self, records: Sequence[PartitionRecord], archives: Archives) -> None:
        self._records = records
        self._archives = archives
        self._newest_archived = max((record.archived for record in records), default=0)
        self._bounds = [Bounds(record) for record in records]
        self._limits: dict[int, EpochLimits] = {}
        self.epochs = tuple(record.epoch for record in records)
        self.stable = [seqno for record in records for seqno in record.stable]

    @classmethod
    def take(cls, store: IndexReader, archives: Archives | None = None) -> Self:
        """Read the partition records of the index in *store* now."""
        return cls(store.partition_records(), archives or Archives(store))

    def limits(self, epoch: int) -> EpochLimits:
        """The bounds for entries and clocks of *epoch*."""
        known = self._limits.get(epoch)
        if known is None:
            known = self._limits[epoch] = self._computed_limits(epoch)
        return known

    def _reach_back_to(self, epoch: int) -> None:
        """Load the bounds of *epoch* from the archive if the records do not reach back so far."""
        if epoch >= self._newest_archived:
            return
        for partition, starts in self._archives.of(self._records).items():
            self._bounds[partition] = Bounds(whole_record(self._records[partition], starts))
        self._newest_archived = 0  # last: threads that share the snapshot go by it

    def _computed_limits(self, epoch: int) -> EpochLimits:
        self._reach_back_to(epoch)
        visible: list[int] = []
        clock: list[int] = []
        for record, bounds in zip(self._records, self._bounds, strict=True):
            lowered = bounds.clamp(epoch, record.stable)
            clock += lowered
            visible += lowered if epoch <= record.epoch else (0,) * len(lowered)
        return EpochLimits(visible, clock)

    def clock_limit(self, epoch: int, vb: int) -> int:
        """`EpochLimits.clock` of one vbucket, as `blocks.fold_clock` wants it.

        Raises:
            IndexCorrupt: the index has no such vbucket.
        """
        try:
            return self.limits(epoch).clock[vb]
        except IndexError as error:
            raise IndexCorrupt(f"vbucket {vb} in a clock, of {len(self.stable)} that the index has") from error

    def visibility(self, epoch: int, vb: int, seqno: int) -> str:
        """Classify an entry: "visible", "pending" (not yet stable) or "dead" (rolled back).

        Raises:
            IndexError: the index has no such vbucket.
        """
        if seqno <= self.limits(epoch).visible[vb]:
            return "visible"
        bounds = self._bounds[vb * len(self._records) // len(self.stable)]
        return "pending" if seqno <= bounds.bound(epoch, vb) else "dead"

    def stable_before(self, timelines: Sequence[Sequence[Moment]], time_s: float) -> list[int]:
        """The seqno of each vbucket that was stable at *time_s* (Unix time) at the latest, and still is; 0 for none.

        *timelines* are those of all partitions, read after the snapshot or before it.
        """
        assert len(timelines) == len(self._records), "a timeline for each partition"
        seqnos: list[int] = []
        for record, moments in zip(self._records, timelines, strict=True):
            moment = newest_before(moments, int(time_s * 1000))
            if moment is None:
                seqnos += (0,) * len(record.checkpoints)
                continue
            limits = self.limits(moment.epoch).clock[record.vbuckets.start : record.vbuckets.stop]
            seqnos += [min(checkpoint.seqno, left) for checkpoint, left in zip(moment.checkpoints, limits, strict=True)]
        return seqnos

    def position(self) -> Token:
        """The token of who has read all that is visible in this snapshot."""
        stable = tuple(self.stable)
        return Token(0, 0, self.epochs, stable, stable)

    def resume(self, token: Token) -> Token:
        """*token* lowered to this snapshot: the reader needs everything above its seqnos.

        A vbucket of which the reader had seen something that a rollback took back begins at 0 again. To begin where the
        rollback began is not enough: a document may be back at an earlier revision that the reader never got, because
        there was a newer one, or that it takes for replaced by one that no longer exists.

        Raises:
            TokenAhead: the token has an epoch or a seqno that the index has not reached.
        """
        seqnos: list[int] = []
        horizons: list[int] = []
        for partition, record in enumerate(self._records):
            epoch = token.epochs[partition]
            if epoch > record.epoch:
                raise _from_the_future(f"partition {partition} is at epoch", record.epoch, epoch)
            vbuckets = record.vbuckets
            seen = token.horizons[vbuckets.start : vbuckets.stop]
            if any(seen):
                self._reach_back_to(epoch)
            lefts = self._bounds[partition].clamp(epoch, seen)
            for vb, horizon, left in zip(vbuckets, seen, lefts, strict=True):
                if left > self.stable[vb]:
                    raise _from_the_future(f"vbucket {vb} is at seqno", self.stable[vb], horizon)
                seqnos.append(token.seqnos[vb] if left == horizon else 0)
                horizons.append(horizon if left == horizon else 0)
        assert len(seqnos) == len(horizons) == len(self.stable), "a seqno for each vbucket"
        delivered = token.delivered if tuple(horizons) == token.horizons else Delivered.ANYTHING
        return token._replace(epochs=self.epochs, seqnos=tuple(seqnos), horizons=tuple(horizons), delivered=delivered)


def _from_the_future(what: str, ours: int, theirs: int) -> TokenAhead:
    return TokenAhead(f"since token is from the future: {what} {ours}, the token at {theirs}")
