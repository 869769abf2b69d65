"""Runs one tick of a node in Redis (`lua/tick.lua`): defines the request, the answer, and the view that it carries."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from channelindex.redis.link import Link
from coordinator.keeper_link import Scale
from coordinator.lease_redis import CoordinationKeys, run_script
from coordinator.plan import Member, Target, target

FORGET_AFTER_S = 3600.0
"""Time for which a dead node stays listed, so that `channelindex nodes` can show it."""
GRACE_S = 600.0
"""Default time for which a node that went is remembered as the home of its partitions."""

RELEASE_REASONS = ("rebalance", "left", "drained")


class Identity(msgspec.Struct, frozen=True):
    """Identifies a node to Redis. `incarnation` is unique to one run of it: a restart under the same name is another.

    `predecessor` is the incarnation before, where this one knows that it is dead: it gets its leases at once.
    """

    node: str
    incarnation: str
    ttl_s: float
    predecessor: str = ""
    weight: int = 1
    zone: str = ""
    grace_s: float = GRACE_S


class TickRequest(msgspec.Struct, frozen=True):
    """A node's requests beyond the renewal. `take`: partitions to take if they are free.

    `reason` of the releases: one of `RELEASE_REASONS`. `known_version` is that of the newest view the node has.
    """

    release: Sequence[int] = ()
    take: Sequence[int] = ()
    leaving: bool = False
    status: str = ""
    reason: str = "rebalance"
    known_version: int = 0


class LiveMember(msgspec.Struct, frozen=True, array_like=True):
    """A node whose membership has not expired, and the partitions that it owns."""

    node: str
    weight: int
    draining: bool
    partitions: tuple[int, ...]


class View(msgspec.Struct, frozen=True, array_like=True):
    """The whole coordination as of one change. `homes` are partitions away from the live node that had them before;
    `asked` those whose release an operator ordered.
    """

    live: tuple[LiveMember, ...]
    homes: tuple[tuple[int, str], ...]
    asked: tuple[int, ...]

    @property
    def leases(self) -> dict[int, str]:
        """The owner of each partition. A partition that is absent is free."""
        return {partition: member.node for member in self.live for partition in member.partitions}

    def target(self, n_partitions: int) -> Target:
        """The moves that give every partition an owner and make the shares fair."""
        members = [Member(member.node, member.draining, member.weight) for member in self.live]
        return target(members, self.leases, n_partitions, dict(self.homes))

    def owned_by(self, node: str) -> tuple[int, ...]:
        """The partitions that *node* owns."""
        return next((member.partitions for member in self.live if member.node == node), ())


class TickAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a tick.

    `accepted` is false where another incarnation is alive under our name: we own nothing then, and `own_remaining_ms`
    is its remaining time. `joined`: we were no member before. `n_freed`: leases that this tick ended, ours and others'.
    `next_end_ms`: time until the next other member expires unless it renews; -1 where there is none.
    """

    accepted: bool
    joined: bool
    n_freed: int
    version: int
    own_remaining_ms: int
    next_end_ms: int
    feed_workers: int
    batch_writers: int

    @property
    def scale(self) -> Scale | None:
        """The worker counts that an operator ordered for this run of the node."""
        return Scale(self.feed_workers, self.batch_writers) if self.feed_workers else None


_decode_answer = msgspec.msgpack.Decoder(TickAnswer).decode
_decode_view = msgspec.msgpack.Decoder(View).decode


class Ticker:
    """Runs the scripts for one node. *redis* is shared with whoever made it, who also closes it.

    *clock* gives the time in ms instead of Redis, for simulations.
    """

    def __init__(
        self,
        redis: Link,
        index: str,
        identity: Identity,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self._redis = redis
        self._keys = CoordinationKeys(index)
        self._identity = identity
        self._clock = clock

    def tick(self, request: TickRequest) -> tuple[TickAnswer, View | None]:
        """Renew, release and take in one call (see `lua/tick.lua`). The view is None where `known_version` is current.

        Safe to repeat.

        Raises:
            AuthenticationFailed, CoordinationUnavailable: see `lease_redis.connect`.
        """
        assert set(request.take).isdisjoint(request.release), "what is released is not taken again by the same tick"
        assert request.reason in RELEASE_REASONS
        reply, view = self._run("tick", self._arguments(request))
        return _decode_answer(reply), _decode_view(view) if view else None

    def wake(self, nodes: Iterable[str]) -> None:
        """Wake *nodes*, which have something to do; one that misses it finds out at its next tick.

        Raises:
            AuthenticationFailed, CoordinationUnavailable: see `lease_redis.connect`.
        """
        self._run("order", ("wake", (), self._keys.wake_prefix, sorted(nodes)))

    def _run(self, script: str, arguments: object) -> Sequence[bytes]:
        now_ms = self._clock() if self._clock else None
        reply: Sequence[bytes] = run_script(self._redis, script, self._keys, arguments, now_ms)
        return reply

    def _arguments(self, request: TickRequest) -> tuple[object, ...]:
        me = self._identity
        assert me.ttl_s > 0
        assert me.weight > 0
        assert me.incarnation != me.predecessor, "no run is the one before itself"
        return (
            me.node,
            me.incarnation,
            me.predecessor,
            round(me.ttl_s * 1000),
            me.weight,
            me.zone,
            request.leaving,
            request.release,
            request.reason,
            request.take,
            request.status,
            request.known_version,
            round(me.grace_s * 1000),
            round(FORGET_AFTER_S * 1000),
        )


def order(redis: Link, index: str, what: str, arguments: Sequence[object], wake: Iterable[str]) -> int:
    """Send an operator's order (`lua/order.lua`) and wake the nodes *wake*; return how many *arguments* it changed.

    Raises:
        AuthenticationFailed, CoordinationUnavailable: see `lease_redis.connect`.
    """
    keys = CoordinationKeys(index)
    n_changed: int = run_script(redis, "order", keys, (what, arguments, keys.wake_prefix, sorted(wake)))
    return n_changed
