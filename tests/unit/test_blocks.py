"""The stored format: what is packed comes back, and damage is noticed."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex import blocks
from channelindex.errors import IndexCorrupt
from channelindex.model import Entry

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([2**24 - 1, 2**24, 2**32, 2**48, 2**53 + 1, 2**63]))
PACKABLE = st.builds(
    lambda generation, digest: f"{generation}-{digest.hex()}", U32, st.binary(min_size=16, max_size=16)
)
REVS = st.one_of(PACKABLE, st.text(max_size=60), st.from_regex(r"\A[0-9]{1,12}-[0-9a-fA-F]{30,33}\Z"))
ENTRIES = st.builds(Entry, U16, U64, st.binary(max_size=blocks.MAX_KEY_BYTES), REVS, U16)
CLOCKS = st.dictionaries(U16, U64, max_size=20)
RECORDS = st.lists(st.tuples(st.integers(1, 9), CLOCKS), max_size=8)


@given(st.lists(ENTRIES, max_size=10))
def test_entries_come_back_in_order(entries):
    assert list(blocks.iter_entries(b"".join(map(blocks.pack_entry, entries)))) == entries


@given(PACKABLE)
def test_usual_revisions_take_twenty_bytes(rev):
    assert blocks.pack_rev(rev)[0] == blocks.PACKED
    assert len(blocks.pack_rev(rev)[1]) == blocks.PACKED_REV_BYTES


@pytest.mark.parametrize(
    "rev",
    [
        "01-" + "ab" * 16,
        "1-" + "AB" * 16,
        "-" + "ab" * 16,
        "4294967296-" + "ab" * 16,
        "\uff11-" + "ab" * 16,
        "1-" + "ab" * 15 + " a",
        "",
        "1-abc",
    ],
)
def test_revisions_that_are_not_quite_usual_are_kept_as_they_are(rev):
    size, raw = blocks.pack_rev(rev)
    assert (size, raw) == (len(rev.encode()), rev.encode())


def test_longest_revision_fits_and_a_longer_one_is_refused():
    assert blocks.pack_rev("r" * blocks.MAX_REV_BYTES)[0] == blocks.MAX_REV_BYTES
    with pytest.raises(ValueError, match="255 bytes"):
        blocks.pack_rev("r" * 255)


@given(ENTRIES)
def test_entry_begins_with_its_clock_pair(entry):
    assert blocks.unpack_pairs(blocks.pack_entry(entry)[: blocks.PAIR_BYTES]) == {entry.vb: entry.seqno}


@given(st.lists(ENTRIES, min_size=1, max_size=3), st.data())
def test_entries_that_are_cut_off_are_corrupt(entries, data):
    packed = list(map(blocks.pack_entry, entries))
    body = b"".join(packed)
    cut = data.draw(st.integers(1, len(packed[-1]) - 1))
    with pytest.raises(IndexCorrupt, match="cut off"):
        list(blocks.iter_entries(body[:-cut]))


@given(st.lists(st.tuples(st.sampled_from([blocks.HEADER, blocks.ENTRIES]), U64, st.binary(max_size=40)), max_size=5))
def test_frames_come_back_in_order(frames):
    block = b"".join(blocks.pack_frame(*frame) for frame in frames)
    assert list(blocks.iter_frames(block)) == frames


@given(U64, st.binary(max_size=60), st.data())
def test_any_flipped_bit_of_a_frame_is_noticed(epoch, body, data):
    frame = bytearray(blocks.pack_frame(blocks.ENTRIES, epoch, body))
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IndexCorrupt):
        list(blocks.iter_frames(bytes(frame)))


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), st.data())
def test_frames_beside_a_damaged_one_are_read_by_those_who_ask_for_it(bodies, data):
    frames = [blocks.pack_frame(blocks.ENTRIES, epoch, body) for epoch, body in enumerate(bodies)]
    victim = data.draw(st.integers(0, len(frames) - 1))
    at = data.draw(st.integers(0, len(frames[victim]) - 1))
    damaged = bytearray(frames[victim])
    damaged[at] ^= data.draw(st.integers(1, 255).filter(lambda bits: at or bits != blocks.HEADER ^ blocks.ENTRIES))
    told: list[IndexCorrupt] = []
    found = list(blocks.iter_frames(b"".join([*frames[:victim], damaged, *frames[victim + 1 :]]), told.append))
    whole = [(blocks.ENTRIES, epoch, body) for epoch, body in enumerate(bodies) if epoch != victim]
    if at in range(1, 5):  # the length: it may say that the frame ends where another one after it does
        assert found[:victim] == whole[:victim]
        assert set(found) <= set(whole)
    else:
        assert found == whole
    assert f"byte {sum(map(len, frames[:victim]))}" in str(told[0])


def test_what_looks_like_a_frame_within_a_damaged_one_is_not_taken_for_one():
    forged, last = blocks.pack_frame(blocks.ENTRIES, 9, b"forged"), blocks.pack_frame(blocks.ENTRIES, 2, b"whole")
    victim = bytearray(blocks.pack_frame(blocks.ENTRIES, 1, b"the key " + forged + b" of a document"))
    victim[-1] ^= 1
    assert list(blocks.iter_frames(bytes(victim) + last, lambda error: None)) == [(blocks.ENTRIES, 2, b"whole")]
    assert list(blocks.iter_frames(bytes(victim), lambda error: None)) == []


@given(st.binary(max_size=60), st.data())
def test_block_that_is_cut_off_yields_what_is_whole_and_is_corrupt(body, data):
    whole = blocks.pack_frame(blocks.HEADER, 1, b"")
    last = blocks.pack_frame(blocks.ENTRIES, 2, body)
    cut = data.draw(st.integers(1, len(last) - 1))
    frames = blocks.iter_frames(whole + last[:-cut])
    assert next(frames) == (blocks.HEADER, 1, b"")
    with pytest.raises(IndexCorrupt, match=r"cut off|announced"):
        next(frames)


@given(CLOCKS)
def test_clocks_come_back(clock):
    pairs = blocks.pack_pairs(clock)
    assert blocks.unpack_pairs(pairs) == clock
    assert [vb for vb, _ in struct.iter_unpack(">HQ", pairs)] == sorted(clock)


def test_pairs_of_one_vbucket_count_by_maximum():
    pairs = blocks.pack_pairs({1: 5}) + blocks.pack_pairs({1: 9}) + blocks.pack_pairs({1: 7, 2: 0})
    assert blocks.unpack_pairs(pairs) == {1: 9, 2: 0}


def test_pairs_that_are_cut_off_are_corrupt():
    with pytest.raises(IndexCorrupt, match="19 bytes"):
        blocks.unpack_pairs(blocks.pack_pairs({1: 5, 2: 6})[:-1])


def _frames(records) -> bytes:
    """A frame for each (epoch, clock): of entries where the epoch is odd, else a header."""
    return b"".join(
        blocks.pack_frame(blocks.ENTRIES, epoch, b"".join(map(_entry, clock.items())))
        if epoch % 2
        else blocks.pack_frame(blocks.HEADER, epoch, blocks.pack_pairs(clock))
        for epoch, clock in records
    )


def _entry(pair: tuple[int, int]) -> bytes:
    vb, seqno = pair
    return blocks.pack_entry(Entry(vb, seqno, b"key" * (vb % 5), f"1-{'ab' * 16}" if vb % 2 else "1-x", 0))


@given(RECORDS)
def test_the_clock_is_the_maximum_over_all_frames(records):
    expected: dict[int, int] = {}
    for _, clock in records:
        for vb, seqno in clock.items():
            expected[vb] = max(expected.get(vb, 0), seqno)
    assert blocks.fold_clock(_frames(records)) == expected


@given(RECORDS, st.randoms())
def test_order_of_frames_does_not_matter_to_the_clock(records, random):
    shuffled = records[:]
    random.shuffle(shuffled)
    assert blocks.fold_clock(_frames(records)) == blocks.fold_clock(_frames(shuffled))


@given(RECORDS, RECORDS)
def test_the_clock_only_rises(records, more):
    before, after = blocks.fold_clock(_frames(records)), blocks.fold_clock(_frames(records + more))
    assert all(after[vb] >= seqno for vb, seqno in before.items())


@given(RECORDS, RECORDS)
def test_a_header_that_sums_up_the_first_frames_changes_nothing(records, more):
    header = blocks.pack_frame(blocks.HEADER, 9, blocks.pack_pairs(blocks.fold_clock(_frames(records))))
    assert blocks.fold_clock(header + _frames(more)) == blocks.fold_clock(_frames(records + more))


@given(RECORDS, st.dictionaries(st.integers(1, 9), st.integers(0, 2**64 - 1)))
def test_limit_lowers_each_frame_by_its_own_epoch(records, limit_by_epoch):
    def limit(epoch: int, vb: int) -> int:
        return limit_by_epoch.get(epoch, 2**64 - 1) if vb % 2 else 2**64 - 1

    lowered = [(epoch, {vb: min(seqno, limit(epoch, vb)) for vb, seqno in clock.items()}) for epoch, clock in records]
    assert blocks.fold_clock(_frames(records), limit) == blocks.fold_clock(_frames(lowered))


@given(RECORDS.filter(bool), st.data())
def test_frames_that_are_cut_off_have_no_clock(records, data):
    frames = _frames(records)
    cut = data.draw(st.integers(1, len(_frames(records[-1:])) - 1))
    with pytest.raises(IndexCorrupt, match=r"cut off|announced"):
        blocks.fold_clock(frames[:-cut])


@pytest.mark.parametrize("n_cut", [1, 20, 33])
def test_entries_that_end_after_their_frame_have_no_clock(n_cut):
    body = _entry((1, 5)) + _entry((3, 7))
    with pytest.raises(IndexCorrupt, match=r"cut off|after its frame"):
        blocks.fold_clock(blocks.pack_frame(blocks.ENTRIES, 1, body[:-n_cut]))


_REVS = st.sampled_from([f"1-{'ab' * 16}", "2-" + "0f" * 16, "1-x", "r" * 20, ""])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.sampled_from([b"k1", b"k2", b"key", b""]), _REVS)))
def test_the_clock_of_entries_is_their_maximum_whatever_their_lengths_and_order(fields):
    body = b"".join(blocks.pack_fields(vb, seqno, key, rev, 0) for vb, seqno, key, rev in fields)
    expected: dict[int, int] = {}
    for entry in blocks.iter_entries(body):
        expected[entry.vb] = max(expected.get(entry.vb, 0), entry.seqno)
    assert blocks.fold_clock(blocks.pack_frame(blocks.ENTRIES, 1, body)) == expected
    assert [(e.vb, e.seqno, e.key, e.rev) for e in blocks.iter_entries(body)] == fields


@given(CLOCKS, st.binary(max_size=40))
def test_a_block_is_split_behind_its_header(clock, rest):
    header = blocks.pack_frame(blocks.HEADER, 3, blocks.pack_pairs(clock))
    assert blocks.split_header(header + rest) == (header, rest)
    for damaged in (header[:-1], header[1:] + rest, b""):
        assert blocks.split_header(damaged) == (b"", damaged)


def test_a_frame_of_one_kind_does_not_pass_for_the_other():
    frame = blocks.pack_frame(blocks.ENTRIES, 7, blocks.pack_entry(Entry(1, 2, b"doc", "1-a", 0)))
    with pytest.raises(IndexCorrupt, match="checksum"):
        list(blocks.iter_frames(bytes([blocks.HEADER]) + frame[1:]))
