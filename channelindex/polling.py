"""Waits for file descriptors by poll(2), which unlike select(2) takes descriptors above 1,023."""

import select
from collections.abc import Iterable
from typing import Protocol


class HasFileno(Protocol):
    """Anything that has a descriptor to wait on."""

    def fileno(self) -> int:
        """The descriptor."""
        ...


def wait_readable(sources: Iterable[HasFileno | int], timeout_s: float | None = None) -> bool:
    """Block until one of *sources* is readable, closed or broken, at most *timeout_s*; return true if one is.

    A *timeout_s* of 0 or less only looks; None waits for ever.
    """
    poll = select.poll()
    for source in sources:
        poll.register(source, select.POLLIN)
    return bool(poll.poll(None if timeout_s is None else 1000 * max(0.0, timeout_s)))
