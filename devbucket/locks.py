"""The locks on documents of a vbucket. No I/O."""

from collections.abc import Callable
from typing import NamedTuple


class Lock(NamedTuple):
    """Who holds *cas* may change the document, until the lock expires."""

    cas: int
    until: float


class Locks:
    """At most one lock per key; one that has expired is none."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock_by_key: dict[bytes, Lock] = {}

    def of(self, key: bytes) -> Lock | None:
        """Return the lock on *key*, if there is one."""
        if not self._lock_by_key:
            return None
        lock = self._lock_by_key.get(key)
        if lock is not None and lock.until <= self._clock():
            del self._lock_by_key[key]
            return None
        return lock

    def take(self, key: bytes, cas: int, for_s: float) -> None:
        """Lock *key*, which is free."""
        assert self.of(key) is None, "at most one lock per key"
        assert for_s > 0
        self._lock_by_key[key] = Lock(cas, self._clock() + for_s)

    def release(self, key: bytes) -> None:
        """Let *key* be free; it may be already."""
        self._lock_by_key.pop(key, None)
