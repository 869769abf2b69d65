"""The plan gives every partition an owner, shares them fairly, moves as few as it must and then keeps still."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.plan import Member, Plan, Target, target


def _members(*nodes: str) -> list[Member]:
    return [Member(node) for node in nodes]


def _owned(**partitions_by_node: range) -> dict[int, str]:
    return {partition: node for node, partitions in partitions_by_node.items() for partition in partitions}


def _plan(members: list[Member], leases: dict[int, str], node: str, n_partitions: int) -> Plan:
    return target(members, leases, n_partitions).plan_of(node)


def test_single_node_takes_everything():
    assert _plan(_members("a"), {}, "a", 8) == Plan(take=tuple(range(8)))


def test_members_take_disjoint_parts_of_what_is_free():
    takes = [_plan(_members("a", "b", "c"), {}, node, 8).take for node in "abc"]
    assert takes == [(0, 1, 2), (3, 4, 5), (6, 7)]


def test_newcomer_gets_its_share_from_the_owner_and_takes_nothing_before_it_is_free():
    leases = _owned(a=range(8))
    assert _plan(_members("a", "b"), leases, "a", 8) == Plan(release=(4, 5, 6, 7))
    assert _plan(_members("a", "b"), leases, "b", 8) == Plan()


def test_partition_of_a_node_that_is_no_member_is_free():
    assert _plan(_members("a"), _owned(a=range(4), dead=range(4, 8)), "a", 8) == Plan(take=(4, 5, 6, 7))


def test_draining_node_releases_everything_and_takes_nothing():
    members = [Member("a", draining=True), Member("b")]
    leases = _owned(a=range(3), b=range(3, 6))
    assert _plan(members, leases, "a", 8) == Plan(release=(0, 1, 2))
    assert _plan(members, leases, "b", 8) == Plan(take=(6, 7))


def test_shares_that_differ_by_one_are_left_alone_whoever_has_the_larger():
    leases = _owned(a=range(2), b=range(2, 5))
    assert [_plan(_members("a", "b"), leases, node, 5) for node in "ab"] == [Plan(), Plan()]


def test_node_that_is_no_member_does_nothing():
    assert _plan(_members("a"), _owned(a=range(4)), "b", 8) == Plan()


def test_more_nodes_than_partitions_leave_some_nodes_without():
    shares = [len(_plan(_members("a", "b", "c"), {}, node, 2).take) for node in "abc"]
    assert shares == [1, 1, 0]


def test_order_of_the_members_does_not_matter():
    leases = _owned(a=range(6), b=range(6, 7))
    assert _plan(_members("a", "b", "c"), leases, "a", 9) == _plan(_members("c", "b", "a"), leases, "a", 9)


@pytest.mark.parametrize("slow", ["a", "b"])
def test_pace_of_the_releases_does_not_change_who_has_to_release_what(slow):
    leases = _owned(a=range(32), b=range(32, 64))
    members = _members("a", "b", "c")
    first = {node: _plan(members, leases, node, 64).release for node in "ab"}
    quick = "b" if slow == "a" else "a"
    for partition in first[quick]:
        del leases[partition]
    assert _plan(members, leases, quick, 64) == Plan()
    assert _plan(members, leases, slow, 64).release == first[slow]


def test_order_of_the_releases_does_not_change_who_is_to_take_what():
    leases = _owned(a=range(32), b=range(32, 48))  # b has released what exceeds its share, a has not yet
    members = _members("a", "b", "c", "d")
    assert _plan(members, leases, "a", 64) == Plan(release=tuple(range(16, 32)))
    assert _plan(members, leases, "c", 64) == Plan()
    assert _plan(members, leases, "d", 64) == Plan(take=tuple(range(48, 64)))


def test_shares_follow_the_weights():
    members = [Member("a", weight=1), Member("b", weight=2), Member("c", weight=5)]
    assert [len(_plan(members, {}, node, 64).take) for node in "abc"] == [8, 16, 40]


def test_no_share_is_further_than_one_from_the_weighted_fair_share():
    members = [Member("a", weight=3), Member("b", weight=7), Member("c", weight=7)]
    shares = [len(_plan(members, {}, node, 10).take) for node in "abc"]
    assert sum(shares) == 10
    assert all(abs(share - 10 * weight / 17) < 1 for share, weight in zip(shares, (3, 7, 7), strict=True))


def test_node_that_comes_back_gets_what_it_had():
    home = dict.fromkeys((1, 4, 6), "c")
    leases = _owned(a=range(4), b=range(4, 8))
    found = target(_members("a", "b", "c"), leases, 8, home)
    assert found.released_by == {"a": [1], "b": [4]}
    assert found.taken_by == {"c": [1, 4]}


def test_homes_move_nothing_that_need_not_move():
    leases = _owned(a=range(4), b=range(4, 8))
    assert target(_members("a", "b"), leases, 8, dict.fromkeys(range(4), "b")).n_moves() == 0


def test_rolling_restart_moves_only_what_the_restarting_node_had_and_back():
    nodes, n_partitions = list("abcde"), 64
    leases = _settle([Member(node) for node in nodes], {}, {}, n_partitions)
    for node in nodes:
        before = leases
        homes = {partition: node for partition, owner in before.items() if owner == node}
        gone = {partition: owner for partition, owner in before.items() if owner != node}
        without = _settle(_members(*(other for other in nodes if other != node)), gone, homes, n_partitions)
        assert {partition for partition in before if without[partition] != before[partition]} == homes.keys()
        leases = _settle(_members(*nodes), without, homes, n_partitions)
        moved = {partition for partition in before if leases[partition] != before[partition]}
        assert moved <= homes.keys()
        assert len(moved) <= 1, "only the one partition by which shares may differ stays away"


def _settle(members, leases, homes, n_partitions):
    """All leases once everybody has done all of its plan."""
    found = target(members, leases, n_partitions, homes)
    return {**leases, **{partition: node for node, taken in found.taken_by.items() for partition in taken}}


NODES = "abcdef"


class ClusterMachine(RuleBasedStateMachine):
    """Nodes of any weight that come, go and act on their plans in pieces, in any order.

    They act on a table of leases as Redis keeps it, with the homes that it remembers.
    """

    @initialize(n_partitions=st.integers(1, 24))
    def set_up(self, n_partitions: int) -> None:
        self.n_partitions = n_partitions
        self.members: dict[str, Member] = {}
        self.leases: dict[int, str] = {}
        self.homes: dict[int, str] = {}
        self.n_released_by_choice = 0

    def target(self) -> Target:
        return target(self.members.values(), self.leases, self.n_partitions, self.homes)

    def plan(self, node: str) -> Plan:
        return target(self.members.values(), self.leases, self.n_partitions, self.homes).plan_of(node)

    def held(self, node: str) -> int:
        return list(self.leases.values()).count(node)

    def sharing(self) -> list[Member]:
        return [member for member in self.members.values() if not member.draining]

    def act(self, node: str, data: st.DataObject) -> None:
        """Node carries out some part of its plan; a draining node that has nothing left leaves."""
        todo = self.plan(node)
        for partition in todo.take[: data.draw(st.integers(1, self.n_partitions))]:
            assert partition not in self.leases, "a partition to take is not free"
            self.leases[partition] = node
            if self.homes.get(partition) == node:
                del self.homes[partition]
        released = data.draw(st.permutations(todo.release))[: data.draw(st.integers(1, self.n_partitions))]
        for partition in released:
            assert self.leases.pop(partition) == node
        if not self.members[node].draining:
            self.n_released_by_choice += len(released)
            return
        self.homes |= {partition: node for partition in released if partition not in self.homes}
        if not self.held(node):
            del self.members[node]

    @rule(node=st.sampled_from(NODES), weight=st.integers(1, 5))
    def join(self, node, weight):
        self.members.setdefault(node, Member(node, weight=weight))

    @rule(node=st.sampled_from(NODES))
    def crash_until_its_leases_ran_out(self, node):
        if self.members.pop(node, None):
            lost = {partition: owner for partition, owner in self.leases.items() if owner == node}
            self.homes = {**lost, **self.homes}
            self.leases = {partition: owner for partition, owner in self.leases.items() if owner != node}

    @rule(node=st.sampled_from(NODES))
    def drain(self, node):
        if node in self.members:
            self.members[node] = self.members[node]._replace(draining=True)

    @rule(node=st.sampled_from(NODES), weight=st.integers(1, 5))
    def change_weight(self, node, weight):
        if node in self.members:
            self.members[node] = self.members[node]._replace(weight=weight)

    @rule()
    def grace_time_ends(self):
        self.homes = {}

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def one_node_acts(self, data):
        self.act(data.draw(st.sampled_from(sorted(self.members))), data)

    @precondition(lambda self: self.sharing())
    @rule(data=st.data())
    def nobody_comes_or_goes_for_a_while(self, data):
        needed, before = self.fewest_releases(), self.target()
        self.n_released_by_choice = 0
        for _ in range(4 * len(NODES) * self.n_partitions):
            busy = [node for node in sorted(self.members) if self.members[node].draining or any(self.plan(node))]
            if not busy:
                break
            self.act(data.draw(st.sampled_from(busy)), data)
        assert self.n_released_by_choice == needed
        assert self.leases.keys() == set(range(self.n_partitions)), "a partition has no owner"
        total_weight = sum(member.weight for member in self.sharing())
        for member in self.sharing():
            assert abs(self.held(member.node) - self.n_partitions * member.weight / total_weight) < 1
        assert self.target().n_moves() == 0, "a quiet cluster moves"
        for node, partitions in before.taken_by.items():
            assert all(self.leases[partition] == node for partition in partitions), "the target changed on the way"

    def fewest_releases(self):
        """By trying every way to say which members get the larger share."""
        total_weight = sum(member.weight for member in self.sharing())
        fair = {m.node: divmod(self.n_partitions * m.weight, total_weight) for m in self.sharing()}
        n_larger = self.n_partitions - sum(share for share, _ in fair.values())
        return min(
            sum(max(0, self.held(node) - share - (node in larger)) for node, (share, _) in fair.items())
            for larger in combinations([node for node, (_, rest) in fair.items() if rest], n_larger)
        )

    @invariant()
    def nobody_is_meant_for_what_another_is(self):
        found = self.target()
        takers = Counter(partition for taken in found.taken_by.values() for partition in taken)
        assert all(n == 1 for n in takers.values())
        if self.sharing():
            free = set(range(self.n_partitions)).difference(self.leases)
            assert free <= takers.keys(), "a partition is free and meant for nobody"
        for node, released in found.released_by.items():
            assert all(self.leases[partition] == node for partition in released)


TestCluster = ClusterMachine.TestCase
TestCluster.settings = settings(stateful_step_count=30)
