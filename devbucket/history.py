"""Cuts the seqnos of a vbucket into histories, which make a client roll back, and source checkpoints. No I/O.

Rules: couchbase/kv_engine docs/dcp/documentation/rollback.md and failure-scenarios.md.
"""

import secrets
import struct
from bisect import bisect_right
from itertools import pairwise
from typing import Self

MAX_ENTRIES = 25
"""Length at which the oldest histories are forgotten, as on a real server; their clients start over."""


class FailoverLog:
    """The (vbuuid, seqno) pairs of a vbucket, newest first: the history's id and the seqno at which it began."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int]] = [(_new_vbuuid(), 0)]

    @property
    def vbuuid(self) -> int:
        """Return the id of the current history."""
        return self.entries[0][0]

    def branch(self, seqno: int) -> None:
        """Begin a new history at *seqno*; histories that began later are gone with it."""
        assert seqno >= 0
        kept = [entry for entry in self.entries if entry[1] <= seqno]
        self.entries = [(_new_vbuuid(), seqno), *kept][:MAX_ENTRIES]

    def check(self, high_seqno: int) -> None:
        """Assert what holds after every branch, of a vbucket at *high_seqno*."""
        assert 0 < len(self.entries) <= MAX_ENTRIES
        assert self.entries[0][1] <= high_seqno, "a history began at a seqno that is there"
        assert all(newer[1] >= older[1] for newer, older in pairwise(self.entries)), "the newest is first"
        assert all(vbuuid > 0 for vbuuid, _ in self.entries), "0 means that a client knows none"

    def packed(self) -> bytes:
        """Return the log as GET_FAILOVER_LOG and an accepted STREAM_REQ return it."""
        return b"".join(vbuuid.to_bytes(8, "big") + seqno.to_bytes(8, "big") for vbuuid, seqno in self.entries)

    @classmethod
    def unpacked(cls, packed: bytes) -> Self:
        """Return the log of which `packed` gave these bytes."""
        log = cls()
        log.entries = list(struct.iter_unpack(">QQ", packed))
        return log

    def end_of(self, vbuuid: int, high_seqno: int) -> int | None:
        """Return the seqno up to which history *vbuuid* is ours as well; None if we never had it."""
        assert high_seqno >= 0
        end = high_seqno
        for candidate, began_at in self.entries:
            if candidate == vbuuid:
                return end
            end = began_at
        return None


class SourceCheckpoints:
    """The cuts of what is in memory into snapshots: the first seqnos of the checkpoints, rising.

    The last checkpoint is open: what comes is in it.
    """

    def __init__(self) -> None:
        self._starts = [1]

    def close(self, high_seqno: int) -> None:
        """Close the open one, unless nothing is in it."""
        assert high_seqno >= 0
        if self._starts[-1] <= high_seqno:
            self._starts.append(high_seqno + 1)

    def check(self) -> None:
        """Assert what holds after every step."""
        assert self._starts, "the last checkpoint is open"
        assert self._starts[0] > 0, "seqnos begin at 1"
        assert all(one < after for one, after in pairwise(self._starts)), "rising"

    def begin_at(self, seqno: int) -> None:
        """Have one checkpoint only, which begins at *seqno*."""
        assert seqno > 0, "seqnos begin at 1"
        self._starts = [seqno]

    def holding(self, seqno: int, high_seqno: int) -> tuple[int, int]:
        """Return the first and the last seqno of the checkpoint that holds *seqno*."""
        assert 0 < seqno <= high_seqno, "it is there"
        number = bisect_right(self._starts, seqno)
        following = self._starts[number : number + 1]
        return self._starts[max(0, number - 1)], min([high_seqno, *(start - 1 for start in following)])

    def cut_behind(self, seqno: int) -> None:
        """Forget what begins after *seqno*: it was lost."""
        assert seqno >= 0
        self._starts = [start for start in self._starts if start <= seqno] or [seqno + 1]
        assert self._starts[-1] <= seqno + 1, "nothing begins behind what is left"

    def merge_up_to(self, seqno: int) -> None:
        """Let those up to *seqno* be one with the next: they lack versions of keys that came again."""
        first, *others = self._starts
        self._starts = [first, *(start for start in others if start > seqno)]


def rollback_seqno(
    log: FailoverLog,
    vbuuid: int,
    start: int,
    snap_start: int,
    snap_end: int,
    *,
    high_seqno: int,
    purge_seqno: int,
    strict: bool,
) -> int | None:
    """Return the seqno to which a client with this resume position must roll back; None if it may resume.

    With *strict*, start 0 too needs a known vbuuid. A position at either end of its snapshot is a complete one.
    """
    assert purge_seqno <= high_seqno
    end = log.end_of(vbuuid, high_seqno)
    if start == 0 and (not strict or end is not None or vbuuid == 0):
        return None
    if start in (snap_start, snap_end):
        snap_start = snap_end = start
    if end is None or snap_start < purge_seqno:
        return 0
    return None if snap_end <= end else min(end, snap_start)


def _new_vbuuid() -> int:
    return secrets.randbits(47) + 1  # a real server's have 48 bits; 0 means that a client knows none
