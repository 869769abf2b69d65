"""A bucket's connection of which chosen requests fail, in whole or in part: below what a store's operations promise."""

import random
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

from channelindex.errors import OutcomeUnknown, StoreUnavailable
from channelindex.stores.couchbase.link import Link, Stored

_T = TypeVar("_T", set[str], dict[str, int])

FAULTS = ("before", "after", "late", "twice")


class FaultyLink(Link):
    """Requests fail "before" or "after" they took effect, are "late", or happen "twice", with the second one's reply.

    A request for several documents fails for a random part of them; the others' part is done. `next_faults` are used up
    in order: each strikes at random one of the next ten requests. "none" lets one pass. What is late waits in `late`.
    With `every` = (n, fault), every n-th request fails so.
    """

    def __init__(self, link: Link, seed: int = 0) -> None:
        self._real = link
        self._random = random.Random(seed)
        self._calls_left = 0
        self.next_faults: list[str] = []
        self.every: tuple[int, str] | None = None
        self.late: list[Callable[[], Any]] = []
        self.n_calls = 0
        self.n_faults = 0

    def get(self, keys):
        """A read fails or does not."""
        if keys and self._next_fault() not in {"none", "twice"}:
            self.n_faults += 1
            raise StoreUnavailable("get: injected")
        return self._real.get(keys)

    def append(self, values: Mapping[str, bytes]) -> set[str]:
        return self._faulty(self._real.append, values, set())

    def insert(self, values: Mapping[str, bytes]) -> set[str]:
        return self._faulty(self._real.insert, values, set())

    def replace(self, values: Mapping[str, Stored]) -> set[str]:
        return self._faulty(self._real.replace, values, set())

    def expire(self, keys: Collection[str], after_s: int) -> None:
        """All go, or the request fails before."""
        if keys and self._next_fault() not in {"none", "twice"}:
            self.n_faults += 1
            raise StoreUnavailable("expire: injected")
        self._real.expire(keys, after_s)

    def increment(self, deltas: Mapping[str, int], initial: int | None = None) -> dict[str, int]:
        return self._faulty(partial(self._real.increment, initial=initial), deltas, {})

    def check_durability(self, key: str) -> None:
        self._real.check_durability(key)

    def close(self) -> None:
        self._real.close()

    def _next_fault(self) -> str:
        self.n_calls += 1
        if self.every and self.n_calls % self.every[0] == 0:
            return self.every[1]
        if not self.next_faults:
            self._calls_left = 0
            return "none"
        if self._calls_left == 0:
            self._calls_left = 1 if self.next_faults[0] == "none" else self._random.randint(1, 10)
        self._calls_left -= 1
        return "none" if self._calls_left else self.next_faults.pop(0)

    def _faulty(self, request: Callable[[Any], _T], documents: Mapping[str, Any], nothing: _T) -> _T:
        if not documents:
            return nothing
        fault = self._next_fault()
        if fault == "none":
            return request(documents)
        self.n_faults += 1
        part = self._some_of(documents)
        rest = {key: value for key, value in documents.items() if key not in part}
        done = request(rest) if rest else nothing
        if fault == "before":
            raise StoreUnavailable("injected, before it took effect")
        if fault == "late":
            self.late.append(lambda: request(part))
            raise OutcomeUnknown("injected, it will take effect later")
        request(part)
        if fault == "after":
            raise OutcomeUnknown("injected, after it took effect")
        return done | request(part)

    def _some_of(self, documents: Mapping[str, Any]) -> dict[str, Any]:
        keys = list(documents)
        chosen = set(self._random.sample(keys, self._random.randint(1, len(keys))))
        return {key: documents[key] for key in keys if key in chosen}
