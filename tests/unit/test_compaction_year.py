"""A long life of an index in small: space, directories and what compaction writes stay in proportion.

Documents change at random, partitions change their owner every hour, and a compactor looks once an hour.
"""

import random
from typing import NamedTuple

import pytest

from channelindex import epochs
from channelindex.compaction import view
from channelindex.compaction.compactor import Compactor
from channelindex.compaction.due import MAX_GROUPS
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import CompactionSettings
from tests.support.indexing import Row, SmallIndex

BLOCK_BYTES = 1024
HOUR_S = 3600.0
KEPT_STARTS = 6
PRUNED_AFTER_HOURS = 26
PRUNED_AT_ONCE = 8


class Year(NamedTuple):
    """The size of a life: an hour has so many changes."""

    hours: int
    changes: int
    documents: int
    channels: int


class Life:
    """An index of two nodes that take each other's partitions every hour."""

    def __init__(self, year: Year) -> None:
        self.index = SmallIndex(n_vbuckets=4, n_partitions=2, block_bytes=BLOCK_BYTES)
        self.year = year
        self.now_s = 1_000_000.0
        self.seqnos = dict.fromkeys(range(4), 0)
        self.newest: dict[str, tuple[int, str]] = {}
        self.random = random.Random(15)
        self.compactor = Compactor(
            self.index.compaction(),
            self.index.reader,
            CompactionSettings(min_lag_s=HOUR_S, grace_s=0.0),
            BLOCK_BYTES,
            clock=lambda: self.now_s,
        )
        self.written = self.rewritten = self.pruned = 0

    def live_an_hour(self, hour: int) -> None:
        """Hand over, index changes, and compact what is due."""
        partitions = ((0, 1), (0,), (1,))[hour % 3]
        epoch = self.index.begin(partitions)
        others = self.index.begin([p for p in (0, 1) if p not in partitions])
        for _ in range(self.year.changes // 20):
            rows: dict[int, list[Row]] = {0: [], 1: []}
            for _ in range(20):
                number = self.random.randrange(self.year.documents)
                vb = number % 4
                self.seqnos[vb] += 1
                row = Row(f"c{number % self.year.channels}", vb, self.seqnos[vb], f"doc-{number}", f"{hour}-aa")
                self.newest[row.key] = (row.seqno, row.channel)
                rows[vb // 2].append(row)
            ours = [row for partition in partitions for row in rows[partition]]
            theirs = [row for partition in (0, 1) if partition not in partitions for row in rows[partition]]
            if ours:
                self.index.write(epoch, ours, partitions)
            if theirs:
                self.index.write(others, theirs, [p for p in (0, 1) if p not in partitions])
        for partition in (0, 1):
            owner = epoch if partition in partitions else others
            self.index.advance(owner, {vb: self.seqnos[vb] for vb in self.index.meta.vbuckets_of(partition)})
            self.index.owner.note_moments(owner, [partition], self.now_s)
        self.now_s += HOUR_S
        channels = list(self.index.reader.channels())
        self.written = sum(state.counter for state in self.index.reader.channel_states(channels) if state)
        self.pruned += self.compactor.prune(lambda: channels, PRUNED_AT_ONCE)
        for due in self.compactor.find_due(channels):
            self.rewritten += self.compactor.compact(due.channel, due.extent).bytes_written

    def check(self) -> None:
        """Hold space, directories and histories against their bounds, and an answer against what was written."""
        for starts in self.index.reader.archived_starts((0, 1)):
            assert len(starts) <= PRUNED_AFTER_HOURS + PRUNED_AT_ONCE + KEPT_STARTS
        for channel in self.index.reader.channels():
            (state,) = self.index.reader.channel_states([channel])
            assert state is not None
            n_bytes = sum(group.n_bytes - group.directory.dropped for group in state.groups.values())
            hour_bytes = 3 * 60 * self.year.changes // self.year.channels  # not settled yet, and the last look's
            bound = 2 * state.compacted.live + (len(state.groups) + 1) * (BLOCK_BYTES + 200) + hour_bytes
            assert n_bytes <= bound, (channel, n_bytes, state.compacted)
            assert len(state.groups) <= MAX_GROUPS + 2, (channel, list(state.groups))
            told = {change.id: change.seqno for change in ChangesReader(self.index.reader).changes([channel]).entries}
            assert told == {key: seqno for key, (seqno, of) in self.newest.items() if of == channel}


@pytest.mark.parametrize(
    "year",
    [
        Year(hours=72, changes=400, documents=200, channels=10),
        pytest.param(Year(hours=24 * 30, changes=2000, documents=2000, channels=50), marks=pytest.mark.nightly),
    ],
    ids=["three days", "a month"],
)
def test_space_directories_histories_and_writes_stay_in_proportion(year, monkeypatch):
    monkeypatch.setattr(epochs, "HISTORY_BYTES", KEPT_STARTS * 8 * 3)
    monkeypatch.setattr(view, "PRUNED_AFTER_S", PRUNED_AFTER_HOURS * HOUR_S)
    life = Life(year)
    for hour in range(year.hours):
        life.live_an_hour(hour)
        if hour % 8 == 7:
            life.check()
    life.check()
    assert life.rewritten <= life.written, "each byte is written twice at most: once appended, once rewritten"
    assert life.pruned > year.hours // 2
    life.index.close()
