"""`make fuzz`: as many cases as asked for. Prints how to repeat the case that failed."""

import argparse
import resource
import signal
import sys
import time
from typing import Protocol

from tests.fuzz.documents import DocumentTarget
from tests.fuzz.frames import FrameTarget

_BATCH = 1000
_BATCH_TIMEOUT_S = 60.0
_MOST_GROWTH_KIB = 150 * 1024
"""Of the process' memory. The largest frame that is held has 22 MiB."""


class Target(Protocol):
    """What a run needs."""

    n_rejected: int

    def case(self, number: int) -> object:
        """The case, for print."""
        ...

    def run(self, number: int) -> None:
        """Run it."""
        ...


def run(name: str, target: Target, first: int, count: int) -> bool:
    """Run *count* cases; whether all went well."""
    started, before_kib = time.monotonic(), _memory_kib()
    for number in range(first, first + count):
        if (number - first) % _BATCH == 0:
            signal.setitimer(signal.ITIMER_REAL, _BATCH_TIMEOUT_S)  # its signal ends the process: something hangs
        try:
            target.run(number)
        except Exception as error:
            print(f"{name} case {number}: {type(error).__name__}: {error}\n{target.case(number)!r}", file=sys.stderr)
            return False
    signal.setitimer(signal.ITIMER_REAL, 0)
    growth_kib = _memory_kib() - before_kib
    seconds = time.monotonic() - started
    print(f"{count} {name}, {target.n_rejected} rejected, {seconds:.0f} s, {growth_kib / 1024:.0f} MiB more memory")
    return growth_kib < _MOST_GROWTH_KIB


def _memory_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=0)
    parser.add_argument("--documents", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    frames_ok = run("mutated frames", FrameTarget(args.seed), args.first, args.frames)
    documents_ok = run("mutated documents", DocumentTarget(args.seed), args.first, args.documents)
    return 0 if frames_ok and documents_ok else 1


if __name__ == "__main__":
    sys.exit(main())
