"""All that `make bench` measures: one table after the other, and one JSON file with the machine and the commit.

    make bench [BENCH_ARGS="--documents 1000000 --runs 3 --only throughput --only freshness …"]

throughput: a whole node, four shapes of channels, documents/s and CPU by process. stages: CPU of each stage, with and
without the compiled kernel. growth: the same with 64 and 1,024 vbuckets. ring: against `multiprocessing.Queue`.
freshness: cost and latency at steady rates. memory: bytes in Redis per entry. serve: the changes feed, for thousands of
clients. removal: what a compactor that is always at work takes from writers, and how long Redis is held by it.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import freshness, memory, removal_writers, ring, serve, stages, throughput
from benchmarks.cases import CASES
from benchmarks.machine import describe, write_results
from channelindex import kernel

GROWTH_VBUCKETS = (64, 1024)


class Sizes(NamedTuple):
    """How much is measured: documents of a node and of a stage, its runs, seconds at a rate, entries, followers."""

    documents: int = 100_000
    stage_documents: int = 50_000
    runs: int = 3
    seconds: float = 10.0
    entries: int = 1_000_000
    followers: int = 10_000


Part = Callable[[Sizes, Console], Any]
"""Measures, prints its table, returns what is kept."""


def measure_throughput(sizes: Sizes, console: Console) -> Any:
    """The median of the runs of each case, by the documents per second."""
    table = Table("case", "documents/s", "CPU µs", "feed", "writers", "Redis", "most MiB", title="a node")
    found: dict[str, list[dict[str, Any]]] = {}
    for case in CASES:
        runs = [throughput.run_node(case, sizes.documents) for _ in range(sizes.runs)]
        found[case.name] = [run._asdict() for run in runs]
        run = sorted(runs, key=lambda run: run.documents_per_s)[len(runs) // 2]
        us = (run.cpu_us, run.feed_us, run.writer_us, run.redis_us)
        most = max(run.memory_mib.values())
        table.add_row(case.name, f"{run.documents_per_s:,.0f}", *(f"{each:.1f}" for each in us), f"{most:.0f}")
    console.print(table)
    return found


def measure_stages(sizes: Sizes, console: Console) -> Any:
    """Each stage of each case, with the kernel if there is one, and without."""
    found = {}
    for mode in (kernel.AUTO, kernel.OFF):
        kernel.choose(mode)
        by_case = [stages.measure(case, sizes.stage_documents) for case in CASES]
        console.print(stages.table_of(by_case, f"stages, CPU in µs per document, kernel: {kernel.description()}"))
        found[kernel.description()] = {each.case: each.us_by_stage for each in by_case}
    kernel.choose(kernel.AUTO)
    return found


def measure_growth(sizes: Sizes, console: Console) -> Any:
    """One case with few and with many vbuckets."""
    by_vbuckets = {n: stages.measure(CASES[1], sizes.stage_documents, n) for n in GROWTH_VBUCKETS}
    for n_vbuckets, found in by_vbuckets.items():
        console.print(stages.table_of([found], f"{n_vbuckets} vbuckets, CPU in µs per document"))
    return {n: each.us_by_stage for n, each in by_vbuckets.items()}


def measure_ring(_sizes: Sizes, console: Console) -> Any:
    """Frames per second by size: (ring, queue)."""
    table, found = Table("frame bytes", "ring/s", "queue/s", "ratio", title="ring against multiprocessing.Queue"), {}
    for size in ring.FRAME_BYTES:
        payload = os.urandom(size)
        rates = tuple(ring.frames_per_s(each, payload, 1.0) for each in (ring.seconds_by_ring, ring.seconds_by_queue))
        table.add_row(f"{size:,}", *(f"{rate:,.0f}" for rate in rates), f"{rates[0] / rates[1]:.1f}")
        found[size] = rates
    console.print(table)
    return found


def measure_freshness(sizes: Sizes, console: Console) -> Any:
    """Idle, and at steady rates."""
    found = [freshness.measure(rate, sizes.seconds) for rate in freshness.RATES]
    console.print(freshness.table_of(found))
    return [each._asdict() for each in found]


def measure_memory(sizes: Sizes, console: Console) -> Any:
    """One entry per append, the most expensive way."""
    found = memory.measure(sizes.entries, max(1, sizes.entries // 10), 65_536, "packed")
    console.print(f"Redis: {found.bytes_per_entry:.0f} bytes per entry, {sizes.entries:,} entries, one per append")
    return found._asdict()


def measure_serve(sizes: Sizes, console: Console) -> Any:
    """What followers over HTTP cost one service, and how soon they are told."""
    load = serve.Load(sizes.followers, seconds=sizes.seconds)
    figures = [figure for name in serve.PARTS for figure in serve.measure(name, load)]
    console.print(serve.table_of(figures))
    return [each._asdict() for each in figures]


def measure_removal(sizes: Sizes, console: Console) -> Any:
    """Pairs of nodes that compact and that do not, in turn."""
    return removal_writers.measure(sizes.stage_documents // 5, sizes.runs, console)


PARTS: Mapping[str, Part] = {
    "throughput": measure_throughput,
    "stages": measure_stages,
    "growth": measure_growth,
    "ring": measure_ring,
    "freshness": measure_freshness,
    "memory": measure_memory,
    "serve": measure_serve,
    "removal": measure_removal,
}


def run(names: list[str], sizes: Sizes, console: Console) -> dict[str, Any]:
    """Measure the parts of these *names*; what was found, by name."""
    return {"sizes": sizes._asdict(), **{name: PARTS[name](sizes, console) for name in names}}


def main() -> None:
    """Measure, print the tables, keep the figures in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    for field, default in Sizes()._asdict().items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--only", action="append", choices=list(PARTS))
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    machine = describe()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items() if name != "libraries"))
    found = run(args.only or list(PARTS), Sizes(*(getattr(args, field) for field in Sizes._fields)), console)
    print(f"figures of every run: {write_results('suite', found)}")


if __name__ == "__main__":
    main()
