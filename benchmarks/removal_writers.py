"""Throughput of a node that compacts against one that does not, in turn, and the pauses of Redis per switch.

Before each run the index has so much garbage that every channel is due: all documents were indexed several times. What
is timed is the next time; a compactor that may, begins with the first document, and takes its share of a core.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

import psutil
import redis
from rich.console import Console
from rich.table import Table

from benchmarks.cases import N_VBUCKETS, Case, documents
from benchmarks.node import redis_cpu_s, running_node
from channelindex.errors import IndexMissing
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from channelindex.stores.base import IndexReader
from channelindex.stores.redis.store_link import SCRIPTS
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket

CASE = Case("c20", 20, 2)
WAVES = 4
"""Times that all documents were indexed before."""
POLL_S = 0.005
DEADLINE_S = 600.0
SETTINGS = ("compaction.min_lag_s = 1", "compaction.interval_s = 0.1")
SLOW_US = 100
"""Requests of Redis that take longer are looked at."""


class Run(NamedTuple):
    """One run. CPU is that of node and Redis; `switch_us` are the switches that held Redis for more than SLOW_US."""

    compacts: bool
    documents_per_s: float
    cpu_us: float
    compacted: int
    switch_us: list[int]
    longest_us: int


def measure(count: int, pairs: int, console: Console) -> list[dict[str, Any]]:
    """Print pairs of runs, and return them."""
    table = Table("", "documents/s", "CPU µs", "switches", "slow ones", "longest switch µs", "longest request µs")
    runs: list[Run] = []
    for pair in range(pairs):
        for compacts in (False, True) if pair % 2 else (True, False):
            runs.append(run_node(count, compacts=compacts))
            table.add_row(*_cells(runs[-1]))
    console.print(table)
    ratios = [_ratio(runs[at : at + 2]) for at in range(0, len(runs), 2)]
    console.print("with against without, documents/s:", ", ".join(f"{ratio:.2f}" for ratio in ratios))
    return [run._asdict() for run in runs]


def _cells(run: Run) -> list[str]:
    name = "compacts" if run.compacts else "does not"
    longest = max(run.switch_us, default=0)
    numbers = (run.compacted, len(run.switch_us), longest, run.longest_us)
    return [name, f"{run.documents_per_s:,.0f}", f"{run.cpu_us:.1f}", *(f"{number:,}" for number in numbers)]


def _ratio(pair: list[Run]) -> float:
    with_it, without = sorted(pair, key=lambda run: not run.compacts)
    return with_it.documents_per_s / without.documents_per_s


def run_node(count: int, *, compacts: bool) -> Run:
    """Index *count* documents once more, with compaction or without."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis() as store, DevBucket() as bucket:
        run = partial(running_node, folder, store.url, bucket, *SETTINGS)
        with closing(open_reader(IndexSettings("channels", store.url))) as reader:
            with run("workers.compactors = 0"):
                for wave in range(WAVES):
                    bucket.bulk_load(list(_wave(count, wave)))
                    _await_stable(reader, bucket)
            time.sleep(2.0)  # what was written settles
            bucket.bulk_load(list(_wave(count, WAVES)))
            with redis.Redis.from_url(store.url) as client:
                client.config_set("slowlog-log-slower-than", SLOW_US)
                client.config_set("slowlog-max-len", 100_000)
                before_s = redis_cpu_s(client)
                with run(f"workers.compactors = {int(compacts)}") as node:
                    seconds = _await_stable(reader, bucket)
                    cpu_s = _node_cpu_s(node) + redis_cpu_s(client) - before_s
                slow: Any = client.slowlog_get(100_000)
            switches = [entry["duration"] for entry in slow if SCRIPTS["switch"].sha.encode() in entry["command"]]
            longest = max((entry["duration"] for entry in slow), default=0)
            states = reader.channel_states(list(reader.channels()))
            n_compacted = sum(state.compacted.generation for state in states if state)
        return Run(compacts, count / seconds, cpu_s / count * 1e6, n_compacted, switches, longest)


def _wave(count: int, wave: int) -> Iterator[tuple[int, int, bytes, bytes]]:
    """The documents of CASE, once more each wave."""
    for vb, seqno, key, value in documents(CASE, count):
        yield vb, seqno + wave * count, key, value


def _node_cpu_s(supervisor: psutil.Process) -> float:
    """CPU time of all processes of a node."""
    return sum(sum(process.cpu_times()[:2]) for process in (supervisor, *supervisor.children()))


def _await_stable(reader: IndexReader, bucket: DevBucket) -> float:
    """Seconds from the first move of the stable clock until it is where the bucket is."""
    deadline, high_seqnos = time.monotonic() + DEADLINE_S, bucket.high_seqnos()
    before, started_s = _stable(reader), 0.0
    while time.monotonic() < deadline:
        time.sleep(POLL_S)
        stable = _stable(reader)
        started_s = started_s or (time.perf_counter() if stable != before else 0.0)
        if started_s and all(seqno >= high for seqno, high in zip(stable, high_seqnos, strict=True)):
            return time.perf_counter() - started_s
    raise TimeoutError(f"the index was not complete after {DEADLINE_S:.0f} s")


def _stable(reader: IndexReader) -> list[int]:
    try:
        return [seqno for record in reader.partition_records() for seqno in record.stable]
    except IndexMissing:
        return [0] * N_VBUCKETS
