"""Who should own which partition: a pure function that every node computes for itself from the same view."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple


class Member(NamedTuple):
    """A live node as the plan sees it. A draining node gives everything away and gets nothing."""

    node: str
    draining: bool = False


class Plan(NamedTuple):
    """What one node should do now: take these free partitions, drain and release those of its own. Both ascending."""

    take: tuple[int, ...] = ()
    release: tuple[int, ...] = ()


def plan(members: Iterable[Member], leases: Mapping[int, str], me: str, n_partitions: int) -> Plan:
    """What node *me* should take and release so that every partition gets an owner and the shares become fair.

    *leases* maps a partition to the node that holds it; one that is absent, or held by no member, is free.

    All members compute one common target from (members, leases). Each carries out its own part of it, in pieces and
    at its own pace, so that a view may show any part of it done. What holds nevertheless:

    * Fair: of n partitions and k members that do not drain, each is meant to own floor(n/k) or one more.
    * Fewest moves: a member gives up only what exceeds its share, and the larger shares go first to members that
      hold that much already. Nothing moves between members that are within their shares.
    * One taker: every free partition is meant for exactly one member, so members do not race for it.
    * Calm: carrying out any part of the target leaves the rest of it as it is. Members at or above the larger share
      rank equal (names decide), so giving up the excess changes nobody's share. Each taker's part is a run of
      the ascending list of all that must move, so a partition taken shortens the run of its taker alone.
    * Quiet: where everything is owned and the shares are fair, the plan is empty.
    """
    draining_by_node = {member.node: member.draining for member in members}
    held_by_node: dict[str, list[int]] = {node: [] for node in sorted(draining_by_node)}
    free: list[int] = []
    for partition in range(n_partitions):
        held_by_node.get(leases.get(partition, ""), free).append(partition)
    if me not in held_by_node:
        return Plan()

    n_held = {node: len(held) for node, held in held_by_node.items() if not draining_by_node[node]}
    share_by_node = _shares(n_held, n_partitions)
    excess_by_node = {node: held[share_by_node.get(node, 0) :] for node, held in held_by_node.items()}
    moving = iter(sorted(free + [partition for excess in excess_by_node.values() for partition in excess]))
    meant_for = {
        node: tuple(islice(moving, max(0, share - len(held_by_node[node])))) for node, share in share_by_node.items()
    }
    take = set(meant_for.get(me, ())).intersection(free)
    return Plan(tuple(sorted(take)), tuple(excess_by_node[me]))


def _shares(n_held_by_node: Mapping[str, int], n_partitions: int) -> dict[str, int]:
    """How many partitions each node is meant to own; they add up to *n_partitions* where there is any node."""
    if not n_held_by_node:
        return {}
    share, n_larger = divmod(n_partitions, len(n_held_by_node))
    ranked = sorted(n_held_by_node, key=lambda node: (n_held_by_node[node] <= share, node))
    return {node: share + (rank < n_larger) for rank, node in enumerate(ranked)}
