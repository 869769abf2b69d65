"""Values whose datatype says SNAPPY: what a real server sent under it on streams without bodies, and what it may send.

The recordings are of kv_engine 6.0 (their README says how they came about). That later servers do the same was read in
kv_engine's item.cc and active_stream.cc, branches neo, trinity, morpheus and master.
"""

from dataclasses import replace

import cramjam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.feeds.base import DELETION, JSON, MUTATION, SNAPPY, XATTR, Event
from channelindex.feeds.dcp.messages import BodiesNeeded
from channelindex.feeds.dcp.parser import decompress
from channelindex.mcbp import Op, join_xattrs, split_xattrs
from channelindex.model import DELETED, Removal, Route
from tests.support.dcp_replay import OPTIONS, Replay
from tests.support.recording import Line, by_connection
from tests.support.shared import shared_path

NO_BODIES = replace(OPTIONS, producer=OPTIONS.producer._replace(bodies=False))
DECODER = SyncGatewayDecoder(star_channel=False)
CHUNKS = (1, 7, 24, 1 << 30)
NAMES = ("auto", "xattrmode", "xattrmode-nocompression")
DELETED_DOCUMENTS = {b"x0", b"x3", b"x6", b"x9"}
ALL_DOCUMENTS = {b"x%d" % number for number in range(12)}


def recorded(name: str, conn: str = "c2") -> list[Line]:
    return by_connection(shared_path(f"golden/compressed/s_snappy_nobody_disk_{name}.jsonl"))[conn]


def routes(events: list[Event]) -> dict[bytes, Route]:
    """What each document means; nothing may be undecodable."""
    decoded = {event[3]: DECODER.decode(event[0], *event[3:]) for event in events if event[0] in (MUTATION, DELETION)}
    return {key: route for key, route in decoded.items() if isinstance(route, Route)}


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", NAMES)
def test_every_document_and_tombstone_of_a_stream_without_bodies_is_decoded(name: str, chunk: int) -> None:
    run = Replay(NO_BODIES)
    run.run(recorded(name), chunk)
    found = routes(run.events)
    assert found.keys() == ALL_DOCUMENTS
    for key, route in found.items():
        if key in DELETED_DOCUMENTS:
            removal = Removal(route.sequence, "2-b", deleted=True)
            assert route == Route("2-b", DELETED, route.sequence, {"a": removal, "b": removal})
        else:
            assert route == Route("1-a", 0, route.sequence, {"a": None, "b": None})
    assert not any(event[4] & SNAPPY for event in run.events if event[0] in (MUTATION, DELETION))


def test_the_server_said_snappy_of_each_of_them() -> None:
    """What makes the test above one: without this the recording could be of a server that says nothing wrong."""
    documents = [line.frame for line in recorded("auto") if line.opcode in (Op.DCP_MUTATION, Op.DCP_DELETION)]
    plain = [frame for frame in documents if frame.datatype & XATTR]
    assert len(plain) == 12
    assert all(frame.datatype & SNAPPY for frame in plain)
    assert all(split_xattrs(frame.value)[1] == b"" for frame in plain)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_feed_that_chooses_goes_on_with_bodies_at_the_first_inline_document(chunk: int) -> None:
    options = replace(NO_BODIES, needs_body=DECODER.needs_body)
    without = Replay(options)
    with pytest.raises(BodiesNeeded):
        without.run(recorded("auto"), chunk)
    assert routes([*without.events, *without.session.take_events()]).keys() <= ALL_DOCUMENTS
    with_bodies = Replay()
    with_bodies.run(recorded("auto", "c3"), chunk)
    assert routes(with_bodies.events).keys() == {b"i0", b"i1", b"i2", b"i3"}


# -- both readings of a value: never more than one is possible

NAME = st.text(max_size=6).filter(lambda name: "\0" not in name)
XATTRS = st.lists(st.tuples(NAME, st.binary(max_size=40)), max_size=4)


@given(XATTRS, st.binary(max_size=40))
def test_what_begins_with_a_plain_section_is_never_a_compressed_value(xattrs, body: bytes) -> None:
    value = join_xattrs([(name, text.replace(b"\0", b"")) for name, text in xattrs], body)
    with pytest.raises(cramjam.DecompressionError):
        cramjam.snappy.decompress_raw(value)
    assert decompress(SNAPPY | XATTR | JSON, value) == (XATTR | JSON, value)


@given(XATTRS, st.binary(max_size=40))
def test_a_compressed_section_is_never_taken_for_a_plain_one(xattrs, body: bytes) -> None:
    value = join_xattrs([(name, text.replace(b"\0", b"")) for name, text in xattrs], body)
    assert decompress(SNAPPY | XATTR, bytes(cramjam.snappy.compress_raw(value))) == (XATTR, value)


@given(st.binary(min_size=1, max_size=2), st.binary(max_size=6))
def test_whatever_begins_as_a_short_compressed_value_and_is_one_holds_no_section(head: bytes, rest: bytes) -> None:
    """Any bytes that begin with 0 or 1 and are Snappy are of at most one byte: no section is so short."""
    value = bytes([head[0] & 1]) + head[1:] + rest
    try:
        whole = bytes(cramjam.snappy.decompress_raw(value))
    except cramjam.DecompressionError:
        return
    assert len(whole) <= 1


@pytest.mark.parametrize("datatype", [SNAPPY, SNAPPY | JSON, SNAPPY | XATTR, SNAPPY | XATTR | JSON])
def test_of_a_value_that_was_left_out_nothing_is_to_be_decompressed(datatype: int) -> None:
    assert decompress(datatype, b"") == (datatype & ~SNAPPY, b"")


def test_a_body_that_begins_like_a_section_is_decompressed_where_there_are_no_xattrs() -> None:
    packed = bytes(cramjam.snappy.compress_raw(b"7"))
    assert packed[0] == 1
    assert decompress(SNAPPY | JSON, packed) == (JSON, b"7")
