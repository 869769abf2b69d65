"""Apply each mutation to a copy of the tree and see whether the fast tests that are named with it notice.

    python -m tests.mutants [--only TEXT] [--jobs 2]

Ends with 1 where one survives, and with 2 where one does not apply any more: its line has changed, and the mutation has
to follow it. Nothing outside a temporary folder is written.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from channelindex import kernel
from tests.mutants.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("channelindex", "coordinator", "devbucket", "workers", "tests", "pyproject.toml")
LONGEST_RUN_S = 120
"""A mutant that makes a test wait for ever is found as well."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run all mutants, or those that are asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", default="", help="those with this text in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many run at once")
    args = parser.parse_args(argv)
    chosen = [mutation for mutation in MUTATIONS if args.only in mutation.name]
    stale = stale_mutations(chosen)
    for mutation in stale:
        print(f"does not apply: {mutation.name}")
    if stale or not chosen:
        print("there is nothing to run")
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, _trees(Path(folder), args.jobs) as trees:
        tests = sorted({test for mutation in chosen for test in mutation.tests})
        if not _passes(trees, None, tests):
            print("the tests fail without any mutation: see to that first")
            return 2
        survivors = _run_all(chosen, trees, args.jobs)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed in {time.monotonic() - began:.0f} s")
    return 1 if survivors else 0


def stale_mutations(mutations: Sequence[Mutation]) -> list[Mutation]:
    """Return those whose line is not there any more, or more than once."""
    return [mutation for mutation in mutations if (ROOT / mutation.file).read_text().count(mutation.old) != 1]


def _run_all(chosen: Sequence[Mutation], trees: SimpleQueue[Path], jobs: int) -> list[Mutation]:
    survivors = []
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = pool.map(lambda mutation: _passes(trees, mutation, mutation.tests), chosen)
        for mutation, survived in zip(chosen, outcomes, strict=True):
            print(f"{'SURVIVED' if survived else 'killed  '} {mutation.name}", flush=True)
            if survived:
                survivors.append(mutation)
    return survivors


@contextmanager
def _trees(folder: Path, n: int) -> Iterator[SimpleQueue[Path]]:
    """*n* copies of what the tests need, to be taken by one run at a time."""
    trees: SimpleQueue[Path] = SimpleQueue()
    for number in range(n):
        tree = folder / str(number)
        tree.mkdir()
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, tree / name)
        trees.put(tree)
    yield trees


def _passes(trees: SimpleQueue[Path], mutation: Mutation | None, tests: Sequence[str]) -> bool:
    """Whether *tests* pass in a tree with *mutation* in it."""
    tree = trees.get()
    file = tree / (mutation.file if mutation else "pyproject.toml")
    original = file.read_text()
    try:
        if mutation:
            file.write_text(original.replace(mutation.old, mutation.new))
        return _pytest(tree, tests) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        file.write_text(original)
        trees.put(tree)


def _pytest(tree: Path, tests: Sequence[str]) -> int:
    """Run *tests* in *tree*; the exit code. No byte code is kept: a mutant may be as old and as long as what it was."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment[kernel.VARIABLE] = kernel.OFF  # it would do in C what the mutation changed
    done = subprocess.run(
        command, cwd=tree, env=environment, check=False, capture_output=True, text=True, timeout=LONGEST_RUN_S
    )
    if done.returncode not in {0, 1, 2}:  # 2: a mutant that cannot even be imported
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
