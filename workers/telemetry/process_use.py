"""Reads what a process uses of the machine, without a file object or a path: a node does so a dozen times a second."""

import os
import time

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_LINE_BYTES = 256
"""More than a line of statm(5) has."""
_CPUCLOCK_SCHED = 2


def process_use(pid: int) -> tuple[float, int]:
    """Return the CPU seconds that process *pid* has used, and its memory in bytes, less what it shares with others.

    Both are 0 where it has ended.
    """
    try:
        statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _, resident, shared, *_ = map(int, os.read(statm, _LINE_BYTES).split())
        finally:
            os.close(statm)
        return time.clock_gettime(_cpu_clock(pid)), (resident - shared) * _PAGE_BYTES
    except (OSError, ValueError):
        return 0.0, 0


def _cpu_clock(pid: int) -> int:
    """Return the clock of the CPU time of process *pid*: clock_getcpuclockid(3), cheaper than /proc."""
    assert pid > 0, "0 is the clock of the caller"
    return ~pid << 3 | _CPUCLOCK_SCHED
