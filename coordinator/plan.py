"""Plans which node should own which partition. Pure; every node computes it for itself from the same view.

All members compute one common `Target` from (members, leases, homes). Each carries out its own part of it, in pieces
and at its own pace, so that a view may show any part of it done. What holds nevertheless:

* Owned: while any member shares, every free partition is meant for exactly one member, so none stays free and members
  do not race.
* Fair: a member of weight w among members of weights W that share n partitions is meant to own floor(n w / W) or one
  more, so every share is within one of the weighted fair share.
* Fewest moves: a member gives up only what exceeds its share, and the larger shares go first to members that hold that
  much already. Nothing moves between members that are within their shares.
* Home: where something has to move to a member anyway, it is what that member had before it went, as far as possible.
* Calm: carrying out any part of the target leaves the rest of it as it is. Members above the smaller share rank
  equal (what is owed and names decide), so giving up the excess changes nobody's share. What is meant for a member is
  an ascending run of a list that loses only what that member takes, so one who takes shortens its own run alone.
* Quiet: where everything is owned and the shares are fair, there is nothing to do.
* Cheap: O(partitions + members x log members).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple


class Member(NamedTuple):
    """A live node as the plan sees it. A draining node gives everything away and gets nothing."""

    node: str
    draining: bool = False
    weight: int = 1


class Plan(NamedTuple):
    """One node's part of the target: free partitions to take, own ones to drain and release. Both ascending."""

    take: tuple[int, ...] = ()
    release: tuple[int, ...] = ()


class Target(NamedTuple):
    """All moves until the shares are fair: by node, the partitions to take, and those to release first.

    `taken_by` has everything that moves, `released_by` the part of it that still has an owner. Both ascending.
    """

    taken_by: Mapping[str, Sequence[int]]
    released_by: Mapping[str, Sequence[int]]

    def plan_of(self, node: str) -> Plan:
        """The part of *node*; empty for one that is no member."""
        released = {partition for partitions in self.released_by.values() for partition in partitions}
        take = (partition for partition in self.taken_by.get(node, ()) if partition not in released)
        return Plan(tuple(take), tuple(self.released_by.get(node, ())))

    def n_moves(self) -> int:
        """Number of partitions that change their owner or get one."""
        return sum(map(len, self.taken_by.values()))

    def takers(self) -> Iterator[tuple[int, str]]:
        """Every partition that moves, and who is to take it."""
        return ((partition, node) for node, partitions in self.taken_by.items() for partition in partitions)


def target(
    members: Iterable[Member], leases: Mapping[int, str], n_partitions: int, homes: Mapping[int, str] | None = None
) -> Target:
    """Compute the moves that give every partition an owner and make the shares fair.

    *leases* maps a partition to the node that owns it; one that is absent, or owned by no member, is free. *homes* maps
    a partition to the node that had it before that node went, for as long as this is remembered.
    """
    assert n_partitions > 0
    by_name = {member.node: member for member in sorted(members)}
    assert all(member.weight > 0 for member in by_name.values())
    owned_by_node: dict[str, list[int]] = {node: [] for node in by_name}
    free: list[int] = []
    for partition in range(n_partitions):
        owned_by_node.get(leases.get(partition, ""), free).append(partition)
    sharing = [member for member in by_name.values() if not member.draining]
    share_by_node = _shares(sharing, owned_by_node, n_partitions)
    home_of = {p: node for p, node in (homes or {}).items() if node in share_by_node}

    released_by = {
        node: _excess(node, owned, len(owned) - share_by_node.get(node, 0), home_of)
        for node, owned in owned_by_node.items()
        if len(owned) > share_by_node.get(node, 0)
    }
    moving = sorted(free + [partition for excess in released_by.values() for partition in excess])
    missing = {node: max(0, share - len(owned_by_node[node])) for node, share in share_by_node.items()}
    taken_by = _takers(moving, missing, home_of)
    assert not sharing or sum(map(len, taken_by.values())) == len(moving), "no partition stays free"
    return Target(taken_by, released_by)


def _shares(sharing: Sequence[Member], owned_by_node: Mapping[str, list[int]], n_partitions: int) -> dict[str, int]:
    """Number of partitions that each node should own; the sum is *n_partitions* where there is any node."""
    total_weight = sum(member.weight for member in sharing)
    fair = {member.node: divmod(n_partitions * member.weight, total_weight) for member in sharing}
    n_larger = n_partitions - sum(share for share, _ in fair.values()) if fair else 0
    owed = [node for node, (_, rest) in fair.items() if rest]
    owed.sort(key=lambda node: (len(owned_by_node[node]) <= fair[node][0], -fair[node][1], node))
    larger = set(owed[:n_larger])
    share_by_node = {node: share + (node in larger) for node, (share, _) in fair.items()}
    assert not fair or sum(share_by_node.values()) == n_partitions
    return share_by_node


def _excess(node: str, owned: Sequence[int], n: int, home_of: Mapping[int, str]) -> list[int]:
    """The *n* partitions of *node* to release: those at home elsewhere first, then the last."""
    guests = [partition for partition in owned if home_of.get(partition, node) != node][:n]
    others = [partition for partition in owned if partition not in set(guests)] if guests else owned
    excess = sorted(guests + list(others[len(others) - (n - len(guests)) :]))
    assert len(excess) == n
    return excess


def _takers(moving: Sequence[int], missing: dict[str, int], home_of: Mapping[int, str]) -> dict[str, list[int]]:
    """Distribute *moving* by node, where *missing* is the number that each needs: homecomers first, then runs."""
    assert all(n >= 0 for n in missing.values())
    assert not missing or sum(missing.values()) == len(moving), "what moves is what is missing elsewhere"
    taken_by: dict[str, list[int]] = {}
    homeless = []
    for partition in moving:
        home = home_of.get(partition)
        if home is not None and missing[home] > 0:
            missing[home] -= 1
            taken_by.setdefault(home, []).append(partition)
        else:
            homeless.append(partition)
    rest = iter(homeless)
    for node, n in missing.items():
        run = list(islice(rest, n))
        if run:
            taken_by[node] = sorted(taken_by.get(node, []) + run)
    return taken_by
