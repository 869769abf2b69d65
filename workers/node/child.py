"""Children: forked so that nothing of the parent acts in them, and watched without a race.

Order: flush, block signals, fork; in the child reset the handlers, tie its life to the parent's, close what is not
its own, install its stop flag, unblock signals, run. The process that forks must have one thread only: a lock that
another thread holds at the fork would stay locked in the child for ever.

What the child inherits and keeps: shared memory, descriptors 0 to 2, and those that it shall keep. The `random` module
seeds itself anew in a forked child. Objects of the parent are never destroyed in the child: one that owned a closed
descriptor would close whatever has got its number since.
"""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from channelindex import exits, logs
from channelindex.errors import ChannelIndexError
from channelindex.polling import HasFileno
from workers.signals import StopFlag

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_LARGE_BYTES = 4 << 20
_NAME_BYTES = 15
_GARBAGE_OBJECTS = 20_000
"""Objects more than before, after which the collector looks for cycles. Its default is 700, which each read of a feed
worker and each batch of a writer make; there are no cycles in them, so it looks in vain."""

_libc = ctypes.CDLL(None, use_errno=True)
_log = logs.get("child")


class Child:
    """Watches a forked process from the parent's side. Its `fileno` (a pidfd) becomes readable when it ends.

    Everything goes by the pidfd, so nothing can hit another process that got the same number.
    """

    def __init__(self, role: str, pid: int, pidfd: int) -> None:
        assert pid > 0
        assert pidfd >= 0
        self.role = role
        self.pid = pid
        self.exit_code: int | None = None
        """As in `subprocess`: the code it left with, or minus the signal that killed it; None until reaped."""
        self._pidfd = pidfd

    def fileno(self) -> int:
        """Return the pidfd; -1 once reaped."""
        return self._pidfd

    def signal(self, signum: signal.Signals) -> None:
        """Send *signum*; nothing happens if the child has ended."""
        if self.exit_code is None:
            signal.pidfd_send_signal(self._pidfd, signum)

    def reap(self) -> int | None:
        """Return the exit code if the child has ended, else None. Never blocks; may be called again."""
        if self.exit_code is None:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            if result is not None:
                exited = result.si_code == os.CLD_EXITED
                self.exit_code = result.si_status if exited else -result.si_status
                os.close(self._pidfd)
                self._pidfd = -1
        return self.exit_code


def spawn(role: str, main: Callable[[StopFlag], int], keep: Iterable[HasFileno] = ()) -> Child:
    """Fork a child that runs `main(stop)` and leaves with the code that it returns.

    *keep* are the things of the parent whose descriptors stay open in the child. *stop* is set by SIGTERM; SIGINT and
    SIGHUP, which a terminal sends to the whole group, are the parent's business and ignored. The child is killed
    when the thread that called this ends. An error that *main* raises is logged and becomes its exit code.

    Raises:
        OSError: no process or no descriptor is to be had; no child is left.
    """
    kept_fds = {0, 1, 2, *(thing.fileno() for thing in keep)}
    assert min(kept_fds) >= 0, "what is closed cannot be kept"
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _live(role, main, kept_fds, parent, old_mask)
        return _watch(role, pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def _watch(role: str, pid: int) -> Child:
    try:
        return Child(role, pid, os.pidfd_open(pid))
    except OSError:
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        os.waitpid(pid, 0)
        raise


def _live(role: str, main: Callable[[StopFlag], int], kept_fds: set[int], parent: int, mask: Iterable[int]) -> None:
    """Live the child's whole life. Never returns."""
    assert kept_fds >= {0, 1, 2}, "a child logs to its parent's descriptors"
    code = exits.INTERNAL
    try:
        gc.freeze()
        gc.set_threshold(_GARBAGE_OBJECTS)
        logs.bind(role=role)
        _reset_signals()
        _die_with(parent)
        _close_fds_except(kept_fds)
        _libc.prctl(_PR_SET_NAME, role.encode()[:_NAME_BYTES])
        _keep_freed_memory()
        stop = StopFlag()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = main(stop)
    except ChannelIndexError as error:
        code = exits.code_for(error)
        _log.error("child.failed", code=code, error=type(error).__name__, msg=str(error))
    except BaseException:  # noqa: BLE001 the top of the process: whatever it is ends it, and must be seen
        _log.exception("child.crashed", code=code)
    finally:
        _leave(code)


def _keep_freed_memory() -> None:
    """Have the allocator keep what is freed for what comes next, which is as large: what a source or a ring brings.

    Else it gives each such block back, and the kernel clears every page of the next one: a tenth of what a feed worker
    takes for a document. glibc learns by itself, from the largest block that was mapped alone and freed (mallopt(3),
    M_MMAP_THRESHOLD): it gives back what is free beyond twice that.
    """
    bytearray(_LARGE_BYTES)


def _reset_signals() -> None:
    for signum in signal.valid_signals():
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _die_with(parent: int) -> None:
    """Have the kernel kill us when the parent ends; it may have ended before we asked."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(exits.INTERRUPTED)


def _close_fds_except(kept: set[int]) -> None:
    for fd in {int(entry.name) for entry in Path("/proc/self/fd").iterdir()} - kept:
        with suppress(OSError):  # the listing's own descriptor
            os.close(fd)


def _leave(code: int) -> None:
    """End without the parent's exit handlers, finalizers and test frameworks."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
