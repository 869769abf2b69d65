"""The protocol on one connection: what is asked when, and what each answer leads to."""

import struct
from dataclasses import replace

import orjson
import pytest

from channelindex.checking.rewind import earlier
from channelindex.errors import (
    AuthenticationFailed,
    ConfigInvalid,
    InvariantBroken,
    ProtocolError,
)
from channelindex.feeds.base import ADVANCED, HISTORY, MUTATION, ROLLBACK, SNAPSHOT
from channelindex.feeds.dcp.session import Session
from channelindex.feeds.dcp.streams import LIVE, Stream, Streams
from channelindex.mcbp import SERVER_REQUEST, Frame, Op, Status, pack_request, pack_response
from channelindex.model import ORIGIN, Checkpoint
from tests.support.dcp_replay import OPTIONS, answer, handshake_answer, new_session, open_streams, sent, shake_hands
from tests.support.dcp_wire import failover_log, marker, mutation, stream_end, stream_frame

LOG = failover_log((0xABC, 0))


def stream_requests(session: Session) -> list[Frame]:
    return [frame for frame in sent(session) if frame.opcode == Op.DCP_STREAM_REQ]


def requesting(*vbs: int, at: Checkpoint = ORIGIN) -> tuple[Session, Streams, Frame]:
    """A session that has asked for streams, and the first request."""
    streams = Streams(dict.fromkeys(vbs or (0,), at))
    session = new_session(streams)
    shake_hands(session)
    session.tick(0.0)
    return session, streams, stream_requests(session)[0]


# -- handshake


def test_the_handshake_asks_for_noops_before_anything_that_needs_them() -> None:
    session = new_session(Streams({}))
    asked = shake_hands(session)
    controls = [frame.key for frame in asked if frame.opcode == Op.DCP_CONTROL]
    assert [frame.opcode for frame in asked[:4]] == [Op.HELLO, Op.SELECT_BUCKET, Op.GET_CLUSTER_CONFIG, Op.DCP_OPEN]
    assert controls[:3] == [b"enable_noop", b"connection_buffer_size", b"set_noop_interval"]
    assert controls[3:] == [b"enable_expiry_opcode", b"max_marker_version"]


@pytest.mark.parametrize("bodies", [True, False])
def test_expirations_are_distinguished_only_on_a_connection_with_delete_times(bodies: bool) -> None:
    """`enable_expiry_opcode` without flag 0x20 is accepted and ignored (kv_engine, producer.cc, 6.5 to master)."""
    options = replace(OPTIONS, producer=OPTIONS.producer._replace(bodies=bodies))
    asked = shake_hands(new_session(Streams({}), options))
    (opened,) = [frame for frame in asked if frame.opcode == Op.DCP_OPEN]
    assert opened.extras == struct.pack(">II", 0, 0x01 | 0x04 | 0x20 | (0 if bodies else 0x40))


@pytest.mark.parametrize("snappy", [False, True])
def test_hello_asks_for_what_we_understand(snappy: bool) -> None:
    options = replace(OPTIONS, producer=OPTIONS.producer._replace(snappy=snappy))
    (hello,) = sent(new_session(Streams({}), options))
    asked = {feature for (feature,) in struct.iter_unpack(">H", hello.value)}
    assert asked == {0x06, 0x07, 0x08, 0x0B, 0x0C, 0x0D, 0x12} | ({0x0A} if snappy else set())


def test_a_stream_is_not_asked_for_before_the_handshake_is_over() -> None:
    session = new_session(Streams({0: ORIGIN}))
    assert session.tick(0.0) == float("inf")
    assert not stream_requests(session)


@pytest.mark.parametrize(
    ("opcode", "key", "status", "error"),
    [
        (Op.HELLO, None, Status.EINVAL, ProtocolError),
        (Op.SELECT_BUCKET, None, Status.EACCESS, AuthenticationFailed),
        (Op.DCP_OPEN, None, Status.EACCESS, AuthenticationFailed),
        (Op.DCP_OPEN, None, Status.EINVAL, ProtocolError),
        (Op.DCP_CONTROL, b"enable_noop", Status.EINVAL, ConfigInvalid),
        (Op.DCP_CONTROL, b"connection_buffer_size", Status.EINVAL, ConfigInvalid),
        (Op.DCP_CONTROL, b"enable_expiry_opcode", Status.EINVAL, None),
        (Op.DCP_CONTROL, b"set_noop_interval", Status.NOT_SUPPORTED, None),
    ],
)
def test_a_refusal_of_each_step(opcode: int, key: bytes | None, status: int, error: type[Exception] | None) -> None:
    session = new_session(Streams({}))

    def run() -> None:
        while not session.streaming:
            for request in sent(session):
                refused = request.opcode == opcode and key in (None, request.key)
                session.receive(answer(request, status) if refused else handshake_answer(request), 0.0)

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()


# -- stream requests


def test_a_request_names_the_whole_position_and_active_vbuckets_only() -> None:
    _, _, request = requesting(5, at=Checkpoint(0xABC, 8, 3, 20, 77))
    assert request.vbucket == 5
    assert struct.unpack(">IIQQQQQ", request.extras) == (0x10, 0, 8, LIVE, 0xABC, 3, 20)


def test_only_so_many_requests_are_unanswered() -> None:
    streams = Streams(dict.fromkeys(range(200), ORIGIN))
    session = new_session(streams)
    shake_hands(session)
    session.tick(0.0)
    requests = stream_requests(session)
    assert len(requests) == 64
    assert streams.next_retry() == float("inf")  # nothing to wake up for but an answer
    session.receive(answer(requests[0], value=LOG), 0.0)
    assert len(stream_requests(session)) == 1


def test_an_opaque_is_used_once() -> None:
    session, _, request = requesting()
    session.receive(answer(request, value=LOG), 0.0)
    session.receive(answer(request, value=LOG), 0.0)
    assert [event[0] for event in session.take_events()] == [HISTORY]
    assert session.ignored_frames == 1


@pytest.mark.parametrize("status", [Status.NOT_MY_VBUCKET, Status.ETMPFAIL, Status.EBUSY, Status.ENOMEM])
def test_what_passes_is_asked_again_later(status: Status) -> None:
    session, streams, request = requesting()
    session.receive(answer(request, status, b'{"rev": 1}'), 100.0)
    retry_at = streams.next_retry()
    assert 100.0 < retry_at <= 100.1
    assert not streams.all_running
    session.tick(retry_at - 0.001)
    assert not stream_requests(session)
    session.tick(retry_at)
    assert len(stream_requests(session)) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.ERANGE, InvariantBroken),
        (Status.EACCESS, AuthenticationFailed),
        (Status.NOT_SUPPORTED, ConfigInvalid),
        (Status.KEY_EEXISTS, ProtocolError),
        (0x7777, ProtocolError),
    ],
)
def test_what_does_not_pass_is_an_error_that_names_the_vbucket(status: int, error: type[Exception]) -> None:
    session, _, request = requesting(3)
    with pytest.raises(error, match="vbucket 3"):
        session.receive(answer(request, status), 0.0)


@pytest.mark.parametrize("log", [b"", b"x" * 15, b"x" * 17])
def test_a_malformed_failover_log_breaks_the_protocol(log: bytes) -> None:
    session, _, request = requesting()
    with pytest.raises(ProtocolError, match="failover log"):
        session.receive(answer(request, value=log), 0.0)


# -- rollback


def rollback_answer(request: Frame, seqno: int) -> bytes:
    return answer(request, Status.ROLLBACK, seqno.to_bytes(8, "big"))


def test_a_rollback_resumes_on_the_newest_branch_that_began_before_it() -> None:
    session, streams, request = requesting(4, at=Checkpoint(0xA, 90, 90, 90))
    session.receive(rollback_answer(request, 50), 0.0)
    assert [*session.take_events()] == []
    (asked,) = sent(session)
    assert (asked.opcode, asked.status) == (Op.DCP_GET_FAILOVER_LOG, 4)
    session.receive(answer(asked, value=failover_log((0xC, 60), (0xB, 40), (0xA, 0))), 0.0)
    assert [*session.take_events()] == [(ROLLBACK, 4, Checkpoint(0xB, 50, 50, 50))]
    session.tick(1000.0)
    assert not stream_requests(session)  # only a new epoch goes on
    streams.disconnect()
    assert list(streams.take_due(2000.0)) == []


def test_a_rollback_to_zero_needs_no_history() -> None:
    session, _, request = requesting(4, at=Checkpoint(0xA, 90, 90, 90))
    session.receive(rollback_answer(request, 0), 0.0)
    assert [*session.take_events()] == [(ROLLBACK, 4, ORIGIN)]


def test_a_rollback_without_its_history_is_asked_for_again() -> None:
    session, streams, request = requesting(at=Checkpoint(0xA, 90, 90, 90))
    session.receive(rollback_answer(request, 50), 0.0)
    (asked,) = sent(session)
    session.receive(answer(asked, Status.NOT_MY_VBUCKET), 0.0)
    assert [*session.take_events()] == []
    session.tick(streams.next_retry())
    assert len(stream_requests(session)) == 1


@pytest.mark.parametrize("seqno", [90, 91])
def test_a_rollback_that_is_no_step_back_breaks_the_protocol(seqno: int) -> None:
    session, _, request = requesting(at=Checkpoint(0xA, 90, 90, 90))
    with pytest.raises(ProtocolError, match="rollback from 90"):
        session.receive(rollback_answer(request, seqno), 0.0)


# -- frames of a stream


def test_a_marker_of_each_version_is_a_snapshot() -> None:
    session, _, opaques = open_streams(2)
    session.receive(marker(opaques[2], 2, 1, 9), 0.0)
    v2 = struct.pack(">QQIQQ", 10, 19, 2, 19, 18)
    session.receive(stream_frame(Op.DCP_SNAPSHOT_MARKER, opaques[2], 2, b"\0", value=v2), 0.0)
    v2_2 = struct.pack(">QQIQQQQ", 20, 29, 2, 29, 28, 7, 29)
    session.receive(stream_frame(Op.DCP_SNAPSHOT_MARKER, opaques[2], 2, b"\2", value=v2_2), 0.0)
    assert [*session.take_events()] == [(SNAPSHOT, 2, 1, 9), (SNAPSHOT, 2, 10, 19), (SNAPSHOT, 2, 20, 29, 7)]


def purging_marker(opaque: int, start: int, end: int, purge_seqno: int) -> bytes:
    value = struct.pack(">QQIQQQ", start, end, 2, end, 0, purge_seqno)
    return stream_frame(Op.DCP_SNAPSHOT_MARKER, opaque, 0, b"\2", value=value)


def test_a_backfill_that_breaks_off_below_the_purge_seqno_is_resumed_with_it() -> None:
    """Without it the server rolls such a position back to 0 (kv_engine, failover-table.cc, needsRollback)."""
    session, streams, opaques = open_streams(0)
    session.receive(purging_marker(opaques[0], 0, 20, 15) + mutation(opaques[0], 0, 3, b"k"), 0.0)
    assert session.take_events()[0] == (SNAPSHOT, 0, 0, 20, 15)
    streams.disconnect()
    again = new_session(streams)
    shake_hands(again)
    again.tick(0.0)
    (request,) = stream_requests(again)
    assert struct.unpack(">IIQQQQQ", request.extras)[2] == 3
    assert orjson.loads(request.value) == {"purge_seqno": "15"}


def test_a_purge_seqno_goes_beside_the_collections_and_only_to_a_server_that_knows_it() -> None:
    stream = Stream(0, Checkpoint(1, 5, 5, 5, 9), 100)
    told = stream.request(b'{"collections":["8"]}', with_purge_seqno=True)
    assert orjson.loads(told.value) == {"collections": ["8"], "purge_seqno": "9"}
    assert stream.request(b'{"collections":["8"]}').value == b'{"collections":["8"]}'
    assert Stream(0, Checkpoint(1, 5, 5, 5), 100).request(b"", with_purge_seqno=True).value == b""


def test_a_position_that_was_taken_back_says_nothing_of_what_was_purged() -> None:
    """What was purged may be the deletion of a document that a live feed has brought before."""
    assert earlier(Checkpoint(1, 100, 100, 100, 9), 5).purge_seqno == 0
    session, _, request = requesting(at=Checkpoint(1, 30, 30, 30, 9))
    session.receive(answer(request, Status.ROLLBACK, (20).to_bytes(8, "big")), 0.0)
    (log_request,) = sent(session)
    session.receive(answer(log_request, value=struct.pack(">QQ", 0xABC, 0)), 0.0)
    (rollback,) = session.take_events()
    assert rollback[2] == Checkpoint(0xABC, 20, 20, 20, 0)


@pytest.mark.parametrize(("extras", "value"), [(b"", b""), (b"\0", bytes(15)), (struct.pack(">QQI", 5, 4, 1), b"")])
def test_a_marker_without_its_range_breaks_the_protocol(extras: bytes, value: bytes) -> None:
    session, _, opaques = open_streams(2)
    with pytest.raises(ProtocolError, match="snapshot"):
        session.receive(stream_frame(Op.DCP_SNAPSHOT_MARKER, opaques[2], 2, extras, value=value), 0.0)


@pytest.mark.parametrize(
    ("opcode", "extras"),
    [
        (Op.DCP_SEQNO_ADVANCED, struct.pack(">Q", 6)),
        (Op.DCP_SYSTEM_EVENT, struct.pack(">QIB", 6, 0, 1)),
        (Op.DCP_PREPARE, struct.pack(">QQIIIBBB", 6, 1, 0, 0, 0, 0, 0, 1)),
        (Op.DCP_ABORT, struct.pack(">QQ", 4, 6)),
    ],
)
def test_a_seqno_without_a_document_moves_the_position(opcode: int, extras: bytes) -> None:
    session, streams, opaques = open_streams(2)
    session.receive(stream_frame(opcode, opaques[2], 2, extras, key=b"k"), 0.0)
    assert [*session.take_events()] == [(ADVANCED, 2, 6)]
    assert streams.open_by_opaque[opaques[2]].seqno == 6
    with pytest.raises(ProtocolError, match="seqno 6 after 6"):
        session.receive(stream_frame(opcode, opaques[2], 2, extras, key=b"k"), 0.0)


@pytest.mark.parametrize("opcode", [Op.DCP_COMMIT, Op.DCP_OSO_SNAPSHOT])
def test_what_was_not_asked_for_breaks_the_protocol(opcode: Op) -> None:
    session, _, opaques = open_streams(2)
    with pytest.raises(ProtocolError, match="never asked for"):
        session.receive(stream_frame(opcode, opaques[2], 2, struct.pack(">QQ", 1, 2)), 0.0)


@pytest.mark.parametrize(
    "frame",
    [
        stream_frame(0x6F, 0, 0, b""),
        pack_response(Op.DCP_CONTROL, opaque=99_999),
        pack_request(0x02, magic=SERVER_REQUEST, extras=bytes(4), value=b"{}"),
        stream_frame(Op.DCP_SET_VBUCKET_STATE, 0, 0, b"\1"),
    ],
)
def test_what_means_nothing_to_us_is_counted_and_ignored(frame: bytes) -> None:
    session, _, _ = open_streams(0)
    session.receive(frame, 0.0)
    assert session.ignored_frames == 1
    assert [*session.take_events()] == []


@pytest.mark.parametrize(
    "frame",
    [
        marker(99_999, 0, 1, 2),
        stream_end(99_999, 0, 0),
        marker(1, 5, 1, 2),  # the stream of another vbucket
        stream_frame(Op.DCP_STREAM_REQ, 1, 0, b""),
        stream_frame(Op.DCP_MUTATION ^ 0xFF, 1, 0, b""),
        pack_response(Op.DCP_MUTATION, opaque=99_999),
        pack_request(Op.DCP_SNAPSHOT_MARKER, magic=SERVER_REQUEST, opaque=1),
    ],
)
def test_what_may_have_been_of_a_stream_is_not_ignored(frame: bytes) -> None:
    session, _, opaques = open_streams(0)
    assert opaques == {0: 1}
    with pytest.raises(ProtocolError):
        session.receive(frame, 0.0)


def test_what_was_on_its_way_when_its_stream_was_closed_is_ignored() -> None:
    session, streams, opaques = open_streams(0, 1)
    streams.drop([0])
    session.receive(marker(opaques[0], 0, 1, 2) + mutation(opaques[0], 0, 1, b"k") + stream_end(opaques[0], 0, 1), 0.0)
    assert [*session.take_events()] == []
    streams.disconnect()
    with pytest.raises(ProtocolError):
        session.receive(marker(opaques[0], 0, 1, 2), 0.0)


def test_what_came_before_an_error_is_handed_out() -> None:
    session, _, opaques = open_streams(0)
    documents = marker(opaques[0], 0, 1, 2) + mutation(opaques[0], 0, 1, b"k") + mutation(opaques[0], 0, 2, b"l")
    with pytest.raises(ProtocolError):
        session.receive(documents + b"\x55" * 24, 0.0)
    assert [event[:3] for event in session.take_events()][1:] == [(MUTATION, 0, 1)]  # the last is not believed


# -- ends of streams


@pytest.mark.parametrize("reason", [0, 1, 2, 3, 4, 5, 6, 99])
def test_a_live_stream_that_ends_is_asked_for_again_where_it_was(reason: int) -> None:
    session, streams, opaques = open_streams(0)
    data = marker(opaques[0], 0, 0, 9) + mutation(opaques[0], 0, 4, b"k") + stream_end(opaques[0], 0, reason)
    session.receive(data, 10.0)
    assert streams.open_by_opaque == {}
    session.tick(streams.next_retry())
    (request,) = stream_requests(session)
    assert struct.unpack(">IIQQQQQ", request.extras)[2:] == (4, LIVE, 0xABC, 0, 9)


def test_documents_behind_the_end_are_dropped() -> None:
    session, _, opaques = open_streams(0)
    session.receive(stream_end(opaques[0], 0, 2) + mutation(opaques[0], 0, 5, b"late"), 0.0)
    assert [*session.take_events()] == []


def test_lost_privileges_are_not_asked_for_again() -> None:
    session, _, opaques = open_streams(0)
    with pytest.raises(AuthenticationFailed, match=r"source\.user"):
        session.receive(stream_end(opaques[0], 0, 8), 0.0)


# -- flow control, noops, seqnos


def test_a_fifth_of_the_buffer_is_acknowledged_at_a_time() -> None:
    session, _, opaques = open_streams(0)
    small = marker(opaques[0], 0, 1, 2) + mutation(opaques[0], 0, 1, b"k", b"x" * 50)
    session.receive(small, 0.0)
    session.acknowledge()
    assert sent(session) == []
    large = mutation(opaques[0], 0, 2, b"k", b"x" * 200)
    session.receive(large, 0.0)
    assert sent(session) == []  # not before the consumer has taken it over
    session.acknowledge()
    session.acknowledge()
    (ack,) = sent(session)
    assert (ack.opcode, ack.opaque) == (Op.DCP_BUFFER_ACK, 0)
    assert int.from_bytes(ack.extras, "big") == len(small) + len(large)


def test_a_noop_is_answered_during_the_handshake_too() -> None:
    session = new_session(Streams({}))
    sent(session)
    session.receive(pack_request(Op.DCP_NOOP, opaque=0x81969800), 0.0)
    assert bytes(session.outgoing) == pack_response(Op.DCP_NOOP, opaque=0x81969800)


def test_high_seqnos_of_active_vbuckets_are_asked_for_once_a_second() -> None:
    session = new_session(Streams({0: ORIGIN, 1: ORIGIN}))
    shake_hands(session)
    assert session.tick(5.0) == float("inf")  # asked for, and not again before the answer
    (asked,) = [frame for frame in sent(session) if frame.opcode == Op.GET_ALL_VB_SEQNOS]
    assert asked.extras == b"\0\0\0\1"
    session.receive(answer(asked, value=struct.pack(">HQHQHQ", 0, 7, 1, 8, 2, 9)), 5.5)
    assert session.high_seqnos == {0: 7, 1: 8}
    session.tick(6.4)
    assert not sent(session)
    session.tick(6.5)
    assert [frame.opcode for frame in sent(session)] == [Op.GET_ALL_VB_SEQNOS]
