"""One tick of a node in Redis: the request, the view that comes back, and the script that does it (`lua/tick.lua`)."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from channelindex.redis.link import Link
from coordinator.keys import Keys, run_script
from coordinator.link import Scale
from coordinator.plan import Member, Target, target

FORGET_AFTER_S = 3600.0
"""How long a dead node stays listed, so that `channelindex nodes` can say whom it misses."""
GRACE_S = 600.0
"""How long a node that went is remembered as the home of its partitions, unless it says otherwise."""


class Identity(msgspec.Struct, frozen=True):
    """Who asks for leases. `incarnation` is unique to one life of a node: a restart under the same name is another.

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
    """What a node wants beyond staying alive. `take` names partitions to have if they are free.

    `reason` says why it releases: rebalance, left or drained. `known_version` is of the view that it has.
    """

    release: Sequence[int] = ()
    take: Sequence[int] = ()
    leaving: bool = False
    status: str = ""
    reason: str = "rebalance"
    known_version: int = 0


class LiveMember(msgspec.Struct, frozen=True, array_like=True):
    """A node whose time has not run out, and the partitions it holds."""

    node: str
    weight: int
    draining: bool
    partitions: tuple[int, ...]


class View(msgspec.Struct, frozen=True, array_like=True):
    """The whole coordination as of one change. `homes` are partitions away from the live node that had them before;
    `asked` those that an operator wants to be released.
    """

    live: tuple[LiveMember, ...]
    homes: tuple[tuple[int, str], ...]
    asked: tuple[int, ...]

    @property
    def leases(self) -> dict[int, str]:
        """The node that holds each partition. A partition that is absent is free."""
        return {partition: member.node for member in self.live for partition in member.partitions}

    def target(self, n_partitions: int) -> Target:
        """What has to move so that every partition has an owner and the shares are fair."""
        members = [Member(member.node, member.draining, member.weight) for member in self.live]
        return target(members, self.leases, n_partitions, dict(self.homes))

    def held_by(self, node: str) -> tuple[int, ...]:
        """The partitions that *node* holds."""
        return next((member.partitions for member in self.live if member.node == node), ())


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What a tick did.

    `accepted` is false where another incarnation lives under our name: we hold nothing then, and `own_remaining_ms` is
    how long it lives yet. `joined`: we were no member before. `n_freed`: how many leases this tick ended, ours and
    others'. `next_end_ms`: how long the next other member lives unless it renews; -1: there is none.
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
        """The worker counts that an operator ordered for this life of the node."""
        return Scale(self.feed_workers, self.batch_writers) if self.feed_workers else None


_decode_answer = msgspec.msgpack.Decoder(Answer).decode
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
        self._keys = Keys(index)
        self._identity = identity
        self._clock = clock

    def tick(self, request: TickRequest) -> tuple[Answer, View | None]:
        """Do everything that a node has to do at once (see `lua/tick.lua`). No view: that of `known_version` holds.

        Safe to repeat.

        Raises:
            AuthenticationFailed, CoordinationUnavailable: see `connection.connect`.
        """
        reply, view = self._run("tick", self._arguments(request))
        return _decode_answer(reply), _decode_view(view) if view else None

    def wake(self, nodes: Iterable[str]) -> None:
        """Tell *nodes* that they have something to do; one that does not hear it finds out at its next tick.

        Raises:
            AuthenticationFailed, CoordinationUnavailable: see `connection.connect`.
        """
        self._run("order", ("wake", (), self._keys.wake_prefix, sorted(nodes)))

    def _run(self, script: str, arguments: object) -> Sequence[bytes]:
        now_ms = self._clock() if self._clock else None
        reply: Sequence[bytes] = run_script(self._redis, script, self._keys, arguments, now_ms)
        return reply

    def _arguments(self, request: TickRequest) -> tuple[object, ...]:
        me = self._identity
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
    """Give an operator's order (`lua/order.lua`) and wake the nodes *wake*; how much of it was not so before.

    Raises:
        AuthenticationFailed, CoordinationUnavailable: see `connection.connect`.
    """
    keys = Keys(index)
    n_changed: int = run_script(redis, "order", keys, (what, arguments, keys.wake_prefix, sorted(wake)))
    return n_changed
