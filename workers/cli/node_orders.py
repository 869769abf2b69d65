"""Reads the nodes' coordination, sends orders to nodes, and waits for them: shared by the commands that do so."""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import NamedTuple

from channelindex.config import REQUIRED_TO_SEE_NODES
from channelindex.errors import NodeUnknown
from channelindex.redis.link import Link
from channelindex.stores import open_reader
from channelindex.terminal import escaped
from coordinator.cluster_state import ClusterState, MemberState, read_cluster
from coordinator.lease_redis import connect
from coordinator.tick import order
from workers.cli import options

_TIMEOUT_S = 5.0
_POLL_S = 0.2

DescribePending = Callable[[ClusterState], str]
"""Describes in one line what has still to happen; "" when nothing has."""


class Coordination:
    """The coordination of the configured index."""

    def __init__(self, redis: Link, index: str, n_partitions: int, ttl_s: float) -> None:
        self._redis = redis
        self._index = index
        self.n_partitions = n_partitions
        self.ttl_s = ttl_s

    def state(self, n_events: int = 0) -> ClusterState:
        """Read the present members and leases, with the newest *n_events*."""
        return read_cluster(self._redis, self._index, self.n_partitions, n_events)

    def order(self, what: str, arguments: Sequence[object], wake: Collection[str]) -> int:
        """Send an order (`coordinator/lua/order.lua`) and wake nodes; return how many of *arguments* it changed."""
        return order(self._redis, self._index, what, arguments, wake)

    def state_of_nodes(self) -> ClusterState:
        """The present state, for an order that some node has to follow.

        Raises:
            NodeUnknown: no node is alive.
        """
        state = self.state()
        if not any(member.alive for member in state.members):
            raise NodeUnknown("no node is running: nobody would follow the order")
        return state

    def member(self, node: str) -> MemberState:
        """The node of this name, alive or not long dead.

        Raises:
            NodeUnknown: there is none.
        """
        members = {member.node: member for member in self.state().members}
        if node not in members:
            known = f"the nodes are {', '.join(members)}" if members else "no node is running"
            raise NodeUnknown(f"there is no node {node!r}: {known}")
        return members[node]


@contextmanager
def open_coordination(args: argparse.Namespace) -> Iterator[Coordination]:
    """Connect to the coordination that *args* configure."""
    config = options.config_of(args, REQUIRED_TO_SEE_NODES)
    with closing(open_reader(config.index)) as store:
        n_partitions = store.meta().n_partitions
    with closing(connect(config.coordination.redis, _TIMEOUT_S)) as redis:
        yield Coordination(redis, config.index.name, n_partitions, config.coordination.ttl_s)


class Outcome(NamedTuple):
    """Result of `wait`: `done` if nothing is pending, or nobody waited; `seconds` that it took."""

    done: bool
    seconds: float
    waited: bool

    def describe(self, verb: str = "done") -> str:
        """One phrase for people, such as "drained after 0.3 s"; *verb* says what was done."""
        if not self.waited:
            return "ordered"
        return f"{verb if self.done else f'NOT {verb.upper()}'} after {self.seconds:.1f} s"

    def as_json(self) -> dict[str, object]:
        """The fields that every command prints with --json."""
        return {"done": self.done, "seconds": round(self.seconds, 3)}


def add_waiting(parser: argparse.ArgumentParser) -> None:
    """Add --no-wait and --timeout."""
    parser.add_argument("--no-wait", action="store_true", help="return at once")
    parser.add_argument(
        "--timeout",
        type=options.seconds,
        default=60.0,
        metavar="S",
        help="seconds to wait (default: %(default)g); the exit code is 1 if it was not done by then",
    )


def wait(args: argparse.Namespace, coordination: Coordination, describe_pending: DescribePending) -> Outcome:
    """Wait until *describe_pending* returns "" or --timeout is over; with --no-wait return at once.

    On a terminal, the pending work is shown in a line that is overwritten.
    """
    if args.no_wait:
        return Outcome(done=True, seconds=0.0, waited=False)
    begun = time.monotonic()
    while (pending := describe_pending(coordination.state())) and time.monotonic() < begun + args.timeout:
        _progress(pending)
        time.sleep(_POLL_S)
    _progress("")
    return Outcome(done=not pending, seconds=time.monotonic() - begun, waited=True)


def describe_moves(state: ClusterState) -> str:
    """The number of partitions that have still to move, in words; "" for none."""
    n_moves = state.target().n_moves()
    return f"{n_moves} partitions have to move" if n_moves else ""


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{escaped(text)[:width]:<{width}}", end="" if text else "\r", file=sys.stderr, flush=True)
