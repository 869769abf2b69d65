"""Identifies the runs of a node, so that a restart goes on with the leases of the run before.

A file in `node.run_dir` holds the incarnation of the node that runs, and is locked for as long as the supervisor
lives. Whoever gets the lock knows that the incarnation in the file is dead, and its workers with it: the kernel kills
them with their supervisor. Redis alone cannot know that, and would keep its leases until they expire.
"""

import fcntl
import os
import uuid
from pathlib import Path

from channelindex import logs

_INCARNATION_BYTES = 32

_log = logs.get("node")


class NodeIncarnation:
    """Identifies this run of the node *name* and, through a locked file, the previous run, whose leases it may reclaim.

    Keep it until the process ends: the lock goes with it.

    `predecessor` is "" where no earlier run is known, or where one of the same name still runs here.
    """

    def __init__(self, run_dir: Path, name: str) -> None:
        self.incarnation = uuid.uuid4().hex
        assert len(self.incarnation) == _INCARNATION_BYTES, "it replaces the one before whole"
        self.predecessor = ""
        self._fd = -1
        path = run_dir / f"{name}.incarnation"
        try:
            run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.predecessor = os.pread(self._fd, _INCARNATION_BYTES, 0).decode("ascii", "replace")
            os.pwrite(self._fd, self.incarnation.encode(), 0)
            os.fsync(self._fd)
        except OSError as error:
            reason = f"{path} (node.run_dir): {error.strerror or error}"
            _log.warning("node.no_predecessor", msg=f"{reason}; after a crash, leases have to expire")

    def close(self) -> None:
        """Let the next run begin. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
