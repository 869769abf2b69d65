"""What a node costs, and how soon a change is visible, at a steady rate of documents: where most nodes live.

    python -m benchmarks.freshness [--rate 0 --rate 100 --rate 1000 --rate 10000] [--seconds 10] [--json]

A node of default configuration, a private Redis and a dev bucket share the machine. CPU is that of all processes of the
node and of Redis, in percent of one core, while nobody reads. Then, as long again, a reader waits for the stable clock:
a change's latency is from the answer to its write until the reader has seen that it is stable.
"""

import argparse
import itertools
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

import psutil
import redis
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES, N_VBUCKETS, documents
from benchmarks.node import redis_cpu_s, running_node
from channelindex.errors import ChannelIndexError
from channelindex.feeds.dcp import operations
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from channelindex.stores.base import IndexReader
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket

RATES = (0, 100, 1_000, 10_000)
MOST_PER_S = 400
"""Writes of the loader per second; at higher rates each is of several documents, sent together."""
SETTLE_S = 2.0
START_TIMEOUT_S = 60.0


class Figures(NamedTuple):
    """CPU in percent of a core, switches in wake-ups per second of each role; latencies in ms (0 at rate 0)."""

    rate: int
    node_percent: float
    redis_percent: float
    percent_by_role: dict[str, float]
    wakes_by_role: dict[str, float]
    scripts_per_s: float
    p50_ms: float
    p99_ms: float


def measure(rate: int, seconds: float) -> Figures:
    """One node at *rate* documents per second."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        store, bucket = stack.enter_context(EmbeddedRedis()), stack.enter_context(DevBucket())
        node = stack.enter_context(running_node(folder, store.url, bucket))
        index = stack.enter_context(closing(open_reader(IndexSettings("channels", store.url))))
        _await_start(index)
        load = stack.enter_context(_loader(bucket, rate))
        time.sleep(SETTLE_S)
        before = _Usage.now(node, store.url)
        time.sleep(seconds)
        used = _Usage.now(node, store.url)
        return _figures(rate, before, used, _latencies(index, load, seconds) if rate else [])


def _await_start(index: IndexReader) -> None:
    """Wait until every partition has an owner."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(0.1)
        try:
            if all(index.stable_view().epochs):
                return
        except ChannelIndexError:  # the node has not made the index yet
            continue
    raise TimeoutError(f"the node did not own all partitions after {START_TIMEOUT_S:g} s")


class _Load(NamedTuple):
    """A process that writes. While `is_watched`, (vbucket, seqno, time) of some documents come through `wrote`."""

    wrote: Connection
    is_watched: Event


@contextmanager
def _loader(bucket: DevBucket, rate: int) -> Iterator[_Load]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    load = _Load(ours, context.Event())
    process = context.Process(target=_write, args=(bucket, rate, theirs, load.is_watched), daemon=True)
    if rate:
        process.start()
    theirs.close()
    try:
        yield load
    finally:
        if rate:
            process.terminate()
            process.join()
        ours.close()


def _write(bucket: DevBucket, rate: int, wrote: Connection, is_watched: Event) -> None:
    rnd, at_once = random.Random(1), max(1, rate // MOST_PER_S)
    written = (document for number in itertools.count() for document in documents(CASES[0], 20_000 + number))
    seqnos = [0] * N_VBUCKETS
    with KvClient(parse_source_url(bucket.url), Credentials(bucket.user, bucket.password)) as client:
        due = time.monotonic()
        while True:
            due += rnd.expovariate(rate / at_once)
            time.sleep(max(0.0, due - time.monotonic()))
            requests = []
            for vb, _, key, value in itertools.islice(written, at_once):
                seqnos[vb] += 1
                requests.append(operations.store(key, value))
            client.pipeline(requests)
            if is_watched.is_set():
                wrote.send((vb, seqnos[vb], time.monotonic()))


def _latencies(index: IndexReader, load: _Load, seconds: float) -> list[float]:
    """Seconds from write to visible of what is written from now on."""
    end, latencies = time.monotonic() + seconds, []
    waiting: dict[tuple[int, int], float] = {}
    counter = index.stable_counter()
    load.is_watched.set()
    while time.monotonic() < end:
        counter = index.wait_stable(counter, 1.0)
        stable, now = index.stable_view().stable, time.monotonic()
        while load.wrote.poll():
            vb, seqno, at = load.wrote.recv()
            waiting[vb, seqno] = at
        seen = [written for written in waiting if written[1] <= stable[written[0]]]
        latencies += [max(0.0, now - waiting.pop(written)) for written in seen]
    return latencies


class _Usage(NamedTuple):
    at: float
    cpu_s: Mapping[str, float]
    wakes: Mapping[str, int]
    redis_s: float
    scripts: int

    @classmethod
    def now(cls, node: psutil.Process, redis_url: str) -> "_Usage":
        """What the node and Redis have used so far, by role."""
        cpu_s: dict[str, float] = {}
        wakes: dict[str, int] = {}
        for process in (node, *node.children()):
            role = "supervisor" if process == node else process.name()
            cpu_s[role] = cpu_s.get(role, 0.0) + sum(process.cpu_times()[:2])
            wakes[role] = wakes.get(role, 0) + process.num_ctx_switches().voluntary
        with redis.Redis.from_url(redis_url) as client:
            redis_s = redis_cpu_s(client)
            stats: Any = client.info("commandstats")
        scripts = sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))
        return cls(time.monotonic(), cpu_s, wakes, redis_s, scripts)


def _figures(rate: int, before: _Usage, used: _Usage, latencies: Sequence[float]) -> Figures:
    seconds = used.at - before.at
    percent = {role: 100 * (cpu_s - before.cpu_s.get(role, 0.0)) / seconds for role, cpu_s in used.cpu_s.items()}
    wakes = {role: (count - before.wakes.get(role, 0)) / seconds for role, count in used.wakes.items()}
    in_ms = sorted(1000 * latency for latency in latencies) or [0.0]
    return Figures(
        rate,
        sum(percent.values()),
        100 * (used.redis_s - before.redis_s) / seconds,
        percent,
        wakes,
        (used.scripts - before.scripts) / seconds,
        in_ms[len(in_ms) // 2],
        in_ms[len(in_ms) * 99 // 100],
    )


def table_of(found: Sequence[Figures]) -> Table:
    """A row for each rate."""
    table = Table("documents/s", "node %", "Redis %", "scripts/s", "p50 ms", "p99 ms", "% (wake-ups/s) by role")
    for rate, node, redis_percent, by_role, wakes, *numbers in found:
        roles = ", ".join(f"{role} {by_role[role]:.1f} ({wakes[role]:.0f})" for role in by_role)
        table.add_row(f"{rate:,}", f"{node:.1f}", f"{redis_percent:.1f}", *(f"{n:.0f}" for n in numbers), roles)
    return table


def main() -> None:
    """Measure each rate and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.freshness", description=__doc__)
    parser.add_argument("--rate", type=int, action="append", help=f"documents per second (default: {RATES})")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = [measure(rate, args.seconds) for rate in args.rate or RATES]
    if args.json:
        print(json.dumps([figures._asdict() for figures in found]))
        return
    Console(width=None if sys.stdout.isatty() else 180).print(table_of(found))


if __name__ == "__main__":
    main()
