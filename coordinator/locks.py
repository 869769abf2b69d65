"""Jobs of which there is one at a time, whoever does it: the compaction of a partition, a rebuild.

The lock is redis-py's: it ends by itself when its holder dies or forgets to extend it. It keeps two processes from
doing the same work, not from doing harm: after a pause, or a failover of Redis, two may hold it. What a job does to
the index has to be safe all the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import redis

from channelindex.errors import Transient
from coordinator.connection import RedisClient, redis_errors
from coordinator.keys import Keys

REBUILD = "rebuild"
"""The job of indexing everything anew."""


def compaction_of(partition: int) -> str:
    """The job of compacting *partition*."""
    return f"compact:{partition}"


class JobTaken(Transient):
    """Somebody else does this job now."""


class JobLock:
    """A held lock. Every so often, well within its *ttl_s*, its holder has to `extend` it."""

    def __init__(self, lock: Any, url: str, job: str) -> None:
        self._lock = lock
        self._url = url
        self._job = job

    def extend(self) -> None:
        """Hold the lock for its whole time again.

        Raises:
            JobTaken: it ran out; somebody else may do the job now. Stop.
            AuthenticationFailed, CoordinationUnavailable: see `redis_errors`. It may run out.
        """
        try:
            with _lock_errors(self._url):
                self._lock.reacquire()
        except redis.exceptions.LockError as error:
            raise JobTaken(f"the lock of the job {self._job} ran out") from error


@contextmanager
def only_one(
    client: RedisClient, url: str, index: str, job: str, ttl_s: float, wait_s: float = 0.0
) -> Iterator[JobLock]:
    """Do *job* of *index* in this block, alone. Waits for at most *wait_s* seconds for whoever does it now.

    Raises:
        JobTaken: somebody else does it.
        AuthenticationFailed, CoordinationUnavailable: see `redis_errors`.
    """
    lock = client.lock(Keys(index).lock(job), timeout=ttl_s, thread_local=False)
    with redis_errors(url):
        taken = lock.acquire(blocking=wait_s > 0, blocking_timeout=wait_s or None)
    if not taken:
        raise JobTaken(f"another process does the job {job} of the index {index}")
    try:
        yield JobLock(lock, url, job)
    finally:
        with suppress(redis.exceptions.LockError), _lock_errors(url):
            lock.release()


@contextmanager
def _lock_errors(url: str) -> Iterator[None]:
    """As `redis_errors`, but a lock that is lost is said to be so."""
    lost: redis.exceptions.LockError | None = None
    with redis_errors(url):
        try:
            yield
        except redis.exceptions.LockError as error:
            lost = error
    if lost is not None:
        raise lost
