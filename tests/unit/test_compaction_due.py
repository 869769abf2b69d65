"""When compaction is due, and in which order nodes take what is: all from directories; no block is read for it."""

from typing import Any

import pytest

from channelindex.compaction.compactor import Compactor
from channelindex.compaction.due import MAX_GROUPS, DueChannel, Extent, due, merged_groups
from channelindex.settings import CompactionSettings
from channelindex.stores.base import COMPACT_PREFIX, Compacted, Directory
from channelindex.stores.block_writer import MIN_BLOCK_BYTES, full_at
from channelindex.stores.compacting import ChannelSizes, GroupSize
from tests.support.indexing import Row, SmallIndex
from workers.pipeline.compaction_worker import in_turn

BLOCK = 65536
NOW_S = 1_800_000_000.0
PRESENT = frozenset({7})
SETTINGS = CompactionSettings(max_lag_s=86400.0)


def _group(epoch: int, n_bytes: int, *, number: int = 1, active_bytes: int = 0) -> GroupSize:
    return GroupSize(Directory(number, epoch, n_bytes - active_bytes), active_bytes)


def _sizes(live: int, at: int, **groups: GroupSize) -> ChannelSizes:
    return ChannelSizes(Compacted(1, live, at=at), {name.replace("_", "-"): group for name, group in groups.items()})


def _due(sizes: ChannelSizes) -> DueChannel | None:
    return due("A", sizes, PRESENT, BLOCK, SETTINGS, NOW_S)


@pytest.mark.parametrize("live", [0, 1000, 10_000, 1_000_000])
def test_a_channel_is_due_at_twice_what_was_left_and_a_block(live):
    limit = 2 * live + full_at(live, BLOCK)
    assert _due(_sizes(live, int(NOW_S), g=_group(7, limit - 1))) is None
    assert _due(_sizes(live, int(NOW_S), g=_group(7, limit))) == DueChannel("A", Extent.FULL, limit - live)


def test_a_quiet_channel_is_due_after_the_longest_lag_if_anything_came():
    long_ago = int(NOW_S - SETTINGS.max_lag_s)
    assert _due(_sizes(1000, long_ago, g=_group(7, 1001))) is not None
    assert _due(_sizes(1000, long_ago + 1, g=_group(7, 1001))) is None
    assert _due(_sizes(1000, long_ago, g=_group(7, 1000))) is None


def test_a_channel_that_was_never_compacted_is_as_old_as_the_epochs_that_wrote_it():
    epoch = int((NOW_S - SETTINGS.max_lag_s) * 1000)
    for began, is_due in ((epoch, True), (epoch + 1000, False)):
        sizes = ChannelSizes(Compacted(), {"g": _group(began, 10)})
        assert (due("A", sizes, frozenset({began}), BLOCK, SETTINGS, NOW_S) is not None) == is_due


def test_what_present_epochs_append_to_counts_for_nothing():
    """Their active blocks cannot be compacted: what is due for them alone would be rewritten at each look."""
    live, limit = 10_000, 2 * 10_000 + 10_000
    full = _group(7, limit - 1 + 5000, active_bytes=5000)
    assert _due(_sizes(live, int(NOW_S), g=full)) is None
    assert _due(_sizes(live, int(NOW_S), g=full._replace(active_bytes=0))) is None
    longer = _group(7, limit + 5000, active_bytes=5000)
    assert _due(_sizes(live, int(NOW_S), g=longer)) == DueChannel("A", Extent.FULL, limit - live)


def test_active_blocks_of_present_epochs_alone_are_no_reason():
    sizes = _sizes(10, 1, g=_group(7, 10 * BLOCK, number=0, active_bytes=10 * BLOCK))
    assert _due(sizes) is None
    assert _due(_sizes(10, 1, g=_group(6, 10 * BLOCK, number=0, active_bytes=10 * BLOCK))) is not None


def test_many_groups_are_merged_the_small_ones_alone():
    groups = {
        f"g{number}": _group(number % 6, 100 + number, number=0, active_bytes=100 + number)
        for number in range(MAX_GROUPS - 1)
    }
    large = {f"{COMPACT_PREFIX}1": _group(1, 10**6), f"{COMPACT_PREFIX}2": _group(1, 500), "now": _group(7, 10)}
    sizes = ChannelSizes(Compacted(1, 10**6, at=int(NOW_S)), groups | large)
    assert _due(sizes) == DueChannel("A", Extent.MERGE, sizes.n_bytes - 10**6)
    present = {f"p{number}": _group(7, 10) for number in range(MAX_GROUPS)}
    assert _due(sizes._replace(groups=present | large)) is None, "those of present epochs cannot be merged"
    assert merged_groups(sizes, PRESENT) == {*groups, f"{COMPACT_PREFIX}2"}


def test_a_block_is_full_at_what_was_left_between_its_bounds():
    assert [full_at(live, BLOCK) for live in (0, 1, 5000, BLOCK, 10**9)] == [BLOCK, MIN_BLOCK_BYTES, 5000, BLOCK, BLOCK]


def test_nodes_take_what_has_most_to_win_first_and_what_is_alike_in_another_order_each():
    found = [DueChannel(f"c{number}", Extent.FULL, 1 << (number % 3) * 10) for number in range(60)]
    star = DueChannel("*", Extent.FULL, 2)
    orders = [in_turn([*found, star], f"node-{number}") for number in range(3)]
    assert [order.pop(0) for order in orders] == [star] * 3, "most readers pay for it"
    for order in orders:
        assert sorted(order) == sorted(found)
        assert [each.gain for each in order] == sorted((each.gain for each in found), reverse=True)
    assert len({order[0].channel for order in orders}) > 1


class _Counting:
    """A store's reader that counts blocks that are read."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.n_blocks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def blocks(self, refs: Any) -> Any:
        self.n_blocks += len(refs)
        return self._store.blocks(refs)


def test_the_star_channel_comes_first_and_no_block_is_read_to_find_what_is_due():
    index = SmallIndex()
    epoch = index.begin()
    for seqno in range(1, 60):
        rows = [Row("*", 0, seqno, "doc"), Row("A", 0, seqno, "doc" * 20), Row("B", 0, 1, "b")]
        index.write(epoch, rows if seqno == 1 else rows[:2])
    index.begin()
    reader = _Counting(index.reader)
    compactor = Compactor(index.compaction(), reader, CompactionSettings(), 100, clock=lambda: 0.0)
    assert [each.channel for each in compactor.find_due(["A", "B", "*"])] == ["*", "A"]
    assert reader.n_blocks == 0
    index.close()


def test_what_settles_later_leaves_by_a_view_that_is_taken_anew_after_the_least_lag():
    index = SmallIndex()
    epoch, now_s, n_superseded = index.begin(), 1000.0, 0
    compactor = Compactor(
        index.compaction(), index.reader, CompactionSettings(min_lag_s=10.0), 100, clock=lambda: now_s
    )
    for seqno in range(1, 10):
        index.write(epoch, [Row("A", 0, seqno, "doc" * 20)])
        index.advance(epoch, {0: seqno})
        index.owner.note_moments(epoch, [0], now_s)
        now_s += 10.0
        n_superseded += compactor.compact("A").counts.superseded
    assert n_superseded >= 6, "all but the newest, what is in the active block, and what it superseded"
    index.close()
