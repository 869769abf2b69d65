"""Waiting for child processes, with a deadline and no sleeping."""

import select
import signal

from workers.node.child import Child

DEADLINE_S = 120.0


def end_of(child: Child) -> int:
    """The exit code of *child*, once it has ended. A child that does not end is killed and fails the test."""
    readable, _, _ = select.select([child], [], [], DEADLINE_S)
    if not readable:
        child.signal(signal.SIGKILL)
        select.select([child], [], [])
    code = child.reap()
    assert readable, f"{child.role} did not end within {DEADLINE_S} s"
    assert code is not None
    return code
