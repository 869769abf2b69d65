"""One moment of the index: what its partition records, read at once, say of every entry, clock and token. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

from channelindex.epochs import Bounds, PartitionRecord
from channelindex.errors import IndexCorrupt, TokenInvalid
from channelindex.token import Token


class EpochLimits(NamedTuple):
    """What one epoch may claim in this moment; both lists are seqnos by vbucket.

    `visible`: the highest seqno at which an entry of the epoch is visible. 0 where the epoch began after this moment.
    `clock`: what a clock record or block header of the epoch is lowered to. Such a clock also sums up the epochs
    before its own, so an epoch that began after this moment must not be lowered to 0 here: entries of the older
    epochs would be skipped with it.
    """

    visible: list[int]
    clock: list[int]


class View:
    """One moment of the index.

    Read the partition records first, all else after: only then does every entry at or below the stable clock lie in
    the blocks that are read.
    """

    def __init__(self, records: Sequence[PartitionRecord]) -> None:
        self._records = records
        self._bounds = [Bounds(record) for record in records]
        self._limits: dict[int, EpochLimits] = {}
        self.epochs = tuple(record.epoch for record in records)
        self.stable = [seqno for record in records for seqno in record.stable]

    def limits(self, epoch: int) -> EpochLimits:
        """What entries and clocks of *epoch* may claim."""
        known = self._limits.get(epoch)
        if known is None:
            known = self._limits[epoch] = self._computed_limits(epoch)
        return known

    def _computed_limits(self, epoch: int) -> EpochLimits:
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

    def resume(self, token: Token) -> Token:
        """*token* as of this moment: above its seqnos, the reader has to be told everything.

        A vbucket of which the reader had seen something that a rollback took back begins at 0 again. Where the rollback
        began is not early enough: a document may have gone back to a revision before that, of which the reader was not
        told because there was a newer one, or which it holds for replaced by one that has never been.

        Raises:
            TokenInvalid: the token has an epoch or a seqno that the index has not reached.
        """
        seqnos: list[int] = []
        horizons: list[int] = []
        for partition, (record, bounds) in enumerate(zip(self._records, self._bounds, strict=True)):
            epoch = token.epochs[partition]
            if epoch > record.epoch:
                raise _from_the_future(f"partition {partition} is at epoch", record.epoch, epoch)
            vbuckets = record.vbuckets
            seen = token.horizons[vbuckets.start : vbuckets.stop]
            for vb, horizon, left in zip(vbuckets, seen, bounds.clamp(epoch, seen), strict=True):
                if left > self.stable[vb]:
                    raise _from_the_future(f"vbucket {vb} is at seqno", self.stable[vb], horizon)
                seqnos.append(token.seqnos[vb] if left == horizon else 0)
                horizons.append(horizon if left == horizon else 0)
        return token._replace(epochs=self.epochs, seqnos=tuple(seqnos), horizons=tuple(horizons))


def _from_the_future(what: str, ours: int, theirs: int) -> TokenInvalid:
    return TokenInvalid(f"since token is from the future: {what} {ours}, the token at {theirs}")
