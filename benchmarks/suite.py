"""All that `make bench` measures: one table after the other, and one JSON file with the machine and the commit.

    make bench [BENCH_ARGS="--documents 1000000 --runs 3 --only throughput --only freshness …"]

throughput: a whole node, four shapes of channels, documents/s and CPU by process, and the plain way. stages: CPU of
each stage, with and without the compiled kernel. growth: with more vbuckets, entries, larger documents. counts: one to
four workers of each kind. ring, store, dcp_reader: these alone, against what others have. freshness: cost and latency
at steady rates. memory: bytes in Redis per entry. serve: the changes feed, for thousands of clients. removal: what a
compactor that is always at work takes from writers, and how long Redis is held by it.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks import (
    counts,
    dcp_reader,
    freshness,
    growth,
    memory,
    removal_writers,
    ring,
    serve,
    stages,
    store,
    throughput,
)
from benchmarks.cases import CASES
from benchmarks.machine import describe, write_results
from channelindex import kernel


class Sizes(NamedTuple):
    """How much is measured.

    Documents of a node in each case; of a node of which there are many runs, and of one part alone; runs; seconds at a
    rate and of a ring; entries whose memory is measured, and that a node finds; followers.
    """

    documents: int = 1_000_000
    stage_documents: int = 200_000
    runs: int = 3
    seconds: float = 10.0
    entries: int = 1_000_000
    prior_entries: int = 10_000_000
    followers: int = 10_000


Part = Callable[[Sizes, Console], Any]
"""Measures, prints its table, returns what is kept."""


def measure_throughput(sizes: Sizes, console: Console) -> Any:
    """Each case end to end, and the plain way."""
    few, n_plain = throughput.measure_start(), min(sizes.documents, throughput.PLAIN_DOCUMENTS)
    found = [throughput.measure(case, sizes.documents, sizes.runs, n_plain) for case in CASES]
    shown = [each.without_start(sizes.documents, few) for each in found]
    console.print(throughput.table_of(shown, f"a node, {sizes.documents:,} documents, without starting"))
    return {"start": few._asdict(), "cases": throughput.results_of(found)}


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
    """Vbuckets, entries that are there, documents."""
    return growth.measure(growth.NAMES, sizes.stage_documents, sizes.runs, sizes.prior_entries, console)


def measure_counts(sizes: Sizes, console: Console) -> Any:
    """Numbers of workers."""
    found = counts.measure(CASES[1], sizes.stage_documents)
    console.print(counts.table_of(CASES[1].name, found))
    return counts.results_of(found)


def measure_ring(sizes: Sizes, console: Console) -> Any:
    """Frames per second by size and carrier."""
    found = ring.measure(sizes.seconds / 10)
    console.print(ring.table_of(found))
    return {str(size): rates for size, rates in found.items()}


def measure_store(sizes: Sizes, console: Console) -> Any:
    """Appends, ours and those of redis-benchmark."""
    found = [costs for n_entries in store.ENTRIES for costs in store.measure(n_entries, sizes.stage_documents)]
    console.print(store.table_of(found))
    return [each._asdict() for each in found]


def measure_dcp_reader(sizes: Sizes, console: Console) -> Any:
    """The feed, and a reader that counts bytes."""
    found = dcp_reader.measure(CASES[0], sizes.stage_documents)
    console.print(dcp_reader.table_of(found))
    return [each._asdict() for each in found]


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
    return removal_writers.measure(sizes.stage_documents // 20, sizes.runs, console)


PARTS: Mapping[str, Part] = {
    "throughput": measure_throughput,
    "stages": measure_stages,
    "growth": measure_growth,
    "counts": measure_counts,
    "ring": measure_ring,
    "store": measure_store,
    "dcp_reader": measure_dcp_reader,
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
