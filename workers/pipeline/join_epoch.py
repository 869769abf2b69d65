"""Partitions that come to a feed worker which has others already: how all of them get into one epoch.

Those that come are begun in the next epoch, while the others go on in theirs. Then the others join it, which they may
where nothing of theirs is in flight. A join that fails half-way leaves some in the one epoch and some in the other: it
has to be gone through with before anything else. What may follow what is said in `workers.pipeline.ownership`.
"""

from collections.abc import Iterable, Sequence

from channelindex.backoff import STORE_RETRY_S, Backoff
from channelindex.epochs import PartitionRecord
from channelindex.errors import ChannelIndexError, StaleEpoch, Transient
from channelindex.logs import EventLog
from channelindex.model import Checkpoint
from channelindex.stores.base import OwnerStore
from workers.pipeline.ownership import Ownership
from workers.telemetry.board import ProcessStats


class PartitionJoin:
    """Adds partitions to a running feed worker: begins them in a new epoch, then moves those it owns into that epoch.

    A store that is away is asked again, from `retry_at` on (monotonic seconds).
    """

    def __init__(self, ownership: Ownership, store: OwnerStore, owner: str, stats: ProcessStats, log: EventLog) -> None:
        self._ownership = ownership
        self._store = store
        self._owner = owner
        self._stats = stats
        self._log = log
        self._backoff = Backoff(*STORE_RETRY_S)
        self._records: Sequence[PartitionRecord] = ()
        self.retry_at = 0.0

    def begin(self, now: float) -> None:
        """Begin exactly the partitions that come, all in one epoch.

        Where a former owner that does not know yet that it is none gets in between, we begin once more.
        """
        coming = self._ownership.to_begin()
        if coming is None or now < self.retry_at:
            return
        self._ownership.withdraw()
        if not coming:
            return
        try:
            epoch = self._store.next_epoch()
            self._records = self._store.begin_all(no_rollbacks(coming), epoch, self._owner)
        except (Transient, StaleEpoch) as error:
            self._retry_later(now, error)
        else:
            assert len(self._records) == len(coming)
            assert all(record.epoch == epoch for record in self._records), "what comes is in one epoch"
            self._backoff.reset()
            self._ownership.begin(coming, epoch)

    def join(self, now: float) -> Sequence[PartitionRecord] | None:
        """Move what we own into the epoch of what comes; return the records of what has come, None to be repeated.

        Raises:
            StaleEpoch: one of ours is somebody else's.
        """
        if now < self.retry_at:
            return None
        ownership = self._ownership
        ours = ownership.join()
        assert self._records, "something comes"
        try:
            self._store.begin_all(no_rollbacks(ours), ownership.next_epoch, self._owner, only_if=ownership.epoch)
        except Transient as error:
            self._retry_later(now, error)
            return None
        self._backoff.reset()
        ownership.joined()
        return self._records

    def _retry_later(self, now: float, error: ChannelIndexError) -> None:
        delay_s = self._backoff.next_delay_s()
        self.retry_at = now + delay_s
        self._stats.add(store_errors=1)
        self._log.warning(
            "feed.begin_failed",
            epoch=self._ownership.epoch,
            msg=str(error),
            failures=self._backoff.failures,
            retry_s=round(delay_s, 2),
        )


def no_rollbacks(partitions: Iterable[int]) -> dict[int, dict[int, Checkpoint]]:
    """Return an empty rollback map per partition, ascending: begin each at its stable clock."""
    return {partition: {} for partition in sorted(partitions)}
