"""What a process uses of the machine, as the kernel says it."""

import mmap
import os
import time

from workers.telemetry.process_use import process_use


def test_cpu_time_and_memory_of_this_process_grow_with_what_it_does():
    cpu_before_s, memory_before = process_use(os.getpid())
    held = mmap.mmap(
        -1, 50_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )  # what malloc gives may be used already
    held.write(b"x" * len(held))
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    used_before_s = time.process_time()
    cpu_s, memory = process_use(os.getpid())
    assert cpu_before_s < used_before_s <= cpu_s <= time.process_time()
    assert memory > memory_before + len(held) // 2


def test_a_process_that_has_ended_uses_nothing():
    assert process_use(2**22 + 1) == (0.0, 0)
