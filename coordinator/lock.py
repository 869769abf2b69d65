"""Locks an index for an operator's job, such as a rebuild: one at a time."""

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from channelindex.errors import CoordinationUnavailable
from coordinator.lease_redis import CoordinationKeys, connect

LOCK_S = 60.0
"""A lock whose holder died is free after this. The jobs take seconds and are safe without: it only avoids confusion."""

_TIMEOUT_S = 5.0


@contextmanager
def job_lock(url: str, index: str, job: str) -> Iterator[None]:
    """Hold the lock of *job* on *index* while the block runs. One that expires meanwhile is no error.

    Raises:
        CoordinationUnavailable: another process holds it, or the Redis of the leases cannot be reached.
        AuthenticationFailed: see `connect`.
    """
    key, holder = CoordinationKeys(index).lock(job), uuid.uuid4().hex
    with closing(connect(url, _TIMEOUT_S)) as redis:
        if not redis.execute("SET", key, holder, "NX", "PX", round(LOCK_S * 1000)):
            raise CoordinationUnavailable(
                f"another {job} of index {index!r} is running; the lock of a dead one is free within {LOCK_S:.0f} s"
            )
        try:
            yield
        finally:
            with suppress(CoordinationUnavailable):  # it expires by itself
                redis.run("unlock", (key,), holder)
