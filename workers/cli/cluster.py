"""What the commands share that look at the nodes or give them orders: the coordination, and waiting with a line."""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager

from channelindex.config import REQUIRED_TO_SEE_NODES
from channelindex.errors import InputInvalid
from channelindex.redis.link import Link
from channelindex.stores import open_reader
from channelindex.terminal import escaped
from coordinator.cluster import ClusterState, MemberState, read_cluster
from coordinator.connection import connect
from coordinator.tick import order
from workers.cli import options

_TIMEOUT_S = 5.0
_LOOK_S = 0.2


class Coordination:
    """The coordination of the configured index."""

    def __init__(self, redis: Link, index: str, n_partitions: int) -> None:
        self._redis = redis
        self._index = index
        self.n_partitions = n_partitions

    def look(self, n_events: int = 0) -> ClusterState:
        """How things are now, with the newest *n_events*."""
        return read_cluster(self._redis, self._index, self.n_partitions, n_events)

    def order(self, what: str, arguments: Sequence[object], wake: Collection[str]) -> int:
        """Give an order (`coordinator/lua/order.lua`) and wake nodes; how much of it was not so before."""
        return order(self._redis, self._index, what, arguments, wake)

    def member(self, node: str) -> MemberState:
        """The node of this name, alive or not long dead.

        Raises:
            InputInvalid: there is none.
        """
        members = {member.node: member for member in self.look().members}
        if node not in members:
            raise InputInvalid(f"there is no node {node!r}: the nodes are {', '.join(members) or 'none'}")
        return members[node]


@contextmanager
def coordination_of(args: argparse.Namespace) -> Iterator[Coordination]:
    """The coordination that *args* configure."""
    config = options.config_of(args, REQUIRED_TO_SEE_NODES)
    with closing(open_reader(config.index)) as store:
        n_partitions = store.meta().n_partitions
    with closing(connect(config.coordination.redis, _TIMEOUT_S)) as redis:
        yield Coordination(redis, config.index.name, n_partitions)


def add_waiting(parser: argparse.ArgumentParser) -> None:
    """Add --no-wait and --timeout."""
    parser.add_argument("--no-wait", action="store_true", help="give the order and do not wait for what comes of it")
    parser.add_argument(
        "--timeout",
        type=options.seconds,
        default=60.0,
        metavar="S",
        help="how many seconds to wait (default: %(default)g); then the exit code is 1",
    )


def wait(args: argparse.Namespace, there: Coordination, missing: Callable[[ClusterState], str]) -> tuple[bool, float]:
    """Wait until *missing* has nothing more to say; whether that came in time, and after how many seconds.

    What it says is shown in a line that is written over, on a terminal.
    """
    begun = time.monotonic()
    while (said := missing(there.look())) and time.monotonic() < begun + args.timeout:
        _progress(said)
        time.sleep(_LOOK_S)
    _progress("")
    return not said, time.monotonic() - begun


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{escaped(text)[:width]:<{width}}", end="" if text else "\r", file=sys.stderr, flush=True)
