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

    def measure(
        self, now_ns: int, highs: Mapping[int, int], stable: Mapping[int, int], inherited: Mapping[int, int]
    ) -> dict[int, Behind]:
        """Measure how far each partition of the vbuckets in *highs* is behind, from the source's and the stable seqnos.

        *inherited* says of partitions since when they were behind under the worker before us: what a vbucket lacks at
        our first look has been waiting since then. So a worker that dies again and again does not hide its lag.
        Vbuckets that are not in *stable* are not ours (any more).
        """
        self._marks = {vb: marks for vb, marks in self._marks.items() if vb in stable}
        seqnos: dict[int, int] = {}
        since_ns: dict[int, int] = {}
        for vb, high in highs.items():
            if vb not in stable:
                continue
            partition = vb // self._width
            seqnos[partition] = seqnos.get(partition, 0) + max(0, high - stable[vb])
            oldest_ns = self._look(vb, high, stable[vb], now_ns, inherited.get(partition, 0) or now_ns)
            if oldest_ns:
                since_ns[partition] = min(oldest_ns, since_ns.get(partition, oldest_ns))
        return {partition: Behind(n, since_ns.get(partition, 0)) for partition, n in seqnos.items()}

    def _look(self, vb: int, high: int, stable: int, now_ns: int, first_ns: int) -> int:
        """Bring the marks of *vb* up to date; return the time of the oldest, 0 if there is none."""
        marks = self._marks.get(vb)
        seen_ns = now_ns
        if marks is None:
            marks = self._marks[vb] = deque()
            seen_ns = first_ns
        while marks and marks[0][1] <= stable:
            marks.popleft()
        if high > stable and (not marks or high > marks[-1][1]):
            if len(marks) == MAX_MARKS:
                seen_ns, _ = marks.pop()
            marks.append((seen_ns, high))
        assert len(marks) <= MAX_MARKS
        assert not marks or marks[0][1] > stable, "what is stable waits no more"
        assert not marks or marks[-1][1] >= high, "what is not stable has a mark"
        return marks[0][0] if marks else 0


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
        for partition in inherited:
            self._rows[partition].set(streaming=connected)
        for partition, behind in behind_by_partition.items():
            self._rows[partition].set(lag=behind.seqnos, behind_ns=behind.since_ns)
        return sum(behind.seqnos for behind in behind_by_partition.values())
