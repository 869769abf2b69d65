"""One tick of a node in Redis: the request, the view that comes back, and the script that does it (`lua/tick.lua`)."""

from collections.abc import Sequence
from importlib.resources import files

import msgspec
import redis

from coordinator.connection import redis_errors
from coordinator.plan import Member

FORGET_AFTER_S = 3600.0
"""How long a dead node stays listed, so that `channelindex status` can say whom it misses."""

_SCRIPT = files("coordinator").joinpath("lua/tick.lua").read_text(encoding="utf-8")


class Keys:
    """The names in Redis of one index's coordination (`lua/KEYSPACE.md`). One hash tag: one script may use them all."""

    def __init__(self, index: str) -> None:
        prefix = f"ci:{index}:{{coordination}}:"
        self.members = prefix + "members"
        self.leases = prefix + "leases"
        self.status = prefix + "status"
        self.changed = prefix + "changed"


class Identity(msgspec.Struct, frozen=True):
    """Who asks for leases. `incarnation` is unique to one life of a node: a restart under the same name is another."""

    node: str
    incarnation: str
    ttl_s: float


class TickRequest(msgspec.Struct, frozen=True):
    """What a node wants beyond staying alive. `take` names partitions to have if they are free."""

    release: Sequence[int] = ()
    take: Sequence[int] = ()
    draining: bool = False
    status: str = ""


class LiveMember(msgspec.Struct, frozen=True, array_like=True):
    """A node whose time has not run out, and the partitions it holds. `remaining_ms` is how long it lives unrenewed."""

    node: str
    incarnation: str
    remaining_ms: int
    draining: bool
    partitions: tuple[int, ...]


class View(msgspec.Struct, frozen=True, array_like=True):
    """The whole coordination at one moment of Redis' clock, as seen by the one who ticked.

    `accepted` is false where another incarnation lives under our name: we are no member and hold nothing.
    `joined` is true where we were no member before this tick.
    """

    accepted: bool
    joined: bool
    live: tuple[LiveMember, ...]

    @property
    def members(self) -> list[Member]:
        """The live members, for `plan`."""
        return [Member(member.node, member.draining) for member in self.live]

    @property
    def leases(self) -> dict[int, str]:
        """The node that holds each partition, for `plan`. A partition that is absent is free."""
        return {partition: member.node for member in self.live for partition in member.partitions}

    def held_by(self, identity: Identity) -> tuple[int, ...]:
        """The partitions that *identity* holds: its node under its incarnation."""
        for member in self.live:
            if (member.node, member.incarnation) == (identity.node, identity.incarnation):
                return member.partitions
        return ()


_decode_view = msgspec.msgpack.Decoder(View).decode


class Ticker:
    """Runs the script for one node. The client is shared with whoever made it, who also closes it."""

    def __init__(self, client: redis.Redis, url: str, index: str, identity: Identity) -> None:
        self._client = client
        self._url = url
        self._keys = Keys(index)
        self._identity = identity

    def tick(self, request: TickRequest, now_ms: int | None = None) -> View:
        """Do everything that a node has to do at once (see `lua/tick.lua`) and return what is true afterwards.

        Safe to repeat. *now_ms* replaces Redis' clock, for tests. The script is sent whole each time: it is small
        beside what a tick is for, and a Redis that lost its script cache cannot surprise us.

        Raises:
            AuthenticationFailed, CoordinationUnavailable: see `redis_errors`.
        """
        keys = self._keys
        clock = "" if now_ms is None else now_ms
        with redis_errors(self._url):
            reply = self._client.eval(
                _SCRIPT, 3, keys.members, keys.leases, keys.status, self._arguments(request), clock
            )
        return _decode_view(reply)

    def _arguments(self, request: TickRequest) -> bytes:
        me = self._identity
        return msgspec.msgpack.encode(
            (
                me.node,
                me.incarnation,
                round(me.ttl_s * 1000),
                round(FORGET_AFTER_S * 1000),
                request.draining,
                request.release,
                request.take,
                request.status,
                self._keys.changed,
            )
        )
