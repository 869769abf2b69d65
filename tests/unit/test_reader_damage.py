"""What a reader does when the index is damaged."""

import pytest

from channelindex import blocks
from channelindex.errors import IndexCorrupt
from channelindex.reading.changes_reader import ChangesReader
from channelindex.stores.base import BlockRef, ChannelState
from tests.support.indexing import Proxy, Row, filled


def block_of(index, number):
    (group,) = index.reader.channel_states(["A"])[0].active_by_group
    return BlockRef("A", group, number)


def damaged(index, number, replace, on_corrupt=blocks.refuse):
    wanted = block_of(index, number)

    def some_blocks(refs):
        found = index.reader.blocks(refs)
        return [replace(block) if ref == wanted else block for ref, block in zip(refs, found, strict=True)]

    return ChangesReader(Proxy(index.reader, blocks=some_blocks), on_corrupt)


@pytest.mark.parametrize(
    ("replace", "reason"),
    [
        (lambda block: None, "missing"),
        (lambda block: b"", "does not begin with a header"),
        (lambda block: block[:-1], "bytes announced"),
        (lambda block: block[:-1] + bytes([block[-1] ^ 1]), "checksum differs"),
        (lambda block: block[17 + int.from_bytes(block[1:5], "big") :], "does not begin with a header"),
        (lambda block: block + blocks.pack_frame(blocks.ENTRIES, 1, b"\0\0\0"), "cut off"),
        (lambda block: block + blocks.pack_frame(blocks.ENTRIES, 1, bytes(10) + b"\0\0\5\5key"), "after its frame"),
        (lambda block: block + blocks.pack_frame(blocks.ENTRIES, 1, b"\xff" * 13 + b"\0" + b"k" * 255), "vbucket"),
    ],
)
def test_a_damaged_block_is_an_error_that_names_it(index, replace, reason):
    filled(index)
    ref = block_of(index, 3)
    with pytest.raises(IndexCorrupt, match=reason) as caught:
        damaged(index, 3, replace).changes(["A"])
    assert f"block {ref.group}:3:A: " in str(caught.value)


DAMAGES = [
    (lambda block: None, 4),
    (lambda block: b"", 4),
    (lambda block: b"H" + bytes(3000), 4),
    (lambda block: block[:-1], 4),
    (lambda block: flipped(block, len(block) - 1), 4),
    (lambda block: flipped(block, 3), 0),  # the header says that it ends elsewhere
    (lambda block: flipped(block, 6), 0),  # the header's checksum differs
]


@pytest.mark.parametrize("number", [0, 3, 9])
@pytest.mark.parametrize(("replace", "missed"), DAMAGES)
def test_what_is_damaged_is_left_out_for_those_who_ask_for_it(index, number, replace, missed):
    filled(index)
    told: list[IndexCorrupt] = []
    answer = damaged(index, number, replace, told.append).changes(["A"])
    assert len(answer.entries) == 40 - missed
    assert told
    assert all(f"block {block_of(index, number).key}: " in str(error) for error in told)


@pytest.mark.parametrize(("replace", "missed"), DAMAGES)
def test_a_reader_goes_back_beyond_what_is_damaged(index, reader, replace, missed):
    index.advance(index.begin(), {0: 1})
    since = reader.changes(["A"]).since
    filled(index)
    told: list[IndexCorrupt] = []
    answer = damaged(index, 3, replace, told.append).changes(["A"], since)
    assert len(answer.entries) == 39 - missed
    assert told


def test_a_damaged_clock_is_reported_and_the_blocks_are_read_without_it(index):
    filled(index)

    def states(channels):
        (state,) = index.reader.channel_states(channels)
        return [_with_clock(state, b"\0")]

    told: list[IndexCorrupt] = []
    reader = ChangesReader(Proxy(index.reader, channel_states=states), told.append)
    assert len(reader.changes(["A"]).entries) == 40
    assert "clock of channel 'A'" in str(told[0])


def flipped(block: bytes, at: int) -> bytes:
    return block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]


def test_a_damaged_block_that_is_not_needed_does_no_harm(index, reader):
    epoch = filled(index)
    since = reader.changes(["A"]).since
    index.write(epoch, [Row("A", 0, 11, "news")])
    index.advance(epoch, {0: 11})
    assert [entry.id for entry in damaged(index, 0, lambda block: None).changes(["A"], since).entries] == ["news"]


def test_a_clock_of_a_vbucket_that_the_index_does_not_have_is_corrupt(index):
    epoch = filled(index)

    def states(channels):
        (state,) = index.reader.channel_states(channels)
        return [_with_clock(state, blocks.pack_frame(blocks.HEADER, epoch, blocks.pack_pairs({4: 1})))]

    with pytest.raises(IndexCorrupt, match="vbucket 4 in a clock"):
        ChangesReader(Proxy(index.reader, channel_states=states)).changes(["A"])


def _with_clock(state: ChannelState, clock: bytes) -> ChannelState:
    return ChannelState({name: group._replace(clock=clock) for name, group in state.groups.items()})


def test_an_active_block_that_is_missing_is_reported_and_those_before_it_are_read(index):
    filled(index)

    def states(channels):
        (state,) = index.reader.channel_states(channels)
        return [ChannelState({name: group._replace(tail=None) for name, group in state.groups.items()})]

    told: list[IndexCorrupt] = []
    reader = ChangesReader(Proxy(index.reader, channel_states=states), told.append)
    assert len(reader.changes(["A"]).entries) == 36
    assert "missing" in str(told[0])


@pytest.mark.parametrize("lost", ["a rotation", "a move of the clock", "the group", "the channel"])
def test_a_directory_of_a_server_whose_successor_lacks_the_newest_is_read_again_there(index, lost):
    """One connection broke between two requests of a read: the directory is of the one, blocks are of the other."""
    filled(index)
    if lost == "the channel":
        index.write(1, [Row("B", 0, 1, "gone")])
    name = "B" if lost == "the channel" else "A"
    n_read = 0

    def states(channels):
        nonlocal n_read
        n_read += 1
        found = index.reader.channel_states(channels)
        if n_read > 1:
            return [None] * len(channels) if name == "B" else found
        ((group, state),) = found[0].groups.items()
        newest = state.directory._replace(number=state.directory.number + 1)
        if lost == "a move of the clock":
            newest = state.directory._replace(upto=state.directory.upto + 1000)
        named = "another" if lost == "the group" else group
        return [ChannelState({named: state._replace(directory=newest, tail=None)})]

    entries = ChangesReader(Proxy(index.reader, channel_states=states)).changes([name]).entries
    assert len(entries) == (0 if name == "B" else 40)
    assert n_read > 1
