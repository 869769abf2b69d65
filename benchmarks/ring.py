"""Frames per second between two processes: the ring against queues, at the sizes that rounds have.

    python -m benchmarks.ring [--seconds-per-case 1.0]

All carry the same payloads from one process to another; the ring's include checksum, commit and both bells. The queues
are `multiprocessing.Queue` and, where it is installed, faster-fifo's, which is given bytes as they are and asked for
all that there is, its fastest way. Neither knows what was processed when its consumer dies: the ring does.
"""

import argparse
import importlib
import multiprocessing
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from workers.node.child import spawn
from workers.pipeline.ring import Bell, Ring
from workers.signals import StopFlag

FRAME_BYTES = (400, 4_000, 20_000, 50_000)
RING_BYTES = 4 << 20
TAKE_BYTES = 1 << 20
TRIAL_FRAMES = 2_000


def seconds_by_ring(payload: bytes, n_frames: int) -> float:
    """Time to bring *n_frames* through a ring."""
    ring, data, space = Ring(RING_BYTES), Bell(), Bell()

    def produce(_stop: StopFlag) -> int:
        for _ in range(n_frames):
            while ring.try_publish(payload) is None:
                select.select([space], [], [])
                space.clear()
            data.ring()
        return 0

    started = time.perf_counter()
    producer = spawn("producer", produce, [data, space])
    n_taken = 0
    while n_taken < n_frames:
        data.clear()
        taken = len(ring.take(TAKE_BYTES))
        if taken:
            n_taken += taken
            ring.commit()
            space.ring()
        else:
            select.select([data], [], [])
    elapsed = time.perf_counter() - started
    select.select([producer], [], [])
    assert producer.reap() == 0
    data.close()
    space.close()
    return elapsed


def seconds_by_queue(payload: bytes, n_frames: int) -> float:
    """Time to bring *n_frames* through a `multiprocessing.Queue`."""
    queue: multiprocessing.Queue[bytes] = multiprocessing.Queue(RING_BYTES // len(payload))

    def consume() -> None:
        for _ in range(n_frames):
            queue.get()

    return _seconds_of(lambda: _put_all(queue, payload, n_frames), consume, queue)


def seconds_by_faster_fifo(payload: bytes, n_frames: int) -> float:
    """Time to bring *n_frames* through a faster-fifo, which `is_there` has found."""
    queue = importlib.import_module(FASTER_FIFO).Queue(RING_BYTES, loads=bytes, dumps=bytes)

    def consume() -> None:
        n_taken = 0
        while n_taken < n_frames:
            n_taken += len(queue.get_many())
        assert n_taken == n_frames, "none comes twice"

    return _seconds_of(lambda: _put_all(queue, payload, n_frames), consume, queue)


def _put_all(queue: Any, payload: bytes, n_frames: int) -> None:
    for _ in range(n_frames):
        queue.put(payload)


def _seconds_of(produce: Callable[[], None], consume: Callable[[], None], queue: Any) -> float:
    """Time of *consume* beside a process that produces."""
    started = time.perf_counter()
    producer = multiprocessing.get_context("fork").Process(target=produce)
    producer.start()
    consume()
    elapsed = time.perf_counter() - started
    producer.join()
    assert producer.exitcode == 0
    queue.close()
    return elapsed


Carrier = Callable[[bytes, int], float]
"""Seconds to bring so many frames of one payload from a process to another."""
FASTER_FIFO = "faster_fifo"
CARRIERS: Mapping[str, Carrier] = {
    "ring": seconds_by_ring,
    "multiprocessing.Queue": seconds_by_queue,
    "faster-fifo": seconds_by_faster_fifo,
}


def is_there(name: str) -> bool:
    """True unless this is the one that may not be installed."""
    if CARRIERS[name] is not seconds_by_faster_fifo:
        return True
    try:
        importlib.import_module(FASTER_FIFO)
    except ImportError:
        return False
    return True


def measure(case_s: float) -> dict[int, dict[str, float]]:
    """Frames per second by size and carrier, over about *case_s* seconds each."""
    there = [name for name in CARRIERS if is_there(name)]
    payloads = {size: os.urandom(size) for size in FRAME_BYTES}
    return {
        size: {name: frames_per_s(CARRIERS[name], payload, case_s) for name in there}
        for size, payload in payloads.items()
    }


def table_of(found: Mapping[int, Mapping[str, float]]) -> Table:
    """A row for each size, with the ring's rate in that of the others."""
    others = [name for name in CARRIERS if is_there(name) and name != "ring"]
    missing = "" if is_there("faster-fifo") else "; faster-fifo is not installed: the extra `bench` has it"
    table = Table("frame", "ring", *others, *(f"ring/{name}" for name in others), title=f"frames{missing}")
    for size, rates in found.items():
        cells = [f"{rates[name]:,.0f}/s {1e6 / rates[name]:.1f} µs" for name in ("ring", *others)]
        table.add_row(f"{size:,} B", *cells, *(f"{rates['ring'] / rates[name]:.1f}" for name in others))
    return table


def frames_per_s(seconds_for: Carrier, payload: bytes, case_s: float) -> float:
    """The rate over about *case_s* seconds, sized by a short trial."""
    trial = TRIAL_FRAMES / seconds_for(payload, TRIAL_FRAMES)
    n_frames = max(TRIAL_FRAMES, int(trial * case_s))
    return n_frames / seconds_for(payload, n_frames)


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds-per-case", type=float, default=1.0)
    case_s = parser.parse_args().seconds_per_case
    Console(width=None if sys.stdout.isatty() else 160).print(table_of(measure(case_s)))


if __name__ == "__main__":
    main()
