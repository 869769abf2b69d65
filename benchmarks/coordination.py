"""What sharing out the partitions costs: a thousand simulated nodes on the real scripts in a private Redis.

    python -m benchmarks.coordination [--nodes 1000] [--partitions 1024] [--seed 1] [--json]

Clocks are simulated, so an hour of the cluster takes as long as its ticks do. For each event: how many partitions moved
and how few could have, how long it took until every partition had an owner again and all shares were fair, and what
Redis had to do meanwhile.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import redis
from rich.console import Console
from rich.table import Table

from benchmarks.simulation import ZONES, Cost, World
from channelindex.redis.link import Link
from coordinator.lease_redis import connect
from devbucket.embedded_redis import EmbeddedRedis

QUIET_S = 60.0
LIMIT_S = 600.0


class Outcome(NamedTuple):
    """One event. `simulated_s` is how long it took, in the time of the cluster; the rest happened meanwhile."""

    event: str
    moves: int
    fewest: int
    simulated_s: float
    periods: float
    ticks_per_s: float
    wakes: int
    kib_in_per_s: float
    kib_out_per_s: float
    redis_cpu_us_per_tick: float
    redis_busy_percent: float


class Run:
    """A cluster and what is done to it, one event after the other."""

    def __init__(self, world: World, n_nodes: int) -> None:
        self.world = world
        self.names = [f"n{number:05}" for number in range(n_nodes)]
        self.outcomes: list[Outcome] = []

    def event(self, name: str, act: Callable[[], None], fewest: Callable[[], int] | None = None) -> None:
        """Do something to a balanced cluster and wait until it is balanced again."""
        world = self.world
        before = world.cost()
        begun = world.now
        act()
        needed = fewest() if fewest else world.n_to_move()
        world.run_until(world.is_balanced, LIMIT_S)
        self._note(name, before, begun, needed)

    def _note(self, name: str, before: Cost, begun: float, fewest: int) -> None:
        world = self.world
        cost = world.cost().since(before)
        seconds = max(world.now - begun, 1e-9)
        self.outcomes.append(
            Outcome(
                name,
                cost.moves,
                fewest,
                seconds,
                seconds / (world.ttl_s / 3),
                cost.ticks / seconds,
                cost.wakes,
                cost.bytes_in / 1024 / seconds,
                cost.bytes_out / 1024 / seconds,
                1e6 * cost.cpu_s / max(1, cost.ticks),
                100 * cost.cpu_s / seconds,
            )
        )

    def start_all(self) -> None:
        """All nodes at once, within a period."""
        world = self.world

        def start() -> None:
            for name in self.names:
                world.start(name, world.now + world.rnd.uniform(0, world.ttl_s / 3))
            world.run_for(world.ttl_s / 3)

        self.event("start of all at once", start, lambda: world.n_partitions)

    def quiet(self) -> None:
        """Nothing happens for a while, and nothing may move."""
        world = self.world
        before, begun = world.cost(), world.now
        world.run_for(QUIET_S)
        self._note("nothing", before, begun, 0)

    def rolling_restart(self, at_once: int) -> None:
        """All nodes, so many at once, each back after some seconds."""
        world = self.world
        before, begun, needed = world.cost(), world.now, 0
        for start in range(0, len(self.names), at_once):
            for name in self.names[start : start + at_once]:
                held = world.nodes[name].membership.book.unexpired(world.now)
                needed += 2 * len(held)  # there and back
                world.restart(name)
            world.run_until(lambda: len(world.nodes) == len(self.names) and world.is_balanced(), LIMIT_S)
        self._note(f"rolling restart, {at_once} at once", before, begun, needed)

    def lose(self, name: str, lost: Sequence[str]) -> None:
        """These nodes crash; the others share what they had. Then they come back."""
        world = self.world
        self.event(name, lambda: world.crash(lost))

        def back() -> None:
            for node in lost:
                world.start(node, world.now + world.rnd.uniform(0, world.ttl_s / 3))
            world.run_for(world.ttl_s / 3)

        fewest = len(lost) * world.n_partitions // len(self.names)
        self.event(f"{name}: all back", back, lambda: fewest)

    def all(self, at_once: int) -> None:
        """Every event, in turn."""
        self.start_all()
        self.quiet()
        self.rolling_restart(at_once)
        self.lose("a third is lost at once", self.world.rnd.sample(self.names, len(self.names) // 3))
        self.lose("a zone is lost", [name for name in self.names if int(name[1:]) % ZONES == 1])
        self.quiet()


def simulate(client: redis.Redis, link: Link, n_nodes: int, n_partitions: int, seed: int, at_once: int) -> Run:
    """All events on a cluster of *n_nodes* that share *n_partitions*."""
    run = Run(World(client, link, n_partitions, seed), n_nodes)
    run.all(at_once)
    return run


def main() -> None:
    """Simulate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--partitions", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=0, help="nodes that restart together (default: 1 in 40)")
    parser.add_argument("--quiet-only", action="store_true", help="start all nodes, and then nothing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client, connect(server.url, 5.0) as link:
        run = Run(World(client, link, args.partitions, args.seed), args.nodes)
        if args.quiet_only:
            run.start_all()
            run.quiet()
        else:
            run.all(args.at_once or max(1, args.nodes // 40))
    if args.json:
        print(json.dumps([outcome._asdict() for outcome in run.outcomes]))
    else:
        Console(width=None if sys.stdout.isatty() else 200).print(_table(args, run.outcomes))


def _table(args: argparse.Namespace, outcomes: Sequence[Outcome]) -> Table:
    header = ("event", "moves", "fewest", "took s", "periods", "ticks/s", "wakes", "in KiB/s", "out KiB/s")
    table = Table(
        *header,
        "Redis µs/tick",
        "Redis busy %",
        title=f"{args.nodes} nodes, {args.partitions} partitions, seed {args.seed}",
    )
    for event, moves, fewest, *numbers in outcomes:
        cells = [f"{number:,}" if isinstance(number, int) else f"{number:,.1f}" for number in numbers]
        table.add_row(event, f"{moves:,}", f"{fewest:,}", *cells)
    return table


if __name__ == "__main__":
    main()
