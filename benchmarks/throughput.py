"""Documents per second and CPU per document, from a bucket's feed to the stable clock, for four shapes of channels.

    python -m benchmarks [--documents 100000] [--runs 3] [--case c100 …] [--no-plain]

A node with 2 feed workers and 2 batch writers, a private Redis and a dev bucket share the machine. CPU is that of all
the node's processes and of Redis; the dev bucket's is not counted, though it takes its part of the cores. Each run
is followed by one of `benchmarks.plain` on the same documents; the ratios are within one run of this command.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import psutil
import redis
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES, N_VBUCKETS, Case, documents
from benchmarks.machine import write_results
from benchmarks.node import redis_cpu_s, running_node
from benchmarks.plain import index_all
from channelindex.errors import ChannelIndexError
from channelindex.settings import IndexSettings, SourceSettings
from channelindex.stores import open_reader
from channelindex.stores.base import IndexReader
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket
from workers.pipeline.source import describe, open_feed

POLL_S = 0.02
"""Of the stable view: that costs Redis 10 µs each time, which count as the node's."""
DEADLINE_S = 900.0


class Figures(NamedTuple):
    """One run. Memory is the unique part (USS) of each process, in MiB."""

    documents_per_s: float
    cpu_us: float
    feed_us: float
    writer_us: float
    redis_us: float
    memory_mib: dict[str, float]


def run_node(case: Case, count: int) -> Figures:
    """Index *count* documents of *case* with a real node."""
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedRedis() as store,
        _bucket(case, count) as bucket,
        running_node(folder, store.url, bucket) as node,
    ):
        seconds = _await_stable(store.url, bucket.high_seqnos())
        return _figures(node.pid, store.url, count, seconds)


def run_plain(case: Case, count: int) -> Figures:
    """Index the same documents the plain way, in this process."""
    with EmbeddedRedis() as store, _bucket(case, count) as bucket:
        source = SourceSettings(bucket.url, bucket.user, bucket.password)
        before_s = sum(os.times()[:2])
        with closing(open_feed(source, "plain", describe(source).uuid)) as feed:
            seconds = index_all(feed, store.url, N_VBUCKETS, count)
        own_us = (sum(os.times()[:2]) - before_s) / count * 1e6
        redis_us = _redis_cpu_s(store.url) / count * 1e6
        return Figures(count / seconds, own_us + redis_us, own_us, 0.0, redis_us, {})


def _bucket(case: Case, count: int) -> DevBucket:
    return DevBucket(load=lambda bucket: bucket.bulk_load(documents(case, count)))


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


def _figures(pid: int, url: str, count: int, seconds: float) -> Figures:
    supervisor = psutil.Process(pid)
    cpu_s_by_role: dict[str, float] = {}
    memory_mib: dict[str, float] = {}
    for process in [supervisor, *supervisor.children()]:
        role = "supervisor" if process == supervisor else process.name()
        cpu_s_by_role[role] = cpu_s_by_role.get(role, 0.0) + sum(process.cpu_times()[:2])
        memory_mib[role] = max(memory_mib.get(role, 0.0), process.memory_full_info().uss / 2**20)
    redis_s = _redis_cpu_s(url)
    return Figures(
        count / seconds,
        (sum(cpu_s_by_role.values()) + redis_s) / count * 1e6,
        cpu_s_by_role.get("feed_worker", 0.0) / count * 1e6,
        cpu_s_by_role.get("batch_writer", 0.0) / count * 1e6,
        redis_s / count * 1e6,
        memory_mib,
    )


def _redis_cpu_s(url: str) -> float:
    with redis.Redis.from_url(url) as client:
        return redis_cpu_s(client)


def _median(runs: Sequence[Figures]) -> Figures:
    return sorted(runs, key=lambda run: run.documents_per_s)[len(runs) // 2]


def main() -> None:
    """Measure, print the table, keep the figures in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--no-plain", action="store_true", help="leave out the comparison")
    args = parser.parse_args()
    table = Table(title=f"{args.documents:,} documents, medians of {args.runs} runs; CPU in µs per document")
    for heading in (
        "case",
        "documents/s",
        "CPU",
        "feed",
        "writers",
        "Redis",
        "plain documents/s",
        "plain CPU",
        "CPU ratio",
    ):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    results: dict[str, Any] = {"documents": args.documents, "runs": args.runs, "cases": {}}
    for case in CASES:
        if args.case and case.name not in args.case:
            continue
        ours: list[Figures] = []
        plain: list[Figures] = []
        for _ in range(args.runs):
            ours.append(run_node(case, args.documents))
            if not args.no_plain:
                plain.append(run_plain(case, args.documents))
        table.add_row(case.name, *_cells(_median(ours), _median(plain) if plain else None))
        results["cases"][case.name] = {
            "node": [run._asdict() for run in ours],
            "plain": [run._asdict() for run in plain],
            "median_cpu_us": statistics.median(run.cpu_us for run in ours),
        }
    Console().print(table)
    print(f"figures of every run: {write_results('throughput', results)}")


def _cells(ours: Figures, plain: Figures | None) -> list[str]:
    cells = [f"{ours.documents_per_s:,.0f}"]
    cells += [f"{us:.1f}" for us in (ours.cpu_us, ours.feed_us, ours.writer_us, ours.redis_us)]
    if plain is None:
        return [*cells, "", "", ""]
    return [*cells, f"{plain.documents_per_s:,.0f}", f"{plain.cpu_us:.1f}", f"{plain.cpu_us / ours.cpu_us:.1f}"]
