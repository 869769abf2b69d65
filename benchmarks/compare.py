"""Two commits in turn on this machine: documents per second and CPU per document, and their ratios pair by pair.

    make bench-compare A=<commit> B=<commit> [BENCH_ARGS="--pairs 3 --documents 100000 --case c100 …"]

Each commit is checked out in a work tree of its own, set up with `make dev`, and measured by its own
`python -m benchmarks`. The two take turns, so that what else the machine does meets both. A ratio is of the two runs of
one pair; the median of the ratios is what to quote. CPU is of the node and of Redis, without what starting costs: each
commit also indexes a thousand documents, and only what more documents cost beyond that is counted. With
CHANNELINDEX_WORKERS_KERNEL=off in the environment, both go without the compiled kernel.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES
from benchmarks.machine import ROOT, warm_memory, write_results
from benchmarks.throughput import FEW_DOCUMENTS, beyond_start
from channelindex import kernel


class Run(NamedTuple):
    """One run of one commit."""

    documents_per_s: float
    cpu_us: float
    redis_us: float

    def without_start(self, n_documents: int, few: "Run") -> "Run":
        """The same with the CPU per document beyond FEW_DOCUMENTS, of which *few* is a run."""
        return Run(
            self.documents_per_s,
            beyond_start(self.cpu_us, n_documents, few.cpu_us),
            beyond_start(self.redis_us, n_documents, few.redis_us),
        )


@contextmanager
def work_tree(commit: str) -> Iterator[Path]:
    """A work tree of *commit*, ready to run; removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", tree, commit], check=True)
        try:
            subprocess.run(["make", "-C", tree, "dev"], check=True)
            yield tree
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)


def measure(tree: Path, case: str, n_documents: int) -> Run:
    """Run the benchmark of the commit in *tree* once."""
    results = tree / "benchmarks" / "results"
    before = set(results.glob("throughput-*.json"))
    python = tree / ".venv" / "bin" / "python"
    options = ["--documents", str(n_documents), "--runs", "1", "--case", case, "--no-plain"]
    warm_memory(n_documents)  # for both: an older commit does not do so
    command: list[str | Path] = [python, "-m", "benchmarks", *options]
    subprocess.run(command, cwd=tree, env=_environment_of(tree), check=True, stdout=subprocess.DEVNULL)
    (path,) = set(results.glob("throughput-*.json")) - before
    (run,) = json.loads(path.read_bytes())["cases"][case]["node"]
    path.unlink()  # names are by the second
    return Run(run["documents_per_s"], run["cpu_us"], run["redis_us"])


def _environment_of(tree: Path) -> dict[str, str]:
    """Ours, without the setting of the kernel where the commit in *tree* has none: it would refuse to start."""
    assert tree.is_dir()
    knows_kernel = (tree / "channelindex" / "kernel.py").exists()
    return {name: value for name, value in os.environ.items() if knows_kernel or name != kernel.VARIABLE}


def table_of(case: str, pairs: Sequence[tuple[Run, Run]]) -> Table:
    """The pairs, and the medians of their ratios."""
    table = Table(
        "pair", "A documents/s", "B documents/s", "B/A", "A CPU µs", "B CPU µs", "A/B", "Redis A/B", title=case
    )
    for number, (a, b) in enumerate(pairs, 1):
        table.add_row(str(number), *_cells(a, b))
    speed = statistics.median(b.documents_per_s / a.documents_per_s for a, b in pairs)
    cpu = statistics.median(a.cpu_us / b.cpu_us for a, b in pairs)
    table.add_row("median", "", "", f"{speed:.2f}", "", "", f"{cpu:.2f}", "", end_section=True)
    return table


def _cells(a: Run, b: Run) -> list[str]:
    speed, cpu = b.documents_per_s / a.documents_per_s, a.cpu_us / b.cpu_us
    return [
        *(f"{a.documents_per_s:,.0f}", f"{b.documents_per_s:,.0f}", f"{speed:.2f}"),
        *(f"{a.cpu_us:.1f}", f"{b.cpu_us:.1f}", f"{cpu:.2f}", f"{a.redis_us:.1f}, {b.redis_us:.1f}"),
    ]


def main() -> None:
    """Measure all cases, print a table for each, keep the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("a", help="a commit")
    parser.add_argument("b", help="another")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    found: dict[str, list[tuple[Run, Run]]] = {}
    with work_tree(args.a) as a, work_tree(args.b) as b:
        few = {tree: measure(tree, CASES[0].name, FEW_DOCUMENTS) for tree in (a, b)}

        def run(tree: Path, case: str) -> Run:
            return measure(tree, case, args.documents).without_start(args.documents, few[tree])

        for case in args.case or [case.name for case in CASES]:
            found[case] = [(run(a, case), run(b, case)) for _ in range(args.pairs)]
            console.print(table_of(case, found[case]))
    pairs = {case: [{"a": a._asdict(), "b": b._asdict()} for a, b in runs] for case, runs in found.items()}
    print(f"figures of every run: {write_results('compare', {'a': args.a, 'b': args.b, 'pairs': pairs})}")


if __name__ == "__main__":
    main()
