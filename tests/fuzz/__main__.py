"""`make fuzz`: as many cases as asked for. Prints how to repeat the case that failed."""

import argparse
import resource
import signal
import sys
import time
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from typing import Protocol

from tests.fuzz.documents import DocumentTarget
from tests.fuzz.frames import FrameTarget
from tests.fuzz.kernel import DOCUMENTS, KernelDocumentTarget, KernelFrameTarget
from tests.fuzz.kernel_writer import KernelWriterTarget

_BATCH = 1000
_BATCH_TIMEOUT_S = 60.0
_MOST_GROWTH_KIB = 150 * 1024
"""Of the process' memory. The largest frame that is held has 22 MiB."""


class Target(Protocol):
    """What a run needs."""

    n_rejected: int

    def __init__(self, seed: int) -> None: ...

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
            signal.setitimer(signal.ITIMER_PROF, _BATCH_TIMEOUT_S)  # its signal ends the process: something hangs
        try:
            target.run(number)
        except Exception as error:
            print(f"{name} case {number}: {type(error).__name__}: {error}\n{target.case(number)!r}", file=sys.stderr)
            return False
    signal.setitimer(signal.ITIMER_PROF, 0)
    growth_kib = _memory_kib() - before_kib
    seconds = time.monotonic() - started
    print(f"{count} {name}, {target.n_rejected} rejected, {seconds:.0f} s, {growth_kib / 1024:.0f} MiB more memory")
    return growth_kib < _MOST_GROWTH_KIB


def _memory_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _use_kernel(file: str) -> None:
    name = "channelindex._kernel"
    loader = ExtensionFileLoader(name, file)
    spec = spec_from_file_location(name, file, loader=loader)
    assert spec is not None
    sys.modules[name] = module_from_spec(spec)
    loader.exec_module(sys.modules[name])


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=0)
    parser.add_argument("--documents", type=int, default=0)
    parser.add_argument("--kernel", metavar="FILE", help="a kernel other than the one that was installed")
    parser.add_argument("--kernel-frames", type=int, default=0, help="into the compiled kernel and into Python")
    parser.add_argument("--kernel-rounds", type=int, default=0, help=f"of {DOCUMENTS} documents each, likewise")
    parser.add_argument("--kernel-batches", type=int, default=0, help="into the writer's half of it, likewise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    if args.kernel:
        _use_kernel(args.kernel)
    runs: list[tuple[str, type[Target], int]] = [
        ("mutated frames", FrameTarget, args.frames),
        ("mutated documents", DocumentTarget, args.documents),
        ("mutated frames for the kernel", KernelFrameTarget, args.kernel_frames),
        (f"rounds of {DOCUMENTS} mutated documents for the kernel", KernelDocumentTarget, args.kernel_rounds),
        ("mutated batches for the kernel", KernelWriterTarget, args.kernel_batches),
    ]
    ended_well = [run(name, target(args.seed), args.first, count) for name, target, count in runs if count]
    return 0 if all(ended_well) else 1


if __name__ == "__main__":
    sys.exit(main())
