"""What the supervisor takes a feed worker for working on is never less than what it does work on."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from workers.pipeline.assignment import AssignmentLink, WorkerLink, assignment_link


@pytest.fixture
def ends() -> Iterator[tuple[AssignmentLink, WorkerLink]]:
    ours, its = assignment_link(frozenset({1, 2}))
    yield ours, its
    ours.close()
    its.close()


def test_worker_hears_the_newest_only(ends):
    ours, its = ends
    assert its.newest() is None
    ours.assign(frozenset({1}))
    ours.assign(frozenset({1, 3}))
    assert its.newest() == {1, 3}
    assert its.newest() is None


def test_partition_is_worked_on_until_the_worker_says_otherwise(ends):
    ours, its = ends
    ours.assign(frozenset({1, 3}))
    assert ours.working == {1, 2, 3}
    its.newest()
    its.report({1, 2, 3})
    ours.poll()
    assert ours.working == {1, 2, 3}
    its.report({1, 3})
    ours.poll()
    assert ours.working == {1, 3}


def test_report_that_does_not_know_the_newest_wish_frees_nothing(ends):
    ours, its = ends
    ours.assign(frozenset({1, 3}))
    its.report({1, 2})
    ours.poll()
    assert ours.working == {1, 2, 3}


def test_what_does_not_fit_is_sent_later(ends):
    ours, its = ends
    for number in range(3000):
        ours.assign(frozenset({number % 7, *range(100, 300)}))
    ours.assign(frozenset({1}))
    while (heard := its.newest()) != {1}:
        assert heard is not None
        ours.assign(frozenset({1}))


class AssignmentMachine(RuleBasedStateMachine):
    """A supervisor that changes its mind at any time and a worker that follows when it pleases, in steps."""

    @initialize()
    def start(self) -> None:
        self.ours, self.its = assignment_link(frozenset())
        self.working: set[int] = set()
        self.assigned: frozenset[int] = frozenset()

    @rule(partitions=st.frozensets(st.integers(0, 5)))
    def assign(self, partitions):
        self.ours.assign(partitions)

    @rule()
    def worker_hears(self):
        self.assigned = self.its.newest() or self.assigned

    @rule()
    def worker_lets_go(self):
        self.working -= set(sorted(self.working - self.assigned)[:1])

    @rule()
    def worker_begins(self):
        self.working |= self.assigned

    @rule()
    def worker_reports(self):
        self.its.report(self.working | self.assigned)

    @rule()
    def supervisor_hears(self):
        self.ours.poll()

    @invariant()
    def nothing_is_worked_on_behind_the_supervisors_back(self):
        assert self.working <= self.ours.working

    def teardown(self):
        self.ours.close()
        self.its.close()


TestAssignment = AssignmentMachine.TestCase
TestAssignment.settings = settings(stateful_step_count=30)
