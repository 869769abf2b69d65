"""What an index in memory forgets: the newest entries stay, old ones go, and the header of what is left says so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.blocks import FORMAT_VERSION
from channelindex.errors import ChangesForgotten
from channelindex.hashing import group_of
from channelindex.model import Checkpoint, IndexMeta
from channelindex.reading.retained import read_retained
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores.base import BlockRef
from channelindex.stores.memory import MemoryIndex, MemoryOwner, MemoryReader, memory_writer
from channelindex.stores.memory_limits import HeldBlocks, MemoryLimits
from tests.support.stores import append, entry

META = IndexMeta(FORMAT_VERSION, n_vbuckets=2, n_partitions=1, source_uuid="s", index_uuid="i")
GROUP = group_of([0], 1)
CHAIN = ("A", "g")


def _none(chain: tuple[str, str]) -> int:
    return 0


def test_blocks_beyond_the_newest_entries_are_forgotten():
    held = HeldBlocks(MemoryLimits(max_entries=10))
    assert [held.seal(CHAIN, number, 4, 0.0) for number in range(5)] == [[], [], [], [0], [1]]
    assert held.oldest(CHAIN, active=5) == 2


def test_old_blocks_are_forgotten_but_for_the_newest_entries():
    held = HeldBlocks(MemoryLimits(min_entries=5, max_age_s=60))
    for number in range(4):
        held.seal(CHAIN, number, 3, float(number))
    assert held.expire(59.9, _none) == []
    assert held.expire(61.5, _none) == [(CHAIN, 0), (CHAIN, 1)]
    assert held.expire(1000.0, _none) == []
    assert held.seal(CHAIN, 4, 3, 1001.0) == [2]
    assert held.seal(CHAIN, 5, 3, 1002.0) == [3]


def test_entries_of_the_active_block_count_among_the_newest():
    held = HeldBlocks(MemoryLimits(min_entries=5, max_age_s=60))
    held.seal(CHAIN, 0, 3, 0.0)
    assert held.expire(100.0, lambda chain: 5) == [(CHAIN, 0)]
    assert held.oldest(CHAIN, active=1) == 1


def test_no_bounds_forget_nothing():
    held = HeldBlocks(MemoryLimits())
    assert not any(held.seal(CHAIN, number, 10**6, float(number)) for number in range(100))
    assert MemoryLimits().block_bytes(65536) == 65536


@pytest.mark.parametrize(("max_entries", "expected"), [(500, 2961), (10**6, 65536), (1, 512)])
def test_blocks_are_an_eighth_of_what_is_held(max_entries, expected):
    assert MemoryLimits(max_entries).block_bytes(65536) == expected


class Site:
    """A bounded index with its three halves, and a clock of its own."""

    def __init__(self, limits: MemoryLimits) -> None:
        self.now = 0.0
        self.index = MemoryIndex(limits, lambda: self.now)
        self.owner = MemoryOwner(self.index, "test")
        self.owner.create_or_check(META)
        self.owner.begin(0, 1, "n1")
        self.writer = memory_writer(self.index, 65536)
        self.reader = MemoryReader(self.index, "test")
        self.seqno = 0

    def write(self, n_entries: int) -> None:
        entries = [entry(0, self.seqno + number) for number in range(1, n_entries + 1)]
        self.seqno += n_entries
        self.writer.write([append("A", 1, *entries, group=GROUP)])
        at = self.seqno
        self.owner.advance(1, {0: {0: Checkpoint(1, at, at, at)}})

    def held(self) -> tuple[list[int], int]:
        """The seqnos that can be read, and the one up to which some are forgotten."""
        (retained,) = read_retained(self.reader, ["A"], IndexSnapshot.take(self.reader))
        return [each.seqno for each in retained.entries], retained.floor.get(0, 0)


def test_what_is_held_begins_right_behind_the_floor():
    site = Site(MemoryLimits(max_entries=80))
    for _ in range(50):
        site.write(10)
    seqnos, floor = site.held()
    assert seqnos == list(range(floor + 1, 501))
    assert 80 <= len(seqnos) <= 80 + 3 * 20


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(0, 40)), max_size=60))
def test_every_reader_gets_all_beyond_its_since_or_learns_that_it_cannot(steps):
    site = Site(MemoryLimits(max_entries=80, min_entries=20, max_age_s=60))
    for n_entries, seconds in steps:
        site.write(n_entries)
        site.now += seconds
        site.index.forget_old()
        seqnos, floor = site.held()
        assert seqnos == list(range(floor + 1, site.seqno + 1))
        assert len(seqnos) >= min(20, site.seqno)


def test_forgotten_block_is_distinguished_from_one_that_never_was():
    site = Site(MemoryLimits(max_entries=8))
    for _ in range(20):
        site.write(10)
    with pytest.raises(ChangesForgotten):
        site.reader.blocks([BlockRef("A", GROUP, 0)])
    assert site.reader.blocks([BlockRef("A", GROUP, 10**6), BlockRef("B", GROUP, 0)]) == [None, None]


def test_late_append_to_a_forgotten_block_does_not_bring_it_back():
    site = Site(MemoryLimits(max_entries=8))
    site.write(10)
    late = memory_writer(site.index, 65536)
    late.write([append("A", 1, entry(0, 1), group=GROUP)])
    for _ in range(20):
        site.write(10)
    late.write([append("A", 1, entry(0, 1), group=GROUP)])
    with pytest.raises(ChangesForgotten):
        site.reader.blocks([BlockRef("A", GROUP, 0)])
