"""Measures how long a change of the source has waited to become stable, by partition: pure, bounded in memory.

Per vbucket a few *marks* (when it was seen, how far the source was then), the oldest first. The stable clock strikes
out the marks that it has reached; the first that is left is the oldest that waits. When a vbucket has as many
marks as it may have, the last one stands for all that is newer, so the answer is then too long, never too short.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from workers.telemetry.board import Row

MAX_MARKS = 8
"""Per vbucket. At two looks a second, four seconds of lag are known to half a second; more need no such detail."""


class Behind(NamedTuple):
    """Says what a partition lacks: seqnos, and since when (0: nothing)."""

    seqnos: int
    since_ns: int


class LagMeter:
    """Measures the lag of the vbuckets of partitions that are *partition_width* vbuckets wide."""

    def __init__(self, partition_width: int) -> None:
        assert partition_width > 0
        self._width = partition_width
        self._marks: dict[int, deque[tuple[int, int]]] = {}
        """Of each vbucket that is behind."""
        self._seen: set[int] = set()
        """The vbuckets of the last look."""

    def measure(
        self, now_ns: int, highs: Mapping[int, int], stable: Mapping[int, int], inherited: Mapping[int, int]
    ) -> dict[int, Behind]:
        """Measure how far each partition of the vbuckets in *highs* is behind, from the source's and the stable seqnos.

        *inherited* says of partitions since when they were behind under the worker before us: what a vbucket lacks at
        our first look has been waiting since then. So a worker that dies again and again does not hide its lag.
        Vbuckets that are not in *stable* are not ours (any more). Costs little for each that is not behind.
        """
        ours = highs.keys() & stable.keys()
        seqnos = dict.fromkeys({vb // self._width for vb in ours}, 0)
        since_ns: dict[int, int] = {}
        behind = [vb for vb in ours if highs[vb] > stable[vb]]
        marks_before, self._marks = self._marks, {}
        for vb in behind:
            partition = vb // self._width
            seen_ns = now_ns if vb in self._seen else inherited.get(partition, 0) or now_ns
            marks = self._marks[vb] = marks_before.get(vb) or deque()
            oldest_ns = _look(marks, highs[vb], stable[vb], seen_ns)
            seqnos[partition] += highs[vb] - stable[vb]
            since_ns[partition] = min(oldest_ns, since_ns.get(partition, oldest_ns))
        self._seen = ours
        assert self._marks.keys() <= self._seen, "what is behind was looked at"
        return {partition: Behind(n, since_ns.get(partition, 0)) for partition, n in seqnos.items()}


def _look(marks: deque[tuple[int, int]], high: int, stable: int, seen_ns: int) -> int:
    """Bring up to date the *marks* of a vbucket that is behind, new ones with *seen_ns*; return the oldest time."""
    assert high > stable
    while marks and marks[0][1] <= stable:
        marks.popleft()
    if not marks or high > marks[-1][1]:
        if len(marks) == MAX_MARKS:
            seen_ns, _ = marks.pop()
        marks.append((seen_ns, high))
    assert len(marks) <= MAX_MARKS
    assert marks[0][1] > stable, "what is stable waits no more"
    assert marks[-1][1] >= high, "what is not stable has a mark"
    return marks[0][0]


class LagReport:
    """Publishes the lag of one feed worker's partitions in their *rows* of the board."""

    def __init__(self, rows: Sequence[Row], partition_width: int) -> None:
        self._rows = rows
        self._meter = LagMeter(partition_width)

    def publish(
        self,
        now_ns: int,
        partitions: Iterable[int],
        highs: Mapping[int, int],
        stable: Mapping[int, int],
        connected: int,
    ) -> int:
        """Publish how far *partitions* are behind, see `LagMeter.measure`; return all their seqnos together."""
        inherited = {partition: self._rows[partition].get("behind_ns") for partition in partitions}
        behind_by_partition = self._meter.measure(now_ns, highs, stable, inherited)
        assert behind_by_partition.keys() == inherited.keys(), "we know how far we have read each of them"
        for partition, (seqnos, since_ns) in behind_by_partition.items():
            self._rows[partition].set(lag=seqnos, behind_ns=since_ns, streaming=connected)
        return sum(behind.seqnos for behind in behind_by_partition.values())
