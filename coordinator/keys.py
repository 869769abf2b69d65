"""The names in Redis of one index's coordination, and the scripts that work on them (`lua/KEYSPACE.md`)."""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import msgspec
import redis

from coordinator.connection import RedisClient, redis_errors


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


class Script:
    """One of the scripts in `lua/`, run by its digest; sent whole where Redis does not know it (any more)."""

    def __init__(self, name: str) -> None:
        folder = files("coordinator").joinpath("lua")
        parts = (folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in ("shared", name))
        self.source = "\n".join(parts)
        self._sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: RedisClient, url: str, keys: Keys, arguments: object, now_ms: int | None = None) -> Any:
        """The reply. *now_ms* replaces Redis' clock, for tests.

        Raises:
            AuthenticationFailed, CoordinationUnavailable: see `redis_errors`.
        """
        clock = "" if now_ms is None else now_ms
        keys_and_arguments: tuple[Any, ...] = (*keys.all, msgspec.msgpack.encode(arguments), clock)
        with redis_errors(url):
            try:
                return client.evalsha(self._sha, len(keys.all), *keys_and_arguments)
            except redis.exceptions.NoScriptError:
                return client.eval(self.source, len(keys.all), *keys_and_arguments)
