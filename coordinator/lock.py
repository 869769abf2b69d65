"""The lock of a rare job on an index, one at a time: an operator's, who might be two."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from channelindex.errors import CoordinationUnavailable
from coordinator.connection import connect, redis_errors
from coordinator.keys import Keys

LOCK_S = 60.0
"""A lock whose holder died is free after this. The jobs take seconds, and are safe without: it keeps people apart."""

_TIMEOUT_S = 5.0


@contextmanager
def job_lock(url: str, index: str, job: str) -> Iterator[None]:
    """Hold the lock of *job* on *index* while the block runs. One that ran out meanwhile is no error.

    Raises:
        CoordinationUnavailable: somebody else holds it, or the Redis of the leases cannot be reached.
        AuthenticationFailed: see `redis_errors`.
    """
    with closing(connect(url, _TIMEOUT_S)) as client:
        lock = client.lock(Keys(index).lock(job), timeout=LOCK_S, blocking=False)
        with redis_errors(url):
            is_ours = lock.acquire()
        if not is_ours:
            raise CoordinationUnavailable(
                f"somebody else does a {job} of index {index!r}; a lock of one that died is free within {LOCK_S:.0f} s"
            )
        try:
            yield
        finally:
            with suppress(CoordinationUnavailable), redis_errors(url):  # it ran out, or will
                lock.release()
