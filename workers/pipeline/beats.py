"""The beats: moments of the monotonic clock, the same for all workers of a machine, at which little is moved on.

A feed that brings little is read at beats. A batch writer that got little looks into its rings a moment after each
beat, of its own accord: it wakes once for the frames of all feed workers, which ring no bell for what is there by then.
"""

import ctypes
import os
import time
from contextlib import suppress

BEAT_S = 0.043
"""Longest time that a change waits to be read; half of it on the average. The rest of its way takes some ms."""

LOOK_S = 0.001
"""From a beat until the batch writers look. Reading little and packing it takes half of it; a frame that comes later
rings its bell."""

UNASKED_S = LOOK_S - 0.0001
"""From a beat until a feed worker has to ring: what it published before is seen at that look."""

_TIMER_ABSTIME = 1
_NS = 1_000_000_000
_COUNT_BYTES = 8

_libc = ctypes.CDLL(None, use_errno=True)


class BeatTimer:
    """Becomes readable LOOK_S after each beat: a timerfd(2), which unlike the timeout of poll knows parts of a ms."""

    def __init__(self) -> None:
        """Raise OSError where no descriptor is to be had."""
        self._fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        start_s = (time.monotonic() // BEAT_S + 1) * BEAT_S + LOOK_S
        # struct itimerspec: interval and first time, each in seconds and ns
        times = (ctypes.c_long * 4)(*divmod(round(BEAT_S * _NS), _NS), *divmod(round(start_s * _NS), _NS))
        if self._fd < 0 or _libc.timerfd_settime(self._fd, _TIMER_ABSTIME, times, None) < 0:
            raise OSError(ctypes.get_errno(), "no timer for the beats")

    def fileno(self) -> int:
        """Return the descriptor, readable since the last look was due."""
        return self._fd

    def clear(self) -> None:
        """Forget the looks that were due."""
        with suppress(BlockingIOError):  # none was
            os.read(self._fd, _COUNT_BYTES)

    def close(self) -> None:
        """Give the descriptor back. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
