"""Queues signals: a handler only enqueues, the main loop takes them out when it polls."""

import os
import signal
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from channelindex.polling import wait_readable

_QUEUE_READ_BYTES = 4096


class SignalQueue:
    """The signals that came, in order, as something to poll.

    The kernel's side writes each signal's number into a pipe from C, so one that comes between the last look and
    the poll still wakes it; a Python handler alone would run only after the poll. Main thread only, and one instance
    per process at a time: the interpreter has one wake-up descriptor.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._signals = signals
        self._has_come = False
        for signum in signals:
            signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a handler's arguments
        """Note that there is something to take: the number is in the pipe already.

        Who polls wakes by the pipe, and the interpreter calls this before the next look.
        """
        self._has_come = True

    def fileno(self) -> int:
        """The descriptor, readable while there is a signal to take."""
        return self._reader

    def take(self) -> list[signal.Signals]:
        """The signals since the last call, oldest first. Costs nothing where none has come."""
        if not self._has_come:
            return []
        self._has_come = False  # before looking: what comes after this is there for the next call
        with suppress(BlockingIOError):
            return [signal.Signals(signum) for signum in os.read(self._reader, _QUEUE_READ_BYTES)]
        return []

    def close(self) -> None:
        """Put the default handlers back and close the pipe. May be called twice."""
        if self._reader < 0:
            return
        for signum in self._signals:
            signal.signal(signum, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        os.close(self._reader)
        os.close(self._writer)
        self._reader = -1


class StopFlag:
    """Becomes set when this process gets SIGTERM, or one of *signals*. Never cleared."""

    def __init__(self, *signals: signal.Signals) -> None:
        self._queue = SignalQueue(*(signals or (signal.SIGTERM,)))
        self._is_set = False

    def fileno(self) -> int:
        """The descriptor, readable from the signal until the next `is_set`."""
        return self._queue.fileno()

    def is_set(self) -> bool:
        """True once one of the signals has come."""
        if not self._is_set and self._queue.take():
            self._is_set = True
        return self._is_set

    def wait(self, timeout_s: float) -> bool:
        """Sleep until one of the signals comes, at most *timeout_s* seconds; return true if one has come."""
        if not self.is_set():
            wait_readable([self._queue], timeout_s)
        return self.is_set()


def interrupt_on_termination() -> None:
    """Have SIGTERM and SIGHUP end this program as Ctrl-C does: whatever it started is stopped on the way out."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - a handler's arguments
    raise KeyboardInterrupt
