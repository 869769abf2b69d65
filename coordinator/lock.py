"""The lock of a rare job on an index, one at a time: an operator's, who might be two."""

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from channelindex.errors import CoordinationUnavailable
from coordinator.connection import connect
from coordinator.keys import Keys

LOCK_S = 60.0
"""A lock whose holder died is free after this. The jobs take seconds, and are safe without: it keeps people apart."""

_TIMEOUT_S = 5.0


@contextmanager
def job_lock(url: str, index: str, job: str) -> Iterator[None]:
    """Hold the lock of *job* on *index* while the block runs. One that ran out meanwhile is no error.

    Raises:
        CoordinationUnavailable: somebody else holds it, or the Redis of the leases cannot be reached.
        AuthenticationFailed: see `connect`.
    """
    key, holder = Keys(index).lock(job), uuid.uuid4().hex
    with closing(connect(url, _TIMEOUT_S)) as redis:
        if not redis.execute("SET", key, holder, "NX", "PX", round(LOCK_S * 1000)):
            raise CoordinationUnavailable(
                f"somebody else does a {job} of index {index!r}; a lock of one that died is free within {LOCK_S:.0f} s"
            )
        try:
            yield
        finally:
            with suppress(CoordinationUnavailable):  # it ran out, or will
                redis.run("unlock", (key,), holder)
