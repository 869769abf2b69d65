"""Throughput of a node that compacts against one that does not, in turn, and the pauses of Redis per switch.

Before each run the index has so much garbage that every channel is due: all documents were indexed several times. What
is timed is several times more; a compactor that may, is at work already then, and takes its share of a core. The
documents are few and change often: no others make as much work for it.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from operator import ge
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

Document = tuple[int, int, bytes, bytes]
"""(vbucket, seqno, key, value)."""
CASE = Case("c20", 20, 2)
WAVES_BEFORE = 3
"""Times that all documents were indexed before."""
WAVES = 40
"""Times that they are while it is timed: each makes as much garbage as is live, so channels are due again and again."""
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
    """Index *count* documents WAVES times more, with compaction or without."""
    wave = list(documents(CASE, count))
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis() as store, DevBucket() as bucket:
        run = partial(running_node, folder, store.url, bucket, *SETTINGS)
        with closing(open_reader(IndexSettings("channels", store.url))) as reader:
            with run("workers.compactors = 0"):
                for number in range(WAVES_BEFORE):
                    _index(reader, bucket, _again(wave, number))
            time.sleep(2.0)  # what was written settles
            with redis.Redis.from_url(store.url) as client:
                client.config_set("slowlog-log-slower-than", SLOW_US)
                client.config_set("slowlog-max-len", 100_000)
                with run(f"workers.compactors = {int(compacts)}") as node:
                    _await(lambda: not compacts or _n_compacted(reader) > 0)
                    _index(reader, bucket, _again(wave, WAVES_BEFORE))  # what starting costs is not counted
                    n_before, before_s = _n_compacted(reader), redis_cpu_s(client) + _node_cpu_s(node)
                    waves = range(WAVES_BEFORE + 1, WAVES_BEFORE + 1 + WAVES)
                    seconds = sum(_index(reader, bucket, _again(wave, number)) for number in waves)
                    cpu_s = _node_cpu_s(node) + redis_cpu_s(client) - before_s
                slow: Any = client.slowlog_get(100_000)
            switches = [entry["duration"] for entry in slow if SCRIPTS["switch"].sha.encode() in entry["command"]]
            longest = max((entry["duration"] for entry in slow), default=0)
            n_compacted = _n_compacted(reader) - n_before
        n_changes = count * WAVES
        return Run(compacts, n_changes / seconds, cpu_s / n_changes * 1e6, n_compacted, switches, longest)


def _again(wave: list[Document], number: int) -> list[Document]:
    """The documents of *wave*, for the time of this *number*."""
    return [(vb, seqno + number * len(wave), key, value) for vb, seqno, key, value in wave]


def _node_cpu_s(supervisor: psutil.Process) -> float:
    """CPU time of all processes of a node."""
    return sum(sum(process.cpu_times()[:2]) for process in (supervisor, *supervisor.children()))


def _index(reader: IndexReader, bucket: DevBucket, wave: list[Document]) -> float:
    """Seconds until *wave*, which the bucket gets now, is stable."""
    started_s = time.perf_counter()
    bucket.bulk_load(wave)
    high_seqnos = bucket.high_seqnos()
    _await(lambda: all(map(ge, _stable(reader), high_seqnos)))
    return time.perf_counter() - started_s


def _await(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came of it in {DEADLINE_S:.0f} s")
        time.sleep(POLL_S)


def _n_compacted(reader: IndexReader) -> int:
    """Times that a channel was compacted."""
    states = reader.channel_states(list(reader.channels()))
    return sum(state.compacted.generation for state in states if state)


def _stable(reader: IndexReader) -> list[int]:
    try:
        return [seqno for record in reader.partition_records() for seqno in record.stable]
    except IndexMissing:
        return [0] * N_VBUCKETS
