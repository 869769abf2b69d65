"""Reads the whole coordination for people: live nodes, owners, partitions without one, events. Changes nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from channelindex.redis.link import Link
from coordinator.lease_redis import CoordinationKeys, run_script
from coordinator.plan import Member, Target, target

MAX_EVENTS = 500
"""Events that Redis keeps (`lua/shared.lua`)."""


class MemberState(NamedTuple):
    """A node that is alive, or that died less than an hour ago. `status` is the JSON that it reported last, or "".

    `draining`: it releases its partitions and takes none, because it stops or an operator ordered it (`drained`).
    """

    node: str
    alive: bool
    draining: bool
    joined_s: float
    silent_s: float
    n_partitions: int
    status: str
    incarnation: str = ""
    drained: bool = False
    weight: int = 1
    zone: str = ""


class PartitionState(NamedTuple):
    """The owner of a partition, "" for none, and the seconds since then; None where they are not known.

    `last` owned it before, and lost it for `reason`: rebalance, left, drained, died or asked. `asked`: an operator
    ordered its release.
    """

    owner: str
    since_s: float | None
    last: str = ""
    reason: str = ""
    home: str = ""
    asked: bool = False


class Moved(msgspec.Struct, frozen=True, array_like=True):
    """A partition that was released or taken, its owner before, and the reason of its loss; "" where unknown."""

    partition: int
    before: str
    reason: str


class Event(msgspec.Struct, frozen=True, array_like=True):
    """An event in the cluster. `at_ms` is Redis' time, in ms since 1970.

    `kind` is one of node.joined, node.restarted, node.changed, node.leaving, node.left, node.died, node.drained,
    node.undrained, node.scaled, lease.taken, lease.released.
    """

    at_ms: int
    kind: str
    node: str
    reason: str
    partitions: tuple[Moved, ...]


class ClusterState(NamedTuple):
    """The members by name, all partitions in order, and the newest events first."""

    members: tuple[MemberState, ...]
    partitions: tuple[PartitionState, ...]
    events: tuple[Event, ...] = ()

    @property
    def missing(self) -> tuple[int, ...]:
        """The partitions without an owner."""
        return tuple(number for number, partition in enumerate(self.partitions) if not partition.owner)

    def target(self) -> Target:
        """The moves that make the shares fair."""
        members = [Member(member.node, member.draining, member.weight) for member in self.members if member.alive]
        leases = {number: state.owner for number, state in enumerate(self.partitions) if state.owner}
        homes = {number: state.home for number, state in enumerate(self.partitions) if state.home}
        return target(members, leases, len(self.partitions), homes)


class _StoredMember(msgspec.Struct, array_like=True):
    incarnation: str
    ttl_ms: int
    leaving: bool
    joined_ms: int
    weight: int
    zone: str
    ended_ms: int


class _StoredLease(msgspec.Struct, array_like=True):
    node: str
    since_ms: int
    last: str
    reason: str
    home: str
    home_until_ms: int


_decode_member = msgspec.msgpack.Decoder(_StoredMember).decode
_decode_lease = msgspec.msgpack.Decoder(_StoredLease).decode
_decode_event = msgspec.msgpack.Decoder(Event).decode


def read_cluster(redis: Link, index: str, n_partitions: int, n_events: int = 0) -> ClusterState:
    """Read the coordination of *index* at one moment, with the newest *n_events*. Changes nothing, not even expiries.

    Raises:
        AuthenticationFailed, CoordinationUnavailable: see `lease_redis.connect`.
    """
    assert n_partitions > 0
    assert 0 <= n_events <= MAX_EVENTS
    reply = run_script(redis, "look", CoordinationKeys(index), (n_events,))
    now_ms = int(reply[0])
    raw_members, raw_ends, raw_leases, raw_status = (_pairs(fields) for fields in reply[1:5])
    drained = {name.decode() for name in reply[5]}
    asked = {int(partition) for partition in _pairs(reply[6])}
    members = {name.decode(): _decode_member(raw) for name, raw in raw_members.items()}
    end_ms_by_name = {name.decode(): float(end) for name, end in raw_ends.items()}
    live = {name for name, end_ms in end_ms_by_name.items() if end_ms > now_ms and name in members}
    leases = {int(number): _decode_lease(raw) for number, raw in raw_leases.items()}

    def end_of(name: str) -> float | None:
        return end_ms_by_name.get(name) or members[name].ended_ms if name in members else None

    def partition_state(number: int) -> PartitionState:
        lease = leases.get(number)
        if lease is None:
            return PartitionState("", None, asked=number in asked)
        home = lease.home if lease.home_until_ms > now_ms else ""
        if not lease.node or lease.node in live:
            since_s = (now_ms - lease.since_ms) / 1000
            return PartitionState(lease.node, since_s, lease.last, lease.reason, home, number in asked)
        ended_ms = end_of(lease.node)
        since = None if ended_ms is None else (now_ms - ended_ms) / 1000
        return PartitionState("", since, lease.node, "died", home, number in asked)

    partitions = tuple(partition_state(number) for number in range(n_partitions))
    n_owned = Counter(partition.owner for partition in partitions)

    def member_state(name: str, member: _StoredMember) -> MemberState:
        renewed_ms = (end_of(name) or now_ms) - member.ttl_ms
        return MemberState(
            node=name,
            alive=name in live,
            draining=member.leaving or name in drained,
            joined_s=(now_ms - member.joined_ms) / 1000,
            silent_s=max(0, now_ms - renewed_ms) / 1000,
            n_partitions=n_owned[name],
            status=raw_status.get(name.encode(), b"").decode(),
            incarnation=member.incarnation,
            drained=name in drained,
            weight=member.weight,
            zone=member.zone,
        )

    return ClusterState(
        tuple(member_state(name, member) for name, member in sorted(members.items())),
        partitions,
        tuple(_decode_event(raw) for raw in reply[7]),
    )


def _pairs(fields: Sequence[Any]) -> Mapping[bytes, bytes]:
    """A Redis hash or sorted set from the reply of a script, in which each field is followed by its value."""
    return dict(zip(fields[::2], fields[1::2], strict=True))
