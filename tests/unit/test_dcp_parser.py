"""Bytes into events: what is cut, what is counted, and that no garbage does worse than break the protocol."""

import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.errors import AuthenticationFailed, ProtocolError
from channelindex.feeds.base import DELETION, EXPIRATION, MUTATION
from channelindex.feeds.dcp.parser import FrameParser
from channelindex.feeds.dcp.streams import LIVE, Streams
from channelindex.mcbp import MAX_BODY_BYTES, Frame, Op, pack_request, pack_response
from channelindex.model import Checkpoint
from tests.support.dcp_replay import open_streams
from tests.support.dcp_wire import deletion, expiration, mutation, prepare

OPAQUE = 7


class Parsing:
    """A parser with one open stream."""

    def __init__(self, seqno: int = 0, vb: int = 0, snap_end: int = LIVE) -> None:
        self.frames: list[Frame] = []
        self.streams = Streams({vb: Checkpoint(1, seqno, seqno, snap_end)})
        (self.stream,) = self.streams.take_due(0.0)
        self.streams.accept(self.stream, OPAQUE, ((1, 0),))
        self.parser = FrameParser(self.streams, self.frames.append)

    def feed(self, *pieces: bytes) -> "Parsing":
        for piece in pieces:
            self.parser.feed(piece)
        return self


def test_each_kind_of_document_is_an_event() -> None:
    parsing = Parsing(vb=3).feed(
        mutation(OPAQUE, 3, 1, b"k1", b"v1", datatype=1),
        deletion(OPAQUE, 3, 2, b"k2"),
        deletion(OPAQUE, 3, 3, b"k3", delete_time=9),
        expiration(OPAQUE, 3, 4, b"k4"),
    )
    assert [*parsing.parser.events] == [
        (MUTATION, 3, 1, b"k1", 1, b"v1"),
        (DELETION, 3, 2, b"k2", 0, b""),
        (DELETION, 3, 3, b"k3", 0, b""),
        (EXPIRATION, 3, 4, b"k4", 0, b""),
    ]
    assert parsing.stream.seqno == 4


def test_keys_and_values_are_bytes_of_their_own() -> None:
    (event,) = Parsing().feed(mutation(OPAQUE, 0, 1, b"k", b"v")).parser.events
    assert [type(item) for item in event] == [int, int, int, bytes, int, bytes]


def test_more_extras_than_known_are_skipped() -> None:
    data = mutation(OPAQUE, 0, 1, b"key", b"value", more_extras=b"\xee" * 5)
    assert [*Parsing().feed(data).parser.events] == [(MUTATION, 0, 1, b"key", 0, b"value")]


def test_documents_of_a_stream_that_is_no_more_are_dropped_and_counted() -> None:
    parsing = Parsing()
    parsing.streams.drop([0])
    late = mutation(OPAQUE, 0, 9, b"k", b"v")
    assert [*parsing.feed(late).parser.events] == []
    assert parsing.parser.counted_bytes == len(late)


@pytest.mark.parametrize(("opaque", "vb"), [(OPAQUE + 1, 0), (OPAQUE, 1), (OPAQUE + 1, 1)])
def test_a_document_of_no_stream_breaks_the_protocol(opaque: int, vb: int) -> None:
    parsing = Parsing()
    data = mutation(opaque, vb, 9, b"k", b"v")
    with pytest.raises(ProtocolError, match=f"vbucket {vb} with the opaque {opaque}"):
        parsing.feed(mutation(OPAQUE, 0, 8, b"k") + data)
    parsing.streams.drop([0])
    with pytest.raises(ProtocolError):
        parsing.feed(data)
    assert [event[2] for event in parsing.parser.events] == [8]


def test_a_seqno_behind_the_end_of_its_snapshot_breaks_the_protocol() -> None:
    parsing = Parsing(snap_end=5)
    with pytest.raises(ProtocolError, match="seqno 6 in a snapshot that ends at 5"):
        parsing.feed(mutation(OPAQUE, 0, 5, b"a") + mutation(OPAQUE, 0, 6, b"b"))
    assert [event[2] for event in parsing.parser.events] == [5]


@pytest.mark.parametrize("wrong_by", [-9, 9])
def test_a_document_that_no_frame_follows_is_not_believed(wrong_by: int) -> None:
    frames = [bytearray(mutation(OPAQUE, 0, seqno, b"key", b"value " * 10)) for seqno in (1, 2, 3)]
    frames[1][11] += wrong_by
    parsing = Parsing()
    with pytest.raises(ProtocolError, match="magic"):
        parsing.feed(b"".join(frames))
    assert [event[2] for event in parsing.parser.events] == [1]
    assert parsing.stream.seqno == 1


@pytest.mark.parametrize("seqno", [4, 5])
def test_a_seqno_that_does_not_rise_breaks_the_protocol(seqno: int) -> None:
    parsing = Parsing(seqno=3)
    with pytest.raises(ProtocolError, match=f"seqno {seqno} after 5"):
        parsing.feed(mutation(OPAQUE, 0, 5, b"a", b"") + mutation(OPAQUE, 0, seqno, b"b", b""))
    assert [event[2] for event in parsing.parser.events] == [5]  # what came before is there to be handed out


def test_seqnos_beyond_63_bits_are_kept() -> None:
    high = (1 << 64) - 2
    assert Parsing().feed(mutation(OPAQUE, 0, high, b"k", b"")).parser.events[0][2] == high


def test_noops_and_responses_are_not_counted_and_a_prepare_counts_two_more() -> None:
    noop = pack_request(Op.DCP_NOOP, opaque=1)
    response = pack_response(Op.DCP_STREAM_REQ, value=b"x" * 100)
    end = pack_request(Op.DCP_STREAM_END, opaque=OPAQUE, extras=bytes(4))
    parsing = Parsing().feed(noop + response + end + prepare(OPAQUE, 0, 1, b"k"))
    assert parsing.parser.counted_bytes == len(end) + len(prepare(OPAQUE, 0, 1, b"k")) + 2
    assert [frame.opcode for frame in parsing.frames] == [
        Op.DCP_NOOP,
        Op.DCP_STREAM_REQ,
        Op.DCP_STREAM_END,
        Op.DCP_PREPARE,
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"\x55" * 24,
        mutation(OPAQUE, 0, 1, b"k", b"v")[:4] + b"\x02" + mutation(OPAQUE, 0, 1, b"k", b"v")[5:],  # extras of 2 bytes
        mutation(OPAQUE, 0, 1, b"k", b"v" * 300)[:4] + b"\xe0" + mutation(OPAQUE, 0, 1, b"k", b"v" * 300)[5:],
        mutation(OPAQUE, 0, 1, b"k", b"v")[:2] + b"\xff\xff" + mutation(OPAQUE, 0, 1, b"k", b"v")[4:],  # a long key
        mutation(OPAQUE, 0, 1, b"k", b"v", datatype=0xFE),
        pack_request(Op.DCP_MUTATION)[:8] + (MAX_BODY_BYTES + 1).to_bytes(4, "big") + bytes(12),
    ],
)
def test_frames_that_contradict_themselves_break_the_protocol(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Parsing().feed(data)


def test_a_large_document_in_small_pieces_is_joined_once() -> None:
    value = b"x" * 3_000_000
    data = mutation(OPAQUE, 0, 1, b"k", value)
    parsing = Parsing().feed(*(data[at : at + 1500] for at in range(0, len(data), 1500)))
    assert [*parsing.parser.events] == [(MUTATION, 0, 1, b"k", 0, value)]


def test_a_frame_that_is_not_whole_says_how_much_of_it_there_is() -> None:
    data = mutation(OPAQUE, 0, 1, b"k", b"v")
    parsing = Parsing()
    assert parsing.parser.unfinished is None
    assert parsing.feed(data[:5]).parser.unfinished == (1, 5, 24)
    assert parsing.feed(data[5:30]).parser.unfinished == (2, 30, len(data))
    assert parsing.feed(data[30:40]).parser.unfinished == (2, 40, len(data))
    assert parsing.feed(data[40:]).parser.unfinished is None


documents = st.lists(
    st.tuples(st.sampled_from([mutation, deletion, expiration]), st.binary(max_size=9), st.integers(1, 3)), max_size=12
)
others = st.sampled_from(
    [
        pack_request(Op.DCP_NOOP, opaque=5),
        pack_request(Op.DCP_SNAPSHOT_MARKER, opaque=OPAQUE, extras=bytes(20)),
        pack_response(Op.GET_ALL_VB_SEQNOS, value=b"abc"),
    ]
)


@given(documents, others, st.lists(st.integers(1, 200), max_size=30))
def test_cuts_change_nothing(kinds: list[Any], other: bytes, cuts: list[int]) -> None:
    data, seqno = b"", 0
    for make, key, step in kinds:
        seqno += step
        data += make(OPAQUE, 2, seqno, key) + (other if step == 3 else b"")
    whole = Parsing(vb=2).feed(data)
    cut = Parsing(vb=2)
    for size in cuts:
        cut.feed(data[:size])
        data = data[size:]
    cut.feed(data)
    assert [*cut.parser.events] == [*whole.parser.events]
    assert cut.frames == whole.frames
    assert cut.parser.counted_bytes == whole.parser.counted_bytes
    assert len(whole.parser.events) == len(kinds)


@given(st.lists(st.binary(max_size=120), max_size=8))
def test_garbage_breaks_the_protocol_at_worst(pieces: list[bytes]) -> None:
    with suppress(ProtocolError):
        Parsing().feed(*pieces)


headers = st.builds(
    lambda magic, opcode, key, extras, datatype, status, body, opaque, rest: (
        bytes((magic, opcode))
        + key.to_bytes(2, "big")
        + bytes((extras, datatype))
        + status.to_bytes(2, "big")
        + body.to_bytes(4, "big")
        + opaque.to_bytes(4, "big")
        + rest
    ),
    st.sampled_from((0x80, 0x81, 0x82, 0x83)),
    st.integers(0x50, 0x66),
    st.integers(0, 40),
    st.integers(0, 60),
    st.integers(0, 7),
    st.integers(0, 5),
    st.integers(0, 90),
    st.integers(10, 15),
    st.binary(min_size=8, max_size=100),
)


@given(st.lists(headers, max_size=10), st.integers(1, 200))
def test_a_session_survives_frames_with_any_content(frames: list[bytes], chunk: int) -> None:
    session, _, opaques = open_streams(0, 1)
    assert max(opaques.values()) < 16
    data = b"".join(frames)
    with suppress(ProtocolError, AuthenticationFailed):  # the latter is what one reason of a stream's end says
        for at in range(0, len(data), chunk):
            session.receive(data[at : at + chunk], 0.0)


def test_a_document_of_20_mb_takes_its_size_about_twice() -> None:
    size, chunk = 20 * 1024 * 1024, 256 * 1024
    parsing = Parsing()
    data = memoryview(mutation(OPAQUE, 0, 1, b"k", b"x" * size))
    tracemalloc.start()
    try:
        for start in range(0, len(data), chunk):
            parsing.feed(bytes(data[start : start + chunk]))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(parsing.parser.events) == 1
    assert peak_bytes < 2.2 * size
