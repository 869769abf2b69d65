"""Documents per second with 1 to 4 feed workers and 1 to 4 batch writers: what `channelindex tune` calculates.

    python -m benchmarks.counts [--documents 200000] [--case c1000] [--most 4]

The dev bucket and Redis take their part of the cores, too: on two of them more workers bring little.
"""

import argparse
import sys
from collections.abc import Mapping
from itertools import product

from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES, Case
from benchmarks.machine import write_results
from benchmarks.throughput import Figures, loaded, run_node

MOST = 4


def measure(case: Case, count: int, most: int = MOST) -> dict[tuple[int, int], Figures]:
    """One run of each of one to *most* (feed workers, batch writers), all with the same documents."""
    assert most > 0
    with loaded(case, count) as bucket:
        return {
            (feeds, writers): run_node(
                bucket, count, f"workers.feed_workers = {feeds}", f"workers.batch_writers = {writers}"
            )
            for feeds, writers in product(range(1, most + 1), repeat=2)
        }


def table_of(case: str, found: Mapping[tuple[int, int], Figures]) -> Table:
    """A row for each number of feed workers, a column for each of batch writers."""
    numbers = range(1, max(feeds for feeds, _ in found) + 1)
    title = f"{case}: documents/s, and CPU in µs per document with starting"
    table = Table("feed workers", *(f"batch writers: {writers}" for writers in numbers), title=title)
    for feeds in numbers:
        runs = [found[feeds, writers] for writers in numbers]
        table.add_row(str(feeds), *(f"{run.documents_per_s:,.0f} ({run.cpu_us:.1f})" for run in runs))
    return table


def results_of(found: Mapping[tuple[int, int], Figures]) -> dict[str, object]:
    """The figures of every run, by "feed workers, batch writers"."""
    return {f"{feeds}, {writers}": run._asdict() for (feeds, writers), run in found.items()}


def main() -> None:
    """Measure, print the table, keep the figures in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts", description=__doc__)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--case", choices=[case.name for case in CASES], default="c1000")
    parser.add_argument("--most", type=int, default=MOST)
    args = parser.parse_args()
    (case,) = (case for case in CASES if case.name == args.case)
    found = measure(case, args.documents, args.most)
    Console(width=None if sys.stdout.isatty() else 140).print(table_of(case.name, found))
    print(f"figures of every run: {write_results('counts', results_of(found))}")


if __name__ == "__main__":
    main()
