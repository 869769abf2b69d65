"""The writer of the Redis store against `redis-benchmark`: as many APPENDs of the same bytes to as many keys.

    python -m benchmarks.store [--appends 300000]

Both send 2,000 at a time to a Redis of their own, to keys that are there. Ours writes with one thread of Python what a
batch writer writes; the other is a program in C that makes nothing of the answers. "CPU" is the client's, "Redis" that
of the server, in µs per append. `redis-benchmark` is the one on the PATH, or REDIS_BENCHMARK names it.
"""

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import NamedTuple

import redis
from rich.console import Console
from rich.table import Table

from benchmarks.node import redis_cpu_s
from channelindex import blocks
from channelindex.hashing import group_of
from channelindex.model import Entry, IndexMeta
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner, open_writer
from channelindex.stores.base import ChannelAppend
from channelindex.stores.block_writer import MAX_BLIND_APPENDS
from devbucket.embedded_redis import EmbeddedRedis

N_CHANNELS = 10_000
BATCH = 2_000
"""Appends in one call of the writer, which sends MAX_BLIND_APPENDS of them at a time: all."""
ENTRIES = (1, 10)
"""Of one append."""
GROUP = group_of(range(1), 1)


class Costs(NamedTuple):
    """Appends per second; µs of CPU per append, of the client and of Redis."""

    who: str
    append_bytes: int
    appends_per_s: float
    client_us: float
    redis_us: float


def find_redis_benchmark() -> str | None:
    """The program to compare with; None where it is not installed."""
    return os.environ.get("REDIS_BENCHMARK") or shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")


def measure(n_entries: int, n_appends: int) -> list[Costs]:
    """Ours, and the other where it is installed, with *n_entries* in each append."""
    entries = _entries(n_entries)
    append_bytes = len(blocks.pack_frame(blocks.ENTRIES, 1, entries))
    found = [_ours(entries, append_bytes, n_appends)]
    program = find_redis_benchmark()
    return found if program is None else [*found, _theirs(program, append_bytes, n_appends)]


def _entries(count: int) -> bytes:
    key, rev = b"order::0000001", f"2-{random.Random(1).getrandbits(128):032x}"
    return b"".join(blocks.pack_entry(Entry(0, seqno + 1, key, rev, 0)) for seqno in range(count))


def _ours(entries: bytes, append_bytes: int, n_appends: int) -> Costs:
    rnd = random.Random(2)
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        settings = IndexSettings("channels", server.url, block_bytes=1 << 20)  # no rotation: that is no append
        with closing(open_owner(settings)) as owner, closing(open_writer(settings)) as writer:
            owner.create_or_check(IndexMeta(blocks.FORMAT_VERSION, 1, 1, "s", "i"))
            epoch = owner.next_epoch()
            appends = [ChannelAppend(f"ch_{number:06}", GROUP, epoch, entries) for number in range(N_CHANNELS)]
            writer.write(appends)
            batches = [rnd.sample(appends, BATCH) for _ in range(max(1, n_appends // BATCH))]

            def write() -> None:
                for batch in batches:
                    writer.write(batch)

            return _timed("channelindex", append_bytes, len(batches) * BATCH, write, client)


def _theirs(program: str, append_bytes: int, n_appends: int) -> Costs:
    value = "x" * append_bytes
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:

        def run(count: int) -> None:
            options = ["-s", server.socket, "-q", "-c", "1", "-P", MAX_BLIND_APPENDS, "-n", count, "-r", N_CHANNELS]
            command = [program, *map(str, options), "APPEND", "channels:{0}:b:__rand_int__", value]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        run(10 * N_CHANNELS)  # nearly all keys are there
        return _timed("redis-benchmark", append_bytes, n_appends, lambda: run(n_appends), client)


def _timed(who: str, append_bytes: int, n_appends: int, write: Callable[[], None], client: "redis.Redis") -> Costs:
    before_s, own_s, began = redis_cpu_s(client), _client_cpu_s(), time.perf_counter()
    write()
    seconds, own_s = time.perf_counter() - began, _client_cpu_s() - own_s
    redis_s = redis_cpu_s(client) - before_s
    assert seconds > 0
    return Costs(who, append_bytes, n_appends / seconds, own_s / n_appends * 1e6, redis_s / n_appends * 1e6)


def _client_cpu_s() -> float:
    """CPU of this thread and of the children that have ended: whichever of them writes."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + children.ru_utime + children.ru_stime


def table_of(found: Sequence[Costs]) -> Table:
    """A row for each."""
    missing = "" if find_redis_benchmark() else "; there is no redis-benchmark on the PATH (Debian: redis-tools)"
    table = Table("bytes per append", "who", "appends/s", "CPU µs", "Redis µs", title=f"the store{missing}")
    for costs in found:
        us = (f"{each:.2f}" for each in (costs.client_us, costs.redis_us))
        table.add_row(f"{costs.append_bytes}", costs.who, f"{costs.appends_per_s:,.0f}", *us)
    return table


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--appends", type=int, default=300_000)
    count = parser.parse_args().appends
    found = [costs for n_entries in ENTRIES for costs in measure(n_entries, count)]
    Console(width=None if sys.stdout.isatty() else 120).print(table_of(found))


if __name__ == "__main__":
    main()
