"""What a feed worker owns moves by a table, and no order of events leaves it between two epochs."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from channelindex.errors import InvariantBroken
from tests.support.profiles import examples
from workers.pipeline.ownership import TRANSITIONS, Ownership, Phase, Step

SOME = st.frozensets(st.integers(0, 5))


@pytest.mark.parametrize(
    ("phase", "step"), [pair for pair in itertools.product([None, *Phase], Step) if pair not in TRANSITIONS]
)
def test_what_is_not_in_the_table_cannot_happen(phase, step):
    ownership = Ownership([])
    if phase:
        ownership._phase_by_partition[3] = phase
    with pytest.raises(InvariantBroken, match=rf"partition 3 is .*: it cannot {step.value}"):
        ownership._step(step, [3])


def test_what_comes_is_begun_in_a_newer_epoch_only():
    ownership = Ownership([0])
    ownership.epoch = 7
    with pytest.raises(InvariantBroken, match="epoch 7 is begun after 7"):
        ownership.begin({1}, 7)


def test_what_is_half_way_in_is_not_withdrawn():
    ownership = Ownership([0])
    ownership.begin({1}, 7)
    ownership.join()
    ownership.assign(frozenset({0}))
    assert ownership.to_begin() is None
    with pytest.raises(InvariantBroken, match="in the middle of their join"):
        ownership.withdraw()


def test_nothing_is_joined_without_something_that_comes():
    with pytest.raises(InvariantBroken, match="without anything to join"):
        Ownership([0]).join()


def test_report_is_due_after_every_order_though_nothing_changes():
    ownership = Ownership([0])
    assert not ownership.report_due
    ownership.assign(frozenset({0}))
    assert ownership.report_due


class OwnershipModel(RuleBasedStateMachine):
    """Ownership against a store that may fail half-way, and changes that are read and become stable in their time."""

    def __init__(self) -> None:
        super().__init__()
        self.ownership = Ownership([0, 1])
        self.newest_epoch = 1
        self.ownership.epoch = 1
        self.epoch_in_store = {0: 1, 1: 1}
        self.in_flight: set[int] = set()

    @rule(partitions=SOME)
    def supervisor_wants(self, partitions: frozenset[int]) -> None:
        self.ownership.assign(partitions)

    @rule()
    def worker_leaves(self) -> None:
        left = self.ownership.leave_unassigned()
        assert not left & self.ownership.assigned

    @rule(store_fails=st.booleans())
    def worker_begins(self, store_fails: bool) -> None:
        coming = self.ownership.to_begin()
        if coming is None:
            return
        self.ownership.withdraw()
        self.newest_epoch += 1
        if coming and not store_fails:
            self.epoch_in_store.update(dict.fromkeys(coming, self.newest_epoch))
            self.ownership.begin(coming, self.newest_epoch)

    @precondition(lambda self: not self.ownership.is_paused)
    @rule(partition=st.integers(0, 5))
    def worker_reads(self, partition: int) -> None:
        if partition in self.ownership.owned - self.ownership.leaving:
            self.in_flight.add(partition)

    @rule(partition=st.integers(0, 5))
    def change_becomes_stable(self, partition: int) -> None:
        if partition in self.in_flight:
            assert self.epoch_in_store[partition] == self.ownership.epoch, "else the store refuses it"
            self.in_flight.remove(partition)

    @rule()
    def worker_lets_go(self) -> None:
        gone = self.ownership.settle(lambda partition: partition not in self.in_flight)
        assert not gone & self.in_flight

    @precondition(lambda self: self.ownership.is_paused and not self.in_flight)
    @rule(n_moved=st.none() | st.integers(0, 5))
    def worker_joins(self, n_moved: int | None) -> None:
        """Some have moved when the store fails; None: it does not fail."""
        self.worker_lets_go()
        for partition in sorted(self.ownership.join())[:n_moved]:
            self.epoch_in_store[partition] = self.ownership.next_epoch
        if n_moved is None:
            self.ownership.joined()

    @invariant()
    def steps_are_consistent(self) -> None:
        self.ownership.check()

    @invariant()
    def supervisor_knows_of_all_that_is_worked_on(self) -> None:
        assert self.in_flight <= self.ownership.owned <= self.ownership.working
        assert self.ownership.begun | self.ownership.assigned <= self.ownership.working

    @invariant()
    def all_that_is_read_is_in_our_epoch(self) -> None:
        if not self.ownership.is_joining:
            assert {self.epoch_in_store[partition] for partition in self.ownership.owned} <= {self.ownership.epoch}

    def teardown(self) -> None:
        for _ in range(2):  # a join that is half-way comes first
            self.in_flight.clear()
            self.worker_leaves()
            self.worker_begins(store_fails=False)
            self.worker_lets_go()
            if self.ownership.is_paused:
                self.worker_joins(None)
        self.worker_leaves()
        self.worker_lets_go()
        self.worker_begins(store_fails=False)
        if self.ownership.is_paused:
            self.worker_joins(None)
        assert self.ownership.owned == self.ownership.assigned
        self.steps_are_consistent()
        self.all_that_is_read_is_in_our_epoch()


TestOwnershipModel = OwnershipModel.TestCase
TestOwnershipModel.settings = settings(max_examples=examples(2), stateful_step_count=30, deadline=None)
