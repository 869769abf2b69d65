"""Frames per second between two processes: the ring against `multiprocessing.Queue`, at the sizes that rounds have.

    python -m benchmarks.ring [--seconds-per-case 1.0]

Both carry the same payloads from one process to another; the ring's include checksum, commit and both bells.
"""

import argparse
import multiprocessing
import os
import select
import time
from collections.abc import Callable

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

    def produce() -> None:
        for _ in range(n_frames):
            queue.put(payload)

    started = time.perf_counter()
    producer = multiprocessing.get_context("fork").Process(target=produce)
    producer.start()
    for _ in range(n_frames):
        queue.get()
    elapsed = time.perf_counter() - started
    producer.join()
    queue.close()
    return elapsed


def frames_per_s(seconds_for: Callable[[bytes, int], float], payload: bytes, case_s: float) -> float:
    """The rate over about *case_s* seconds, sized by a short trial."""
    trial = TRIAL_FRAMES / seconds_for(payload, TRIAL_FRAMES)
    n_frames = max(TRIAL_FRAMES, int(trial * case_s))
    return n_frames / seconds_for(payload, n_frames)


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds-per-case", type=float, default=1.0)
    case_s = parser.parse_args().seconds_per_case
    table = Table("frame", "ring", "queue", "ratio", title="One producer, one consumer")
    for size in FRAME_BYTES:
        payload = os.urandom(size)
        ring = frames_per_s(seconds_by_ring, payload, case_s)
        queue = frames_per_s(seconds_by_queue, payload, case_s)
        cells = [f"{rate:,.0f}/s {rate * size / 1e6:,.0f} MB/s {1e6 / rate:.1f} µs" for rate in (ring, queue)]
        table.add_row(f"{size:,} B", *cells, f"{ring / queue:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
