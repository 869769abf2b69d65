"""Reads what a process uses of the machine, from /proc (proc(5))."""

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_UTIME = 11
"""Index of the time in user mode among the fields behind the name; the time in the kernel is the next."""


def process_use(pid: int) -> tuple[float, int]:
    """Return the CPU seconds that process *pid* has used, and its memory in bytes, less what it shares with others.

    Both are 0 where it has ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return 0.0, 0
    return (int(fields[_UTIME]) + int(fields[_UTIME + 1])) / _TICKS_PER_S, (resident - shared) * _PAGE_BYTES
