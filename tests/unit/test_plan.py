"""The plan gives every partition an owner, shares them fairly, moves as few as it must and then keeps still."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.plan import Member, Plan, plan


def _members(*nodes: str) -> list[Member]:
    return [Member(node) for node in nodes]


def _owned(**partitions_by_node: range) -> dict[int, str]:
    return {partition: node for node, partitions in partitions_by_node.items() for partition in partitions}


def test_single_node_takes_everything():
    assert plan(_members("a"), {}, "a", 8) == Plan(take=tuple(range(8)))


def test_members_take_disjoint_parts_of_what_is_free():
    takes = [plan(_members("a", "b", "c"), {}, node, 8).take for node in "abc"]
    assert takes == [(0, 1, 2), (3, 4, 5), (6, 7)]


def test_newcomer_gets_its_share_from_the_owner_and_takes_nothing_before_it_is_free():
    leases = _owned(a=range(8))
    assert plan(_members("a", "b"), leases, "a", 8) == Plan(release=(4, 5, 6, 7))
    assert plan(_members("a", "b"), leases, "b", 8) == Plan()


def test_partition_of_a_node_that_is_no_member_is_free():
    assert plan(_members("a"), _owned(a=range(4), dead=range(4, 8)), "a", 8) == Plan(take=(4, 5, 6, 7))


def test_draining_node_releases_everything_and_takes_nothing():
    members = [Member("a", draining=True), Member("b")]
    leases = _owned(a=range(3), b=range(3, 6))
    assert plan(members, leases, "a", 8) == Plan(release=(0, 1, 2))
    assert plan(members, leases, "b", 8) == Plan(take=(6, 7))


def test_shares_that_differ_by_one_are_left_alone_whoever_has_the_larger():
    leases = _owned(a=range(2), b=range(2, 5))
    assert [plan(_members("a", "b"), leases, node, 5) for node in "ab"] == [Plan(), Plan()]


def test_node_that_is_no_member_does_nothing():
    assert plan(_members("a"), _owned(a=range(4)), "b", 8) == Plan()


def test_more_nodes_than_partitions_leave_some_nodes_without():
    shares = [len(plan(_members("a", "b", "c"), {}, node, 2).take) for node in "abc"]
    assert shares == [1, 1, 0]


def test_order_of_the_members_does_not_matter():
    leases = _owned(a=range(6), b=range(6, 7))
    assert plan(_members("a", "b", "c"), leases, "a", 9) == plan(_members("c", "b", "a"), leases, "a", 9)


@pytest.mark.parametrize("slow", ["a", "b"])
def test_pace_of_the_releases_does_not_change_who_has_to_release_what(slow):
    leases = _owned(a=range(32), b=range(32, 64))
    members = _members("a", "b", "c")
    first = {node: plan(members, leases, node, 64).release for node in "ab"}
    quick = "b" if slow == "a" else "a"
    for partition in first[quick]:
        del leases[partition]
    assert plan(members, leases, quick, 64) == Plan()
    assert plan(members, leases, slow, 64).release == first[slow]


def test_order_of_the_releases_does_not_change_who_is_to_take_what():
    leases = _owned(a=range(32), b=range(32, 48))  # b has released what exceeds its share, a has not yet
    members = _members("a", "b", "c", "d")
    assert plan(members, leases, "a", 64) == Plan(release=tuple(range(16, 32)))
    assert plan(members, leases, "c", 64) == Plan()
    assert plan(members, leases, "d", 64) == Plan(take=tuple(range(48, 64)))


NODES = "abcdef"


class ClusterMachine(RuleBasedStateMachine):
    """Nodes that come, go and act on their plans in pieces, in any order, on a table of leases as Redis keeps it."""

    @initialize(n_partitions=st.integers(1, 24))
    def set_up(self, n_partitions: int) -> None:
        self.n_partitions = n_partitions
        self.draining_by_node: dict[str, bool] = {}
        self.leases: dict[int, str] = {}
        self.n_released_by_choice = 0

    def members(self) -> list[Member]:
        return [Member(node, draining) for node, draining in self.draining_by_node.items()]

    def plan(self, node: str) -> Plan:
        return plan(self.members(), self.leases, node, self.n_partitions)

    def held(self, node: str) -> int:
        return list(self.leases.values()).count(node)

    def sharing(self) -> list[str]:
        return [node for node, draining in self.draining_by_node.items() if not draining]

    def act(self, node: str, data: st.DataObject) -> None:
        """Node carries out some part of its plan; a draining node that has nothing left leaves."""
        todo = self.plan(node)
        for partition in todo.take[: data.draw(st.integers(1, self.n_partitions))]:
            assert partition not in self.leases, "a partition to take is not free"
            self.leases[partition] = node
        released = todo.release[: data.draw(st.integers(1, self.n_partitions))]
        for partition in released:
            assert self.leases.pop(partition) == node
        if not self.draining_by_node[node]:
            self.n_released_by_choice += len(released)
        elif not self.held(node):
            del self.draining_by_node[node]

    @rule(node=st.sampled_from(NODES))
    def join(self, node):
        self.draining_by_node.setdefault(node, False)

    @rule(node=st.sampled_from(NODES))
    def crash_until_its_leases_ran_out(self, node):
        self.draining_by_node.pop(node, None)
        self.leases = {partition: owner for partition, owner in self.leases.items() if owner != node}

    @rule(node=st.sampled_from(NODES))
    def drain(self, node):
        if node in self.draining_by_node:
            self.draining_by_node[node] = True

    @precondition(lambda self: self.draining_by_node)
    @rule(data=st.data())
    def one_node_acts(self, data):
        self.act(data.draw(st.sampled_from(sorted(self.draining_by_node))), data)

    @precondition(lambda self: self.sharing())
    @rule(data=st.data())
    def nobody_comes_or_goes_for_a_while(self, data):
        needed = self.fewest_releases()
        self.n_released_by_choice = 0
        for _ in range(4 * len(NODES) * self.n_partitions):
            busy = [
                node for node in sorted(self.draining_by_node) if self.draining_by_node[node] or any(self.plan(node))
            ]
            if not busy:
                break
            self.act(data.draw(st.sampled_from(busy)), data)
        assert self.n_released_by_choice == needed
        assert self.leases.keys() == set(range(self.n_partitions)), "a partition has no owner"
        shares = [self.held(node) for node in self.draining_by_node]
        assert max(shares) - min(shares) <= 1
        assert not any(any(self.plan(node)) for node in self.draining_by_node), "a quiet cluster moves"

    def fewest_releases(self):
        """By trying every way to say which members get the larger share."""
        share, n_larger = divmod(self.n_partitions, len(self.sharing()))
        return min(
            sum(max(0, self.held(node) - share - (node in larger)) for node in self.sharing())
            for larger in combinations(self.sharing(), n_larger)
        )

    @invariant()
    def no_two_members_are_meant_to_take_the_same_partition(self):
        takers = Counter(partition for node in self.draining_by_node for partition in self.plan(node).take)
        assert all(n == 1 for n in takers.values())


TestCluster = ClusterMachine.TestCase
TestCluster.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
