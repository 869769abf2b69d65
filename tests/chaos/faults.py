"""What a fault is, and which kinds there are: one function per kind, in the modules that register theirs here.

Each is a generator: up to its `yield` it does harm, after it it heals. Whatever it chooses, it chooses by the `Random`
that it is given, so that a schedule repeats it. One that finds nobody to harm raises `Missed` and does not count.
"""

import random
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psutil

from tests.chaos.world import World, send

STORES = ("redis", "cluster", "sentinel", "address", "couchbase")
"""The kinds of store that a world can have."""


IN_REDIS = tuple(store for store in STORES if store != "couchbase")
"""Those whose keys can be evicted one by one."""


class Missed(Exception):
    """There was nobody to harm."""


Act = Callable[[World, random.Random], Iterator[None]]


class Kind(NamedTuple):
    """A kind of fault: what it does, and how long it may last.

    Of those that take the bucket from its writers (`alone`) there is one at a time: what a second one costs could not
    be told.
    """

    act: Act
    longest_s: float
    alone: bool
    stores: tuple[str, ...] = STORES
    """The kinds of store that it can hit."""
    weight: int = 1
    """How often it is drawn, in comparison with others of its store."""


KINDS: dict[str, Kind] = {}


def kind(longest_s: float = 0.0, *, alone: bool = False, stores: tuple[str, ...] = STORES) -> Callable[[Act], Act]:
    """Register a kind of fault under the name of its function. Without a length it is over at once."""

    def register(act: Act) -> Act:
        KINDS[act.__name__] = Kind(act, longest_s, alone, stores)
        return act

    return register


def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """Have *processes* stand still for the length of a fault."""
    if not processes:
        raise Missed
    for process in processes:
        send(process, signal.SIGSTOP)
    yield
    for process in processes:
        send(process, signal.SIGCONT)
