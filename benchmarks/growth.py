"""What a document costs when something is larger: the vbuckets, the index, or the documents.

    python -m benchmarks.growth [--documents 300000] [--pairs 1] [--prior 10000000] [--only vbuckets --only entries …]

vbuckets: a whole node with 64 and with 1,024. entries: one that begins with an empty index, and one that finds a large
one, of 1,000 channels and of 100,000; without compactors, which look at what is there at a pace of their own, whatever
comes. Both in turn, pair by pair, in µs of CPU per document of node and Redis, without starting. documents: small and
large ones, inline and with `_sync` in an xattr, stage by stage.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import stages
from benchmarks.cases import CASES, N_VBUCKETS, Case
from benchmarks.machine import write_results
from benchmarks.prior import make_index, seqno_of
from benchmarks.throughput import FEW_DOCUMENTS, Figures, loaded, run_node, run_node_into
from channelindex.settings import SourceSettings
from devbucket.embedded_redis import EmbeddedRedis
from workers.pipeline.source import describe

NAMES = ("vbuckets", "entries", "documents")
FEW_VBUCKETS = 64
C1000, C100000 = CASES[1], CASES[2]
DOCUMENTS = (
    C1000._replace(name="200 B", document_bytes=200),
    C1000._replace(name="700 B"),
    C1000._replace(name="20 KB", document_bytes=20_000),
    C1000._replace(name="700 B, xattr", in_xattr=True),
    C1000._replace(name="20 KB, xattr", document_bytes=20_000, in_xattr=True),
)
LARGE_SHARE = 5
"""Large documents are measured with so many times fewer: a bucket keeps all of them in memory."""


class Pair(NamedTuple):
    """Two runs, one after the other: of a small one and of a large one."""

    small: Figures
    large: Figures

    @property
    def ratio(self) -> float:
        """CPU per document of the large one in that of the small one."""
        return self.large.cpu_us / self.small.cpu_us


Run = Callable[[int], Figures]
"""Indexes so many documents."""


def of_vbuckets(count: int, n_pairs: int) -> list[Pair]:
    """A node with few and with many vbuckets."""

    def run_of(n_vbuckets: int) -> Run:
        def run(n_documents: int) -> Figures:
            with loaded(C1000, n_documents, n_vbuckets) as bucket:
                return run_node(bucket, n_documents)

        return run

    return _pairs(run_of(FEW_VBUCKETS), run_of(N_VBUCKETS), count, n_pairs)


def of_entries(case: Case, count: int, n_pairs: int, n_entries: int, n_least: int = 0) -> list[Pair]:
    """A node that finds *n_least* entries in its index, and one that finds *n_entries*."""
    above = seqno_of(n_entries)

    def run_of(n_prior: int) -> Run:
        def run(n_documents: int) -> Figures:
            with EmbeddedRedis() as store, loaded(case, n_documents, above=above) as bucket:
                source = describe(SourceSettings(bucket.url, bucket.user, bucket.password))
                make_index(store.url, source.uuid, case, n_prior, above)
                return run_node_into(store.url, bucket, n_documents, "workers.compactors = 0")

        return run

    return _pairs(run_of(n_least), run_of(n_entries), count, n_pairs)


def _pairs(small: Run, large: Run, count: int, n_pairs: int) -> list[Pair]:
    """Both in turn; what starting costs is taken off each."""
    few = small(FEW_DOCUMENTS), large(FEW_DOCUMENTS)
    assert n_pairs > 0
    return [
        Pair(*(run(count).without_start(count, start) for run, start in zip((small, large), few, strict=True)))
        for _ in range(n_pairs)
    ]


def of_documents(count: int) -> list[stages.Stages]:
    """Each stage, of small and large documents."""
    return [stages.measure(case, count // LARGE_SHARE if case.document_bytes > 10_000 else count) for case in DOCUMENTS]


def table_of(title: str, pairs: Sequence[Pair]) -> Table:
    """A row for each pair, and the median."""
    headings = ("", "small: CPU µs", "feed, writers, Redis", "large: CPU µs", "feed, writers, Redis", "large/small")
    table = Table(*headings, title=title)
    for number, pair in enumerate(pairs, 1):
        table.add_row(f"pair {number}", *_cells(pair.small), *_cells(pair.large), f"{pair.ratio:.2f}")
    table.add_row("median", "", "", "", "", f"{statistics.median(pair.ratio for pair in pairs):.2f}")
    return table


def _cells(run: Figures) -> tuple[str, str]:
    parts = (run.us_by_role["feed_worker"], run.us_by_role["batch_writer"], run.redis_us)
    return f"{run.cpu_us:.2f}", ", ".join(f"{us:.2f}" for us in parts)


def measure(
    names: Sequence[str], count: int, n_pairs: int, n_entries: int, console: Console, n_least: int = 0
) -> dict[str, object]:
    """Measure what is named, print the tables; the figures of every run."""
    found: dict[str, list[Pair]] = {}
    if "vbuckets" in names:
        found[f"{FEW_VBUCKETS} and {N_VBUCKETS} vbuckets"] = of_vbuckets(count, n_pairs)
    for case in (C1000, C100000) if "entries" in names else ():
        found[f"{case.name}: {n_least:,} and {n_entries:,} entries"] = of_entries(
            case, count, n_pairs, n_entries, n_least
        )
    for title, pairs in found.items():
        console.print(table_of(title, pairs))
    kept: dict[str, object] = {
        title: [{"small": pair.small._asdict(), "large": pair.large._asdict()} for pair in pairs]
        for title, pairs in found.items()
    }
    if "documents" in names:
        by_size = of_documents(count)
        console.print(stages.table_of(by_size, "documents, CPU in µs of each"))
        kept["documents"] = {each.case: each.us_by_stage for each in by_size}
    return kept


def main() -> None:
    """Measure, print the tables, keep the figures in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--documents", type=int, default=300_000)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--prior", type=int, default=10_000_000)
    parser.add_argument("--least", type=int, default=0, help="entries of the smaller index")
    parser.add_argument("--only", action="append", choices=NAMES)
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    found = measure(args.only or NAMES, args.documents, args.pairs, args.prior, console, args.least)
    print(f"figures of every run: {write_results('growth', found)}")


if __name__ == "__main__":
    main()
