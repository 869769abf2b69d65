"""What one `channelindex serve` takes and bears, each figure beside what it has to be.

    python -m benchmarks.serve [--only idle --only hot …] [--followers 10000] [--rows 100000] [--seconds 10]

One service, a private Redis, a process that writes and one that has all clients share the machine. Latency is from the
write to the store until the row is in the client's process. CPU is that of the service's process.

poll: a client that asks again in vain. read: a first read. idle: followers to whom nothing is told. hot: all follow one
channel. spread: each follows a channel of its own. fresh: few followers of a busy index.
"""

import argparse
import asyncio
import http.client
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import redis
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.serve_load import Followers, Writer, write, write_steadily
from devbucket.embedded_redis import EmbeddedRedis
from tests.support.served import Service

WRITES = 10
POLLS = 200
SETTLE_S = 2.0
DESCRIPTORS = 65_536
SPARE_DESCRIPTORS = 150
"""Of a process, for what is no connection of a follower."""


class Load(NamedTuple):
    """How much: followers of each kind, rows of a first read, seconds of a steady load."""

    followers: int = 10_000
    rows: int = 100_000
    seconds: float = 10.0


class Figure(NamedTuple):
    """One figure; `goal` is the most that it may be, or the least where `at_least`."""

    name: str
    value: float
    unit: str
    goal: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """True if it is as good as it has to be."""
        return self.value >= self.goal if self.at_least else self.value <= self.goal


class World(NamedTuple):
    """What is measured, and by whose writes."""

    service: Service
    writer: Writer
    store: redis.Redis
    load: Load

    def cpu_s(self) -> float:
        """CPU seconds of the service so far."""
        times = psutil.Process(self.service.pid).cpu_times()
        return times.user + times.system

    def megabytes(self) -> float:
        """Memory of the service."""
        return psutil.Process(self.service.pid).memory_info().rss / 1e6

    def n_commands(self) -> int:
        """Commands that Redis was ever sent."""
        return int(self.store.info("stats")["total_commands_processed"])

    def path(self, feed: str, channel: str) -> str:
        """Of a feed of *channel* from now on."""
        return f"/{self.service.db}/_changes?since=now&heartbeat=60000&feed={feed}&channels={channel}"


def measure_poll(world: World) -> list[Figure]:
    """A client on one connection that asks for what came after all that there is."""
    world.writer.do(partial(write, "polled", 100))
    first = world.service.changes(channels="polled")
    path = f"/{world.service.db}/_changes?channels=polled&since={first.json['last_seq']}"
    connection = http.client.HTTPConnection("127.0.0.1", world.service.port, timeout=60)

    def poll_ms(**headers: str) -> tuple[float, str]:
        began = time.perf_counter()
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        return 1000 * (time.perf_counter() - began), answer.headers["ETag"]

    tag = poll_ms()[1]
    took = [sorted(poll_ms(**headers)[0] for _ in range(POLLS)) for headers in ({}, {"If-None-Match": tag})]
    connection.close()
    return [
        Figure("a poll in vain, p50", took[0][POLLS // 2], "ms", 2),
        Figure("the same with its ETag, p50", took[1][POLLS // 2], "ms", 2),
    ]


def measure_read(world: World) -> list[Figure]:
    """A first read of one channel."""
    batch = 5000
    for _ in range(0, world.load.rows, batch):
        world.writer.do(partial(write, "big", batch))
    for_warmth = world.service.changes(channels="big", limit=1000)
    assert for_warmth.status == 200
    memory, cpu, began = world.megabytes(), world.cpu_s(), time.monotonic()
    body = world.service.changes(channels="big").body
    took = time.monotonic() - began
    n_rows = body.count(b"\n{")
    assert n_rows == world.load.rows, "all of it was told"
    return [
        Figure(f"first read of {n_rows:,} rows", n_rows / took, "rows/s", 50_000, at_least=True),
        Figure("the same, CPU of the service", 1e6 * (world.cpu_s() - cpu) / n_rows, "µs/row", 20),
        Figure("the same, more memory after it", world.megabytes() - memory, "MB", 30),
    ]


async def measure_idle(world: World) -> list[Figure]:
    """As many continuous feeds as longpolls, of a channel to which nothing comes; as many as there are descriptors."""
    before, began = world.megabytes(), time.monotonic()
    n = min(world.load.followers, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS) // 2)
    async with Followers(world.service.port) as followers:
        for feed in ("continuous", "longpoll"):
            await followers.follow([world.path(feed, "quiet")] * n)
        took = time.monotonic() - began
        await asyncio.sleep(SETTLE_S)
        cpu = world.cpu_s()
        await asyncio.sleep(world.load.seconds)
        percent = 100 * (world.cpu_s() - cpu) / world.load.seconds
        memory = world.megabytes()
    return [
        Figure(f"{2 * n:,} idle followers, memory", memory, "MB", 300),
        Figure("the same, for each", 1000 * (memory - before) / (2 * n), "KB", 15),
        Figure("the same, CPU", percent, "% of a core", 2),
        Figure("the same, to connect all", took, "s", 60),
    ]


async def measure_hot(world: World) -> list[Figure]:
    """One document at a time to one channel, which all follow; and how much of that Redis notices."""
    n_commands: list[int] = []
    n_all = world.load.followers
    async with Followers(world.service.port) as followers:
        for n_more, n in ((1, 1), (n_all - 1, n_all)):
            await followers.follow([world.path("continuous", "hot")] * n_more)
            await _write_hot(world, followers, n)
            before = world.n_commands()
            await _write_hot(world, followers, n)
            n_commands.append(world.n_commands() - before)
        cpu = world.cpu_s()
        told = [await _write_hot(world, followers, n_all) for _ in range(WRITES)]
        us = 1e6 * (world.cpu_s() - cpu) / WRITES / n_all
    return [
        Figure(
            f"one channel, {n_all:,} followers, to the middle one", _middle([t[n_all // 2] for t in told]), "ms", 300
        ),
        Figure("the same, to the last", _middle([t[-1] for t in told]), "ms", 1000),
        Figure("the same, CPU of the service", us, "µs/row", 40),
        Figure("commands to Redis more than with one follower, per write", n_commands[1] - n_commands[0], "", 8),
    ]


async def _write_hot(world: World, followers: Followers, n: int) -> list[float]:
    """Write one document; how late it came to each of the *n* followers, ascending."""
    late_ms = followers.late_ms
    late_ms.clear()
    await asyncio.to_thread(world.writer.do, partial(write, "hot", 1))
    async with asyncio.timeout(60):
        while len(late_ms) < n:  # noqa: ASYNC110 an event would cost each row something
            await asyncio.sleep(0.05)
    return sorted(late_ms)


async def measure_spread(world: World) -> list[Figure]:
    """A thousand changes a second, spread over as many channels as there are followers."""
    return await _measure_steady(world, world.load.followers, world.load.followers, 1000, 200, 100)


async def measure_fresh(world: World) -> list[Figure]:
    """Ten thousand documents a second in a hundred channels, ten of which are followed."""
    return await _measure_steady(world, 10, 100, 10_000, 100, 100, middle_ms=25)


async def _measure_steady(
    world: World, n_followers: int, n_channels: int, per_s: int, late_ms: float, percent: float, middle_ms: float = 200
) -> list[Figure]:
    paths = [world.path("continuous", f"c{number}") for number in range(n_followers)]
    async with Followers(world.service.port) as followers:
        await followers.follow(paths)
        await asyncio.to_thread(world.writer.do, partial(write_steadily, n_channels, per_s, SETTLE_S))
        await asyncio.sleep(SETTLE_S)
        followers.late_ms.clear()
        cpu, began = world.cpu_s(), time.monotonic()
        rate = await asyncio.to_thread(world.writer.do, partial(write_steadily, n_channels, per_s, world.load.seconds))
        used = 100 * (world.cpu_s() - cpu) / (time.monotonic() - began)
        await asyncio.sleep(SETTLE_S)
        late = sorted(followers.late_ms)
    name = f"{n_followers:,} followers of {n_channels:,} channels, {rate:,.0f} changes/s"
    return [
        Figure(f"{name}, p50", late[len(late) // 2], "ms", middle_ms),
        Figure("the same, p99", late[len(late) * 99 // 100], "ms", late_ms),
        Figure("the same, CPU of the service", used, "% of a core", percent),
        Figure("the same, rows told", len(late), "", rate * world.load.seconds * n_followers / n_channels * 0.98, True),
    ]


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


PARTS: dict[str, Callable[[World], Any]] = {
    "poll": measure_poll,
    "read": measure_read,
    "idle": measure_idle,
    "hot": measure_hot,
    "spread": measure_spread,
    "fresh": measure_fresh,
}


def measure(name: str, load: Load) -> list[Figure]:
    """The figures of one part, of a service and a store of their own."""
    _raise_descriptors()
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedRedis() as store,
        Writer(store.url) as writer,
        Service(Path(folder), store.url, writer.index, serve_max_connections=1_000_000) as service,
        redis.Redis.from_url(store.url) as client,
    ):
        writer.do(partial(write, "other", 1))
        service.start()
        found = PARTS[name](World(service, writer, client, load))
        figures: list[Figure] = uvloop.run(found) if asyncio.iscoroutine(found) else found
    return figures


def _raise_descriptors() -> None:
    """Have as many descriptors as the system lets us; the service inherits them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (max(hard, DESCRIPTORS), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        except (ValueError, PermissionError):
            continue
        return


def table_of(figures: Sequence[Figure]) -> Table:
    """*figures*, each beside its goal."""
    table = Table("changes feed", "measured", "goal", "")
    for each in figures:
        goal = f"{'≥' if each.at_least else '≤'} {each.goal:,.0f}"
        unit = f" {each.unit}" if each.unit else ""
        table.add_row(each.name, f"{each.value:,.1f}{unit}", goal, "" if each.is_met else "missed")
    return table


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    for field, default in Load()._asdict().items():
        parser.add_argument(f"--{field}", type=type(default), default=default)
    parser.add_argument("--only", action="append", choices=list(PARTS))
    args = parser.parse_args()
    load = Load(*(getattr(args, field) for field in Load._fields))
    figures = [figure for name in args.only or PARTS for figure in measure(name, load)]
    Console(width=120).print(table_of(figures))


if __name__ == "__main__":
    main()
