"""Finds what a test left behind in this process and on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def open_fds() -> dict[int, str]:
    """Every open descriptor of this process and what it is."""
    found = {}
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return found


def shm_names() -> set[str]:
    """The named shared memory that belongs to us."""
    return {path.name for path in Path("/dev/shm").iterdir() if path.stat().st_uid == os.getuid()}


def children() -> list[int]:
    """The process ids of our children, ended ones that nobody reaped included."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@contextmanager
def no_leaks() -> Iterator[None]:
    """Fail if the block leaves descriptors open, shared memory named, or children behind."""
    fds, names, pids = open_fds(), shm_names(), children()
    yield
    assert {fd: what for fd, what in open_fds().items() if fd not in fds} == {}
    assert shm_names() - names == set()
    assert [pid for pid in children() if pid not in pids] == []
