"""How long each partition's stable clock stands still under a steady load, and whether it moved meanwhile."""

import threading
import time
from collections.abc import Iterable
from contextlib import closing
from typing import NamedTuple

from channelindex.errors import ChannelIndexError
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from tests.support.watchers import INDEX

SAMPLE_S = 0.01

Sample = tuple[float, str, tuple[int, ...]]
"""When, whose, and the stable seqnos."""


class Gap(NamedTuple):
    """A time between two moves of a partition's stable clock, as seen from outside."""

    partition: int
    begun: float
    ended: float
    owners: tuple[str, str]

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.begun

    @property
    def moved(self) -> bool:
        """Whether the partition had another owner afterwards."""
        return self.owners[0] != self.owners[1]


class GapWatch(threading.Thread):
    """Samples all partition records. `gaps` has every gap that has ended."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(daemon=True)
        self.gaps: list[Gap] = []
        self.moved_back: list[tuple[int, int, int]] = []
        self._last: dict[int, Sample] = {}
        self._redis_url = redis_url
        self._stop_asked = threading.Event()
        self.start()

    def run(self) -> None:
        last = self._last
        with closing(open_reader(IndexSettings(INDEX, self._redis_url))) as store:
            while not self._stop_asked.wait(SAMPLE_S):
                try:
                    records = store.partition_records()
                except ChannelIndexError:
                    continue
                now = time.monotonic()
                for partition, record in enumerate(records):
                    before = last.get(partition)
                    if before is not None and record.stable == before[2]:
                        continue
                    last[partition] = (now, record.owner, record.stable)
                    if before is not None:
                        self._note(partition, before, last[partition])

    def _note(self, partition: int, before: Sample, after: Sample) -> None:
        self.gaps.append(Gap(partition, before[0], after[0], (before[1], after[1])))
        for old, new in zip(before[2], after[2], strict=True):
            if new < old:
                self.moved_back.append((partition, old, new))

    def between(self, begun: float, ended: float, *, moved: bool) -> list[Gap]:
        """The gaps that overlap a time and whose partition moved, or did not."""
        return [gap for gap in list(self.gaps) if gap.moved is moved and gap.ended >= begun and gap.begun <= ended]

    def all_moved_since(self, begun: float) -> bool:
        """Whether every partition's stable clock has moved since then, so that all gaps of before have ended."""
        return all(moved_at > begun for moved_at, _, _ in list(self._last.values()))

    def finish(self) -> None:
        """Stop sampling."""
        self._stop_asked.set()
        self.join(10)


def lengths(gaps: Iterable[Gap]) -> list[float]:
    """How long they are in seconds, ascending."""
    return sorted(gap.seconds for gap in gaps)


def percentile(ascending: list[float], share: float) -> float:
    """The value below which *share* of them lie; 0 where there are none."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))] if ascending else 0.0
