"""Partitions that come to a feed worker which has others already: how all of them get into one epoch.

Those that come are begun in the next epoch, while the others go on in theirs. Then the others join it, which they may
where nothing of theirs is in flight. A join that fails half-way leaves some in the one epoch and some in the other: it
has to be gone through with before anything else.
"""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from channelindex.backoff import Backoff
from channelindex.epochs import PartitionRecord
from channelindex.errors import ChannelIndexError, StaleEpoch, Transient
from channelindex.logs import EventLog
from channelindex.model import Checkpoint
from channelindex.stores.base import OwnerStore
from workers.telemetry.board import ProcessStats


class PartitionJoin:
    """Adds partitions to a running feed worker: begins them in a new epoch, then moves those it owns into that epoch.

    A store that is away is asked again, from `retry_at` on.
    """

    def __init__(self, store: OwnerStore, owner: str, stats: ProcessStats, log: EventLog) -> None:
        self._store = store
        self._owner = owner
        self._stats = stats
        self._log = log
        self._backoff = Backoff(0.05, 2.0)
        self._begun: dict[int, PartitionRecord] = {}
        self.epoch = 0
        """The epoch that they are in."""
        self.joining = False
        """Whether some of the others may have left their epoch and some not."""
        self.retry_at = 0.0

    @property
    def partitions(self) -> AbstractSet[int]:
        """What has been begun and is not yet taken."""
        return self._begun.keys()

    def begin(self, partitions: AbstractSet[int], now: float) -> None:
        """Have *partitions* begun, no more and no less; all of them in another epoch if they were others before.

        For what went and came again may have had other owners meanwhile. Where a former owner that does not know yet
        that it is none gets in between, we begin once more.
        """
        if self.joining or partitions == self._begun.keys() or now < self.retry_at:
            return
        self._begun = {}
        if not partitions:
            return
        try:
            self.epoch = self._store.next_epoch()
            records = self._store.begin_all(no_rollbacks(partitions), self.epoch, self._owner)
        except (Transient, StaleEpoch) as error:
            self._retry_later(now, error)
        else:
            self._backoff.reset()
            self._begun = dict(zip(sorted(partitions), records, strict=True))

    def join(self, others: Iterable[int], former: int, now: float) -> dict[int, PartitionRecord] | None:
        """Bring *others* out of their *former* epoch into ours; what they have joined, None if it is to be repeated.

        Raises:
            StaleEpoch: one of them is somebody else's.
        """
        if now < self.retry_at:
            return None
        self.joining = True
        try:
            self._store.begin_all(no_rollbacks(others), self.epoch, self._owner, only_if=former)
        except Transient as error:
            self._retry_later(now, error)
            return None
        self._backoff.reset()
        self.joining = False
        begun, self._begun = self._begun, {}
        return begun

    def _retry_later(self, now: float, error: ChannelIndexError) -> None:
        self.retry_at = now + self._backoff.next_delay_s()
        self._stats.add(store_errors=1)
        self._log.warning("feed.begin_failed", epoch=self.epoch, msg=str(error))


def no_rollbacks(partitions: Iterable[int]) -> dict[int, dict[int, Checkpoint]]:
    """Return an empty rollback map per partition, ascending: begin each at its stable clock."""
    return {partition: {} for partition in sorted(partitions)}
