"""What a writer remembers of active blocks, in Python: the clock of all that is in them, as long as it knows that."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.blocks import ENTRIES, FRAME_HEAD_BYTES, pack_clock, pack_entry, pack_frame
from channelindex.model import Entry
from channelindex.stores.active import ActiveBlock, ActiveBlocks, Location, learn, locating
from channelindex.stores.base import ChannelAppend
from channelindex.stores.block_writer import full_at, sort

KEY = ("a", "g")
TWO = b"".join(pack_entry(Entry(vb, 9, b"k", "1-a", 0)) for vb in range(2))
SEVERAL = st.lists(
    st.builds(
        Entry,
        st.sampled_from([0, 1, 63, 1023]),
        st.integers(1, 1 << 40),
        st.sampled_from([b"key", b"longer"]),
        st.sampled_from(["1-a", "2-" + 32 * "b"]),
        st.just(0),
    ),
    min_size=2,
    max_size=5,
).map(lambda entries: b"".join(map(pack_entry, entries)))


def begin(blocks: ActiveBlocks, entries: bytes, key: tuple[str, str] = KEY, size: int = 0) -> ActiveBlock:
    """What *blocks* know of block 3 of a group that began with *entries*, or that has *size* bytes since."""
    location = Location(3, size or 2 * FRAME_HEAD_BYTES + len(entries), 0)
    assert learn(blocks, [locating(ChannelAppend(*key, 7, entries))], [location], 1 << 16, full_at) == set()
    found = blocks.get(key)
    assert found is not None
    return found


def go_on(blocks: ActiveBlocks, appended: Sequence[bytes]) -> None:
    for entries in appended:
        assert len(sort(blocks, [ChannelAppend(*KEY, 7, entries)], 1 << 62).known) == 1


def clock_of(appended: Sequence[bytes]) -> bytes:
    return pack_clock(b"".join(pack_frame(ENTRIES, 7, entries) for entries in appended))


@given(appended=st.lists(SEVERAL, min_size=1, max_size=6), after_move=st.lists(SEVERAL, min_size=1, max_size=3))
def test_a_block_is_summed_up_to_the_clock_of_its_frames(appended: list[bytes], after_move: list[bytes]) -> None:
    blocks = ActiveBlocks(10, 1 << 20)
    active = begin(blocks, appended[0])
    go_on(blocks, appended[1:])
    assert active.clock == clock_of(appended)
    active.summed = (4, 4, 2, active.clock)
    blocks.put(KEY, active, after_move[0])
    go_on(blocks, after_move[1:])
    assert active.clock == clock_of([*appended, *after_move])
    assert active.summed[:3] == (4, 4, 2)


def test_a_sum_is_kept_only_of_what_is_known_in_full_and_comes_often() -> None:
    blocks = ActiveBlocks(10, 1 << 20)
    assert begin(blocks, TWO).summed == (0, 3, 0, b"")
    assert begin(blocks, TWO, size=1000).summed is None, "somebody else was there before"
    assert begin(blocks, TWO[: len(TWO) // 2]).summed is None, "it may not be written again for hours"
    assert begin(ActiveBlocks(10), TWO).summed is None, "others' appends would not be noticed"


def test_sums_are_forgotten_where_they_would_take_too_much() -> None:
    blocks = ActiveBlocks(10, 6 * len(TWO))
    first, second = begin(blocks, TWO), begin(blocks, TWO, ("b", "g"))
    go_on(blocks, 4 * [TWO])
    assert first.clock == second.clock == clock_of([TWO])
    go_on(blocks, [TWO])
    assert first.summed is second.summed is None
    assert first.since is second.since is None
    with pytest.raises(AssertionError):
        _ = first.clock
    go_on(blocks, [TWO])
    assert first.size == 2 * FRAME_HEAD_BYTES + len(TWO) + 6 * (FRAME_HEAD_BYTES + len(TWO)), "where it is, is known"
    assert begin(blocks, TWO, ("c", "g")).summed is not None, "there is room again"


def test_what_is_moved_takes_no_more_room_than_its_clock() -> None:
    blocks = ActiveBlocks(10, 10 * len(TWO))
    active = begin(blocks, TWO)
    for _ in range(20):
        go_on(blocks, 3 * [TWO])
        active.summed = (0, 3, 0, active.clock)
        blocks.put(KEY, active, TWO)
    assert active.clock == clock_of([TWO])
