"""The names in Redis of one index's coordination, and the scripts that work on them (`lua/KEYSPACE.md`)."""

from collections.abc import Sequence
from typing import Any

import msgspec

from channelindex.redis.link import Link


class Keys:
    """All keys share one hash tag: one script may use them all on a cluster too."""

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
        """The channel on which *node* is told that it has something to do."""
        return self.wake_prefix + node

    def lock(self, job: str) -> str:
        """The lock of a job that only one process may do at a time."""
        return f"{self.prefix}lock:{job}"


def run_script(link: Link, name: str, keys: Keys, arguments: object, now_ms: int | None = None) -> Any:
    """The reply of the script `lua/<name>.lua`. *now_ms* replaces Redis' clock, for tests.

    Raises:
        AuthenticationFailed, CoordinationUnavailable: see `connect`.
    """
    clock = "" if now_ms is None else now_ms
    return link.run(name, keys.all, msgspec.msgpack.encode(arguments), clock)
