from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex import blocks
from channelindex.model import Entry
from channelindex.stores.base import ChannelAppend
from workers.pipeline import frames
from workers.pipeline.frames import RingFrame, decode_frame, merge, pack_frames

GROUP = "0123456789abcdef"
EPOCH = (1 << 63) + 5


def section_of(entries: list[Entry]) -> list[bytes]:
    return [blocks.pack_entry(entry) for entry in entries]


@st.composite
def entry_lists(draw: st.DrawFn) -> list[Entry]:
    seqno_by_vb: dict[int, int] = {}
    entries = []
    for vb in draw(st.lists(st.integers(0, 5), min_size=1, max_size=12)):
        seqno_by_vb[vb] = seqno_by_vb.get(vb, 0) + draw(st.integers(1, 1 << 40))
        key = draw(st.binary(min_size=1, max_size=30))
        rev = draw(st.sampled_from(["1-abc", "2-0123456789abcdef0123456789abcdef"]))
        entries.append(Entry(vb, seqno_by_vb[vb], key, rev, draw(st.integers(0, 31))))
    return entries


ROUNDS = st.dictionaries(st.text(min_size=1, max_size=12), entry_lists(), max_size=6)
PRINCIPALS = st.lists(st.text(min_size=1, max_size=20), max_size=6)


def entries_by_channel(appends: list[ChannelAppend]) -> Mapping[str, list[Entry]]:
    assert len({append.channel for append in appends}) == len(appends)
    return {append.channel: list(blocks.iter_entries(append.entries)) for append in appends}


@given(round_=ROUNDS, principals=PRINCIPALS, max_bytes=st.integers(300, 2000))
def test_packing_and_merging_gives_back_the_round(round_, principals, max_bytes):
    sections = {channel: section_of(entries) for channel, entries in round_.items()}
    payloads = pack_frames(EPOCH, GROUP, sections, principals, max_bytes)
    decoded = [decode_frame(memoryview(payload)) for payload in payloads]
    assert all(len(payload) <= max_bytes for payload in payloads)
    assert all((frame.epoch, frame.group) == (EPOCH, GROUP) for frame in decoded)
    assert [key for frame in decoded for key in frame.principals] == principals
    appends = merge(decoded)
    assert [append.channel for append in appends] == list(round_)
    assert entries_by_channel(appends) == round_


def test_a_round_that_fits_is_one_frame():
    sections = {name: section_of([Entry(3, 7, b"doc", "1-a", 0)]) for name in ("a", "b")}
    payloads = pack_frames(1, GROUP, sections, ["_sync:user:u"], 1000)
    assert len(payloads) == 1
    frame = decode_frame(payloads[0])
    assert [channel for channel, _ in frame.channels] == ["a", "b"]
    assert frame.principals == ["_sync:user:u"]


def test_frames_are_filled_before_the_next_is_begun():
    entries = [Entry(1, seqno, b"k" * 80, "1-a", 0) for seqno in range(1, 101)]
    payloads = pack_frames(1, GROUP, {"big": section_of(entries)}, [], 1000)
    assert all(len(payload) > 700 for payload in payloads[:-1])


def test_an_empty_round_gives_no_frame():
    assert pack_frames(1, GROUP, {}, [], 1000) == []


def test_an_entry_that_does_not_fit_is_refused():
    sections = {"a": section_of([Entry(1, 1, b"k" * 200, "1-a", 0)])}
    with pytest.raises(ValueError, match=r"one entry takes .* workers\.ring_bytes"):
        pack_frames(1, GROUP, sections, [], 250)


def test_a_principal_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one principal takes"):
        pack_frames(1, GROUP, {}, ["p" * 300], 250)


def test_the_bound_of_the_encoded_size_is_one_for_large_heads_and_not_wasteful():
    channel, entries = "c" * 300, b"e" * 70_000
    sections = {channel: [entries]}
    size = len(pack_frames(EPOCH, GROUP, sections, [], 1 << 20)[0])
    bound = frames._HEAD_BYTES + len(GROUP) + frames._SECTION_BYTES + len(channel) + len(entries)
    assert bound - 32 < size <= bound
    assert len(pack_frames(EPOCH, GROUP, sections, [], bound)) == 1


def frame_with(epoch: int, group: str, seqno: int) -> RingFrame:
    entry = blocks.pack_entry(Entry(1, seqno, b"doc", "1-a", 0))
    return RingFrame(epoch, group, [("a", entry)], [])


def test_groups_and_epochs_are_not_mixed():
    appends = merge([frame_with(1, "g", 5), frame_with(2, "g", 6), frame_with(2, "h", 7), frame_with(2, "g", 8)])
    seqnos = {
        (append.group, append.epoch): [entry.seqno for entry in blocks.iter_entries(append.entries)]
        for append in appends
    }
    assert seqnos == {("g", 1): [5], ("g", 2): [6, 8], ("h", 2): [7]}
    assert len(appends) == 3
