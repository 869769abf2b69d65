"""Reaps processes that the kernel gave to this one when their parents died: process 1 of a container gets them all."""

import ctypes
import os
from collections.abc import Collection

_PR_GET_CHILD_SUBREAPER = 37
_libc = ctypes.CDLL(None)


def adopts_orphans() -> bool:
    """Return whether orphans become children of this process: it is process 1, or a subreaper (prctl(2))."""
    flag = ctypes.c_int()
    _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag))
    return os.getpid() == 1 or bool(flag.value)


def reap_orphans(own: Collection[int]) -> int:
    """Reap the ended children whose ids are not in *own*; return how many. Never blocks.

    It stops at an ended child of our own, which its owner has to reap first; the next call goes on behind it.
    """
    n_reaped = 0
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # there is no child at all
            return n_reaped
        if ended is None or ended.si_pid in own:
            return n_reaped
        os.waitpid(ended.si_pid, 0)
        n_reaped += 1
