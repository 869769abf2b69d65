"""A read-only look at the whole coordination, for people: who lives, who owns what, what nobody owns."""

from typing import NamedTuple

import msgspec
import redis

from coordinator.connection import redis_errors
from coordinator.tick import Keys


class MemberState(NamedTuple):
    """A node that lives, or that died less than an hour ago. `status` is the JSON it told last, "" for none."""

    node: str
    alive: bool
    draining: bool
    joined_s: float
    silent_s: float
    n_partitions: int
    status: str


class PartitionState(NamedTuple):
    """Who holds a partition, "" for nobody, and for how many seconds that has been so; None where that is not known."""

    owner: str
    since_s: float | None


class ClusterState(NamedTuple):
    """The members by name, and all partitions in order."""

    members: tuple[MemberState, ...]
    partitions: tuple[PartitionState, ...]

    @property
    def missing(self) -> tuple[int, ...]:
        """The partitions that nobody owns."""
        return tuple(number for number, partition in enumerate(self.partitions) if not partition.owner)


class _Member(msgspec.Struct, array_like=True):
    incarnation: str
    renewed_ms: int
    ttl_ms: int
    draining: bool
    joined_ms: int


class _Lease(msgspec.Struct, array_like=True):
    node: str
    since_ms: int


def read_cluster(client: redis.Redis, url: str, index: str, n_partitions: int) -> ClusterState:
    """The coordination of *index* at one moment. Changes nothing, also not what has run out.

    Raises:
        AuthenticationFailed, CoordinationUnavailable: see `redis_errors`.
    """
    keys = Keys(index)
    with redis_errors(url), client.pipeline(transaction=True) as pipeline:
        pipeline.time()
        for key in (keys.members, keys.leases, keys.status):
            pipeline.hgetall(key)
        (seconds, microseconds), raw_members, raw_leases, raw_status = pipeline.execute()
    now_ms = seconds * 1000 + microseconds // 1000
    members = {name.decode(): msgspec.msgpack.decode(raw, type=_Member) for name, raw in raw_members.items()}
    leases = {int(number): msgspec.msgpack.decode(raw, type=_Lease) for number, raw in raw_leases.items()}
    partitions = tuple(_partition_state(leases.get(number), members, now_ms) for number in range(n_partitions))
    owners = [partition.owner for partition in partitions]
    return ClusterState(
        tuple(
            MemberState(
                node=name,
                alive=_is_live(member, now_ms),
                draining=member.draining,
                joined_s=(now_ms - member.joined_ms) / 1000,
                silent_s=max(0, now_ms - member.renewed_ms) / 1000,
                n_partitions=owners.count(name),
                status=raw_status.get(name.encode(), b"").decode(),
            )
            for name, member in sorted(members.items())
        ),
        partitions,
    )


def _partition_state(lease: _Lease | None, members: dict[str, _Member], now_ms: int) -> PartitionState:
    if lease is None:
        return PartitionState("", None)
    age_s = (now_ms - lease.since_ms) / 1000
    if not lease.node:
        return PartitionState("", age_s)
    owner = members.get(lease.node)
    if owner is None:
        return PartitionState("", None)
    if not _is_live(owner, now_ms):
        return PartitionState("", (now_ms - owner.renewed_ms - owner.ttl_ms) / 1000)
    return PartitionState(lease.node, age_s)


def _is_live(member: _Member, now_ms: int) -> bool:
    return now_ms - member.renewed_ms < member.ttl_ms
