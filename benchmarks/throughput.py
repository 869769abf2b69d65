"""Documents per second and CPU per document, from a bucket's feed to the stable clock, for four shapes of channels.

    python -m benchmarks [--documents 100000] [--runs 3] [--case c100 …] [--no-plain]

A node with 2 feed workers and 2 batch writers, a private Redis and a dev bucket share the machine. CPU is that of all
the node's processes and of Redis; the dev bucket's is not counted, though it takes its part of the cores. Each run
is followed by one of `benchmarks.plain` on the first of these documents; the ratios are within one run of this command.
What starting costs is taken off: a thousand documents are indexed once, and what more cost beyond these is counted.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import psutil
import redis
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES, N_VBUCKETS, Case, load
from benchmarks.machine import warm_memory, write_results
from benchmarks.node import redis_cpu_s, running_node
from benchmarks.plain import index_all
from channelindex.errors import ChannelIndexError
from channelindex.settings import IndexSettings, SourceSettings
from channelindex.stores import open_reader
from channelindex.stores.base import IndexReader
from devbucket.bucket_config import DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket
from workers.pipeline.source import describe, open_feed

FEW_DOCUMENTS = 1_000
"""Whose CPU is nearly all of it that of starting."""
PLAIN_DOCUMENTS = 200_000
"""At most so many the plain way, which knows no start: of more it takes as long for each."""
POLL_S = 0.02
"""Of the stable view: that costs Redis 10 µs each time, which count as the node's."""
DEADLINE_S = 900.0
SHOWN = ("feed_worker", "batch_writer")
"""Roles with a column of their own."""


class Figures(NamedTuple):
    """One run. CPU in µs per document, by role, too; memory is the unique part (USS) of each process, in MiB."""

    documents_per_s: float
    cpu_us: float
    redis_us: float
    us_by_role: Mapping[str, float]
    memory_mib: Mapping[str, float]

    def without_start(self, count: int, few: "Figures") -> "Figures":
        """The same with the CPU per document beyond FEW_DOCUMENTS, of which *few* is a run."""
        by_role = {role: beyond_start(us, count, few.us_by_role.get(role, 0.0)) for role, us in self.us_by_role.items()}
        redis_us = beyond_start(self.redis_us, count, few.redis_us)
        return self._replace(cpu_us=sum(by_role.values()) + redis_us, redis_us=redis_us, us_by_role=by_role)


class CaseFigures(NamedTuple):
    """The runs of one case in turn: of the node, and the plain way (maybe none)."""

    case: str
    node: Sequence[Figures]
    plain: Sequence[Figures]

    def without_start(self, count: int, few: Figures) -> "CaseFigures":
        """The same with the node's CPU per document beyond those few."""
        return self._replace(node=[run.without_start(count, few) for run in self.node])

    @property
    def cpu_ratio(self) -> float:
        """The plain way's CPU per document in the node's: the median of the ratios of the pairs."""
        pairs = zip(self.node, self.plain, strict=True)
        return statistics.median(plain.cpu_us / node.cpu_us for node, plain in pairs)


def beyond_start(us: float, count: int, few_us: float) -> float:
    """µs for each document beyond FEW_DOCUMENTS: *us* is that of each of *count*, *few_us* that of those few."""
    assert count > FEW_DOCUMENTS, "of so few, starting is nearly all"
    return (us * count - few_us * FEW_DOCUMENTS) / (count - FEW_DOCUMENTS)


def measure(case: Case, count: int, runs: int, plain_count: int) -> CaseFigures:
    """Index *count* documents of *case* with a node and the first *plain_count* of them the plain way, in turn."""
    node, plain = [], []
    with loaded(case, count) as bucket:
        for _ in range(runs):
            node.append(run_node(bucket, count))
            if plain_count:
                plain.append(run_plain(bucket, plain_count))
    return CaseFigures(case.name, node, plain)


def measure_start(n_vbuckets: int = N_VBUCKETS) -> Figures:
    """Index FEW_DOCUMENTS with a node: what `Figures.without_start` takes off."""
    with loaded(CASES[0], FEW_DOCUMENTS, n_vbuckets) as bucket:
        return run_node(bucket, FEW_DOCUMENTS)


def loaded(case: Case, count: int, n_vbuckets: int = N_VBUCKETS, above: int = 0) -> DevBucket:
    """A dev bucket with *count* documents of *case*, with seqnos above *above*."""
    return DevBucket(
        DevBucketConfig(n_vbuckets=n_vbuckets), load=lambda bucket: load(bucket, case, count, n_vbuckets, above)
    )


def run_node(bucket: DevBucket, count: int, *settings: str) -> Figures:
    """Index the *count* documents of *bucket* with a real node, into a Redis of its own."""
    with EmbeddedRedis() as store:
        return run_node_into(store.url, bucket, count, *settings)


def run_node_into(store_url: str, bucket: DevBucket, count: int, *settings: str) -> Figures:
    """Index the *count* documents of *bucket* with a real node; *settings* are lines of its configuration."""
    warm_memory(count)
    before_s = _redis_cpu_s(store_url)
    with tempfile.TemporaryDirectory() as folder, running_node(folder, store_url, bucket, *settings) as node:
        seconds = _await_stable(store_url, bucket.high_seqnos())
        return _figures(node.pid, _redis_cpu_s(store_url) - before_s, count, seconds)


def run_plain(bucket: DevBucket, count: int) -> Figures:
    """Index the first *count* documents of *bucket* the plain way, in this process."""
    with EmbeddedRedis() as store:
        source = SourceSettings(bucket.url, bucket.user, bucket.password)
        before_s = sum(os.times()[:2])
        with closing(open_feed(source, "plain", describe(source).uuid)) as feed:
            seconds = index_all(feed, store.url, N_VBUCKETS, count)
        own_us = (sum(os.times()[:2]) - before_s) / count * 1e6
        redis_us = _redis_cpu_s(store.url) / count * 1e6
        return Figures(count / seconds, own_us + redis_us, redis_us, {"plain": own_us}, {})


def _await_stable(url: str, high_seqnos: Sequence[int]) -> float:
    """Seconds from the first move of the stable clock until it has reached *high_seqnos*."""
    deadline = time.monotonic() + DEADLINE_S
    started = 0.0
    with closing(open_reader(IndexSettings("channels", url))) as reader:
        while time.monotonic() < deadline:
            time.sleep(POLL_S)
            stable = _stable(reader)
            started = started or (time.perf_counter() if any(stable) else 0.0)
            if started and all(seqno >= high for seqno, high in zip(stable, high_seqnos, strict=True)):
                return time.perf_counter() - started
    raise TimeoutError(f"the index was not complete after {DEADLINE_S:.0f} s")


def _stable(reader: IndexReader) -> Sequence[int]:
    """Stable seqnos by vbucket; none before the node has made the index."""
    try:
        return reader.stable_view().stable
    except ChannelIndexError:
        return ()


def _figures(pid: int, redis_s: float, count: int, seconds: float) -> Figures:
    supervisor = psutil.Process(pid)
    us_by_role: dict[str, float] = {}
    memory_mib: dict[str, float] = {}
    for process in [supervisor, *supervisor.children()]:
        role = "supervisor" if process == supervisor else process.name()
        us_by_role[role] = us_by_role.get(role, 0.0) + sum(process.cpu_times()[:2]) / count * 1e6
        memory_mib[role] = max(memory_mib.get(role, 0.0), process.memory_full_info().uss / 2**20)
    redis_us = redis_s / count * 1e6
    assert "feed_worker" in us_by_role, "processes bear the names of their roles"
    return Figures(count / seconds, sum(us_by_role.values()) + redis_us, redis_us, us_by_role, memory_mib)


def _redis_cpu_s(url: str) -> float:
    with redis.Redis.from_url(url) as client:
        return redis_cpu_s(client)


def median(runs: Sequence[Figures]) -> Figures:
    """The run in the middle, by its CPU per document."""
    assert runs
    return sorted(runs, key=lambda run: run.cpu_us)[len(runs) // 2]


def table_of(found: Sequence[CaseFigures], title: str) -> Table:
    """A row for each case: its run in the middle."""
    ours = ("case", "documents/s", "CPU µs", "feed workers", "batch writers", "others", "Redis", "most MiB")
    table = Table(*ours, "plain documents/s", "plain CPU µs", "CPU ratio", title=title)
    for each in found:
        run = median(each.node)
        shown = [run.us_by_role.get(role, 0.0) for role in SHOWN]
        others_us = max(
            0.0, run.cpu_us - run.redis_us - sum(shown)
        )  # below 0 where it is less than a tick of the clock
        us = (run.cpu_us, *shown, others_us, run.redis_us)
        cells = [f"{run.documents_per_s:,.0f}", *(f"{part:.2f}" for part in us), f"{max(run.memory_mib.values()):.0f}"]
        if each.plain:
            plain = median(each.plain)
            cells += [f"{plain.documents_per_s:,.0f}", f"{plain.cpu_us:.1f}", f"{each.cpu_ratio:.1f}"]
        table.add_row(each.case, *cells)
    return table


def results_of(found: Sequence[CaseFigures]) -> dict[str, Any]:
    """The figures of every run as they are, by case: what is kept, and what `benchmarks.compare` reads."""
    return {
        each.case: {"node": [run._asdict() for run in each.node], "plain": [run._asdict() for run in each.plain]}
        for each in found
    }


def main() -> None:
    """Measure, print the table, keep the figures in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--plain-documents", type=int, default=PLAIN_DOCUMENTS, help="most of them the plain way")
    parser.add_argument("--no-plain", action="store_true", help="leave out the comparison")
    args = parser.parse_args()
    cases = [case for case in CASES if not args.case or case.name in args.case]
    plain_count = 0 if args.no_plain else min(args.documents, args.plain_documents)
    found = [measure(case, args.documents, args.runs, plain_count) for case in cases]
    kept = {"documents": args.documents, "runs": args.runs, "cases": results_of(found)}
    title = f"{args.documents:,} documents"
    if args.documents > FEW_DOCUMENTS:
        few = measure_start()
        kept["start"], title = few._asdict(), f"{title}, without starting"
        found = [each.without_start(args.documents, few) for each in found]
    Console(width=None if sys.stdout.isatty() else 160).print(table_of(found, title))
    print(f"figures of every run: {write_results('throughput', kept)}")
