"""Tracks how far the feed of one vbucket is, and where it can be resumed without loss."""

from collections import deque
from itertools import pairwise

from channelindex.feeds.base import FailoverLog, vbuuid_at
from channelindex.model import ORIGIN, Checkpoint

MAX_COMPLETE = 32
"""Ends of snapshots that a vbucket remembers, to roll back to. Beyond them it is indexed from its start."""


class Position:
    """Tracks how far the feed of one vbucket is, and what its next checkpoint has to say.

    Deduplication happens within a snapshot: until its end, any earlier revision of it may still be missing.
    So a feed is complete at the ends of snapshots only, and `snap_start` is the last of these, not what the marker
    said: a marker in memory begins at the next seqno, one from disk at the seqno asked for.
    """

    __slots__ = ("_complete_at", "failover_log", "purge_seqno", "seqno", "snap_end", "snap_start")

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.snap_start <= checkpoint.seqno <= checkpoint.snap_end, "it lies in its snapshot"
        self.failover_log: FailoverLog = ((checkpoint.vbuuid, 0),)
        self.seqno = checkpoint.seqno
        self.snap_start = checkpoint.snap_start
        self.snap_end = checkpoint.snap_end
        self.purge_seqno = checkpoint.purge_seqno
        self._complete_at = deque([checkpoint.snap_start], MAX_COMPLETE)

    def check(self) -> None:
        """Assert what holds after every event."""
        assert self.failover_log, "there is always a branch of history"
        assert self.snap_start <= self.seqno, "the snapshot began at what we had"
        assert self._complete_at[0] <= self._complete_at[-1] == self.snap_start
        assert all(one <= after for one, after in pairwise(self._complete_at)), "ascending"
        assert self.checkpoint().seqno == self.seqno

    def enter_snapshot(self, snap_start: int, snap_end: int, purge_seqno: int | None = None) -> None:
        """Take a snapshot marker. One that reaches back to what we have goes on with the snapshot we are in."""
        assert snap_start <= snap_end
        if self._at_end() or snap_start > self.seqno:
            self.snap_start = self.seqno
            self._complete_at.append(self.seqno)
        self.snap_end = snap_end
        if purge_seqno is not None:
            self.purge_seqno = purge_seqno

    def checkpoint(self) -> Checkpoint:
        """Return where to resume after everything up to `seqno` was taken over.

        Within a snapshot, the branch of history is that of the snapshot's end: under the name of an older branch
        that ended inside the snapshot, the server would roll back to the snapshot's start.
        """
        start = at = end = self.seqno
        if at < self.snap_end and at != self.snap_start:
            start, end = self.snap_start, self.snap_end
        assert start <= at <= end, "else the server refuses to resume here"
        vbuuid, branched_at = self.failover_log[0]
        if end < branched_at:
            vbuuid = vbuuid_at(self.failover_log, end)
        # What `Checkpoint(...)` does, in half the time: a round has one for each vbucket that it moved.
        return tuple.__new__(Checkpoint, (vbuuid, at, start, end, self.purge_seqno))

    def rolled_back(self, to: Checkpoint) -> Checkpoint:
        """Return where to resume when the source has taken back everything above the seqno of *to*.

        That is the last point at or below it at which we were complete. To go on right at it could lose a document: a
        snapshot that reached beyond it may have had only a version that is gone now, in place of one that is back.
        """
        complete_at = [*self._complete_at, self.seqno] if self._at_end() else self._complete_at
        safe = max((seqno for seqno in complete_at if seqno <= to.seqno), default=0)
        assert safe <= to.seqno, "nothing above it is there any more"
        return Checkpoint(to.vbuuid, safe, safe, safe) if safe else ORIGIN

    def _at_end(self) -> bool:
        return self.seqno >= self.snap_end
