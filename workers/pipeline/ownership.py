"""Decides which partitions a feed worker owns, and how far each has come in or gone out: every move a row of a table.

    not ours ──BEGIN──► BEGUN ──JOINED──► ACTIVE ─UNASSIGN─► LEAVING ──SETTLE──► not ours
                          │               │    ▲                ▲
                       WITHDRAW          JOIN  JOINED        UNASSIGN
                          ▼               ▼    │                │
                       not ours          JOINING ───────────────┘

* BEGUN: begun in the next epoch, not read yet. It may be withdrawn; when it is assigned again, it is begun anew, for it
  may have had other owners meanwhile.
* ACTIVE: in our epoch, read and written.
* JOINING: on its way from our epoch into the next one, in either of them. A join that failed half-way has to be gone
  through with before anything else is begun.
* LEAVING: no longer read; ours until all that was read of it is stable.

A join takes all that is active, and may begin only where nothing of ours is in flight: what is on its way when its
partition changes the epoch would be above the start of the new epoch, and dead.
"""

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from enum import Enum

from channelindex.errors import InvariantBroken


class Phase(Enum):
    """The state of a partition on its way into or out of a worker."""

    BEGUN = "begun"
    JOINING = "joining"
    ACTIVE = "active"
    LEAVING = "leaving"


class Step(Enum):
    """An event in the life of a partition."""

    BEGIN = "begin"
    WITHDRAW = "withdraw"
    JOIN = "join"
    JOINED = "joined"
    UNASSIGN = "unassign"
    SETTLE = "settle"


TRANSITIONS: dict[tuple[Phase | None, Step], Phase | None] = {
    (None, Step.BEGIN): Phase.BEGUN,
    (Phase.BEGUN, Step.WITHDRAW): None,
    (Phase.BEGUN, Step.JOINED): Phase.ACTIVE,
    (Phase.ACTIVE, Step.JOIN): Phase.JOINING,
    (Phase.JOINING, Step.JOIN): Phase.JOINING,  # once more, after a failure
    (Phase.JOINING, Step.JOINED): Phase.ACTIVE,
    (Phase.ACTIVE, Step.UNASSIGN): Phase.LEAVING,
    (Phase.JOINING, Step.UNASSIGN): Phase.LEAVING,
    (Phase.LEAVING, Step.SETTLE): None,
}
"""The next phase, None for not ours. What is not here cannot happen."""


class Ownership:
    """Keeps the partitions of one feed worker. Does no I/O: takes what happened, returns what is to be done."""

    def __init__(self, partitions: Iterable[int]) -> None:
        self._phase_by_partition = dict.fromkeys(partitions, Phase.ACTIVE)
        self._regroup()
        self.assigned = self.owned
        """The partitions that the supervisor assigned to us."""
        self.epoch = 0
        """The epoch of what is active or leaving; 0 before it has begun."""
        self.next_epoch = 0
        """The epoch of what is begun, where something is."""
        self.is_joining = False
        """True if a join has begun and is not finished."""
        self.report_due = False
        """True if the supervisor has no report of our present partitions yet."""

    @property
    def working(self) -> frozenset[int]:
        """The partitions that we work on, or are about to, for the supervisor's report."""
        return self.owned | self.begun | self.assigned

    @property
    def is_paused(self) -> bool:
        """True if reading pauses, because our partitions have to join the epoch of those that come."""
        return bool(self.begun)

    def assign(self, partitions: frozenset[int]) -> None:
        """Take over a new assignment; what we work on is to be reported again, even if that stays the same."""
        self.assigned = partitions
        self.report_due = True

    def leave_unassigned(self) -> AbstractSet[int]:
        """Begin to leave what is no longer assigned to us; return the partitions to stop reading."""
        unassigned = self.owned - self.assigned - self.leaving
        if unassigned:
            self._step(Step.UNASSIGN, unassigned)
        return unassigned

    def to_begin(self) -> AbstractSet[int] | None:
        """Return what to begin in one new epoch, in place of all that is begun now; None to leave that as it is."""
        coming = self.assigned - self.owned
        return None if self.is_joining or coming == self.begun else coming

    def withdraw(self) -> None:
        """Give up what is begun: other partitions are to come."""
        if self.is_joining:
            raise InvariantBroken(f"partitions {sorted(self.begun)} are withdrawn in the middle of their join")
        self._step(Step.WITHDRAW, self.begun)

    def begin(self, partitions: AbstractSet[int], epoch: int) -> None:
        """Note that *partitions* were begun in *epoch*, which is newer than ours."""
        if epoch <= self.epoch:
            raise InvariantBroken(f"epoch {epoch} is begun after {self.epoch}")
        self._step(Step.BEGIN, partitions)
        self.next_epoch = epoch

    def settle(self, is_settled: Callable[[int], bool]) -> AbstractSet[int]:
        """Let go of each leaving partition of which everything is stable, and return these."""
        gone = {partition for partition in self.leaving if is_settled(partition)}
        if gone:
            self._step(Step.SETTLE, gone)
            self.report_due = True
        return gone

    def join(self) -> AbstractSet[int]:
        """Begin, or repeat, the join of all that we own into the next epoch; return what has to be moved there.

        Only where nothing of ours is in flight, which also means that nothing is leaving any more.
        """
        if not self.begun:
            raise InvariantBroken("a join without anything to join")
        self._step(Step.JOIN, self.owned)
        self.is_joining = True
        return self.owned

    def joined(self) -> AbstractSet[int]:
        """Note that all are in the next epoch, which is ours from here on; return the partitions that have come."""
        come = self.begun
        self._step(Step.JOINED, self.owned | come)
        self.epoch = self.next_epoch
        self.is_joining = False
        self.report_due = True
        return come

    def check(self) -> None:
        """Assert what holds after every step."""
        phases = set(self._phase_by_partition.values())
        assert not self.begun & self.owned
        assert self.leaving <= self.owned
        assert self.owned | self.begun == self._phase_by_partition.keys()
        assert not self.begun or self.next_epoch > self.epoch, "what comes is in a newer epoch than what is here"
        assert not self.is_joining or self.begun, "a join is for something that comes"
        assert self.is_joining or Phase.JOINING not in phases
        assert not self.is_joining or Phase.ACTIVE not in phases, "a join takes all"

    def _step(self, step: Step, partitions: Iterable[int]) -> None:
        for partition in list(partitions):
            phase = self._phase_by_partition.get(partition)
            if (phase, step) not in TRANSITIONS:
                raise InvariantBroken(f"partition {partition} is {phase and phase.value}: it cannot {step.value}")
            after = TRANSITIONS[phase, step]
            if after is None:
                del self._phase_by_partition[partition]
            else:
                self._phase_by_partition[partition] = after
        self._regroup()

    def _regroup(self) -> None:
        """Keep the sets that are asked for on every turn."""
        phases = self._phase_by_partition
        self.begun = frozenset(p for p, phase in phases.items() if phase is Phase.BEGUN)
        self.leaving = frozenset(p for p, phase in phases.items() if phase is Phase.LEAVING)
        self.owned = frozenset(phases) - self.begun
