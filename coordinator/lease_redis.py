"""Connects to the Redis that holds the leases, names the keys of one index in it, and runs the scripts on them.

`lua/KEYSPACE.md` describes the keys.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import msgspec

from channelindex.errors import CoordinationUnavailable
from channelindex.redis.connect import open_redis
from channelindex.redis.errors import Purpose
from channelindex.redis.link import Link
from channelindex.redis.scripts import Scripts

SETTING = "coordination.redis"

_LEASES = Purpose(
    SETTING,
    Scripts(files("coordinator").joinpath("lua")),
    unavailable=CoordinationUnavailable,
    lost=CoordinationUnavailable,
    too_large=CoordinationUnavailable,
    corrupt=CoordinationUnavailable,
    broken=CoordinationUnavailable,
)
"""Nothing of it is needed to keep the index right, so whatever fails is worth another attempt."""


def connect(url: str, timeout_s: float) -> Link:
    """Make a link to the Redis at *url*, which connects when first used. No reply may take longer than *timeout_s*.

    Its requests raise AuthenticationFailed, or CoordinationUnavailable: the request may have taken effect.

    Raises:
        ConfigInvalid: *url* is not one of a Redis.
    """
    return open_redis(url, _LEASES, timeout_s=timeout_s)


class CoordinationKeys:
    """Names the keys of one index. All share one hash tag, so that one script may use them all on a cluster, too."""

    def __init__(self, index: str) -> None:
        self.prefix = f"ci:{index}:{{coordination}}:"
        self.members = self.prefix + "members"
        self.ends = self.prefix + "ends"
        self.leases = self.prefix + "leases"
        self.status = self.prefix + "status"
        self.state = self.prefix + "state"
        self.events = self.prefix + "events"
        self.drained = self.prefix + "drained"
        self.asked = self.prefix + "asked"
        self.scale = self.prefix + "scale"
        self.wake_prefix = self.prefix + "wake:"

    @property
    def all(self) -> Sequence[str]:
        """The keys as every script gets them."""
        return (
            self.members,
            self.ends,
            self.leases,
            self.status,
            self.state,
            self.events,
            self.drained,
            self.asked,
            self.scale,
        )

    def wake(self, node: str) -> str:
        """The channel on which peers wake *node*."""
        return self.wake_prefix + node

    def lock(self, job: str) -> str:
        """The lock of a job that only one process may do at a time."""
        return f"{self.prefix}lock:{job}"


def run_script(link: Link, name: str, keys: CoordinationKeys, arguments: object, now_ms: int | None = None) -> Any:
    """Run the script `lua/<name>.lua` and return its reply. *now_ms* replaces Redis' clock, for tests.

    Raises:
        AuthenticationFailed, CoordinationUnavailable: see `connect`.
    """
    clock = "" if now_ms is None else now_ms
    return link.run(name, keys.all, msgspec.msgpack.encode(arguments), clock)
