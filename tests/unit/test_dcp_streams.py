"""Where a stream resumes: never behind what was handed out, never beyond it, and never where a server says no."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.errors import InvariantBroken
from channelindex.feeds.base import MUTATION, SNAPSHOT
from channelindex.feeds.dcp.streams import LIVE, State, Stream, Streams
from channelindex.mcbp import Op
from channelindex.model import ORIGIN, Checkpoint
from tests.support.dcp_replay import answer, new_session, open_streams, sent, shake_hands
from tests.support.dcp_wire import failover_log, marker, mutation, stream_end

UUID = 0xA1


def accepted(at: Checkpoint = ORIGIN) -> tuple[Streams, Stream]:
    streams = Streams({0: at})
    (stream,) = streams.take_due(0.0)
    streams.accept(stream, 5, ((UUID, 0),))
    return streams, stream


@pytest.mark.parametrize(
    ("snapshot", "seqno", "resume"),
    [
        ((0, 20), 8, (8, 0, 20)),  # in the middle
        ((0, 20), 0, (0, 0, 20)),  # announced, nothing of it came
        ((0, 20), 20, (20, 20, 20)),  # complete
        ((5, 8), 5, (5, 5, 8)),  # its first
        ((5, 8), 3, (3, 3, 3)),  # announced beyond what we have: that range would be refused
    ],
)
def test_a_position_is_one_that_a_server_takes(
    snapshot: tuple[int, int], seqno: int, resume: tuple[int, int, int]
) -> None:
    _, stream = accepted()
    stream.snap_start, stream.snap_end = snapshot
    assert stream.position(seqno) == Checkpoint(UUID, *resume)


def test_a_stream_that_brought_nothing_keeps_its_snapshot() -> None:
    streams, stream = accepted(Checkpoint(0x99, 8, 3, 20))
    streams.disconnect()
    assert stream.checkpoint == Checkpoint(UUID, 8, 3, 20)


def test_a_snapshot_in_which_a_stream_resumed_lasts_until_its_end() -> None:
    """Or a source that loses part of it, after shorter ones, would take the position for complete."""
    session, streams, opaques = open_streams(0, at=Checkpoint(UUID, 8, 3, 20))
    received = marker(opaques[0], 0, 9, 12) + b"".join(mutation(opaques[0], 0, seqno, b"k") for seqno in (9, 12))
    session.receive(received + marker(opaques[0], 0, 13, 14) + mutation(opaques[0], 0, 14, b"k"), 0.0)
    told = session.take_events()
    assert [event[2:4] for event in told if event[0] == SNAPSHOT] == [(3, 20), (3, 20)]
    (stream,) = streams.open_by_opaque.values()
    assert stream.position(14)[1:4] == (14, 3, 20)
    session.receive(marker(opaques[0], 0, 15, 22) + mutation(opaques[0], 0, 20, b"k"), 0.0)
    assert session.take_events()[0][2:4] == (3, 22)
    session.receive(mutation(opaques[0], 0, 22, b"k") + marker(opaques[0], 0, 23, 24), 0.0)
    assert session.take_events()[1][2:4] == (23, 24)
    streams.disconnect()
    assert stream.checkpoint[1:4] == (22, 22, 22)


def test_the_history_is_that_of_the_newest_branch_also_below_its_beginning() -> None:
    streams = Streams({0: ORIGIN})
    (stream,) = streams.take_due(0.0)
    streams.accept(stream, 5, ((0xB2, 50), (0xA1, 0)))
    stream.snap_start, stream.snap_end = 0, 90
    assert stream.position(10).vbuuid == 0xB2  # on 0xA1 the snapshot's end would be beyond the branch


def test_a_checkpoint_outside_of_its_snapshot_is_refused_at_once() -> None:
    with pytest.raises(InvariantBroken, match="vbucket 7"):
        Streams({7: Checkpoint(UUID, 4, 5, 9)})


def test_a_stream_whose_end_is_reached_is_not_asked_for() -> None:
    streams = Streams({0: Checkpoint(UUID, 5, 5, 5), 1: ORIGIN, 2: ORIGIN}, {0: 5, 1: 0, 2: 3})
    assert [stream.vb for stream in streams.take_due(0.0)] == [2]
    assert not streams.all_ended


def test_a_stream_beyond_its_end_is_not_asked_for_again() -> None:
    streams = Streams({0: ORIGIN}, {0: 3})
    (stream,) = streams.take_due(0.0)
    streams.accept(stream, 5, ((UUID, 0),))
    streams.open_by_opaque[5].seqno = 4  # the server completes the snapshot
    streams.disconnect()
    assert streams.all_ended


def test_an_end_with_another_reason_is_none() -> None:
    streams = Streams({0: ORIGIN}, {0: 3})
    (stream,) = streams.take_due(0.0)
    streams.accept(stream, 5, ((UUID, 0),))
    streams.end(stream, 0.0, complete=False)
    assert stream.state is State.WAITING
    assert not streams.all_ended


def test_retries_grow_apart_until_the_stream_opens() -> None:
    streams = Streams({0: ORIGIN})
    waits = []
    for _ in range(12):
        (stream,) = streams.take_due(float("inf"))
        streams.postpone(stream, 0.0)
        waits.append(streams.next_retry())
    assert 0.05 <= waits[0] <= 0.1
    assert 2.5 <= waits[-1] <= 5.0
    (stream,) = streams.take_due(float("inf"))
    streams.accept(stream, 5, ((UUID, 0),))
    streams.end(stream, 0.0, complete=False)
    assert streams.next_retry() <= 0.1


class Server:
    """Serves one vbucket's history, cut into snapshots, from wherever a request says; checks the request's range."""

    def __init__(self, seqnos: list[int], snapshot_ends: set[int]) -> None:
        self.seqnos = seqnos
        self.snapshot_ends = snapshot_ends | {seqnos[-1]}

    def stream(self, opaque: int, extras: bytes) -> bytes:
        _, _, start, end, vbuuid, snap_start, snap_end = struct.unpack(">IIQQQQQ", extras)
        assert snap_start <= start <= snap_end
        assert vbuuid == (UUID if start else vbuuid)
        data, snapshot, first = b"", [], True
        for seqno in self.seqnos:
            if seqno <= start:
                continue
            snapshot.append(seqno)
            if seqno in self.snapshot_ends:
                begin = snap_start if first and start < snap_end else start if first else snapshot[0]
                data += marker(opaque, 0, begin, seqno)
                data += b"".join(mutation(opaque, 0, each, b"k%d" % each) for each in snapshot)
                snapshot, first = [], False
                if seqno >= end:
                    return data + stream_end(opaque, 0, 0)
        return data


@given(
    st.sets(st.integers(1, 60), min_size=1, max_size=40).map(sorted),
    st.sets(st.integers(1, 60)),
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 300)), max_size=8),
    st.booleans(),
)
def test_however_connections_break_each_seqno_comes_once_and_in_order(
    seqnos: list[int], snapshot_ends: set[int], breaks: list[tuple[int, int]], bounded: bool
) -> None:
    server = Server(seqnos, snapshot_ends)
    end = seqnos[len(seqnos) // 2] if bounded else LIVE
    streams = Streams({0: ORIGIN}, {0: end})
    brought: list[int] = []
    for size, chunk in [*breaks, (1 << 30, 1 << 30)]:
        session = new_session(streams)
        shake_hands(session)
        session.tick(0.0)
        requests = [frame for frame in sent(session) if frame.opcode == Op.DCP_STREAM_REQ]
        if requests:
            (request,) = requests
            data = answer(request, value=failover_log((UUID, 0))) + server.stream(request.opaque, request.extras)
            for at in range(0, min(size, len(data)), chunk):
                session.receive(data[at : min(at + chunk, size)], 0.0)
                streams.check()
            brought += [event[2] for event in session.take_events() if event[0] == MUTATION]
        streams.disconnect()
        streams.check()
    if bounded:
        assert streams.all_ended
        assert brought == seqnos[: len(brought)]
        assert end in brought
    else:
        assert brought == seqnos


def test_added_streams_are_requested_like_those_from_the_start():
    streams = Streams({1: ORIGIN})
    list(streams.take_due(0.0))
    streams.add({2: Checkpoint(7, 5, 5, 5)})
    (stream,) = streams.take_due(0.0)
    assert (stream.vb, stream.checkpoint.seqno) == (2, 5)
    assert 2 in streams


def test_dropped_streams_are_closed_where_they_are_open_and_forgotten_everywhere():
    streams = Streams({1: ORIGIN, 2: ORIGIN, 3: ORIGIN})
    first, second = itertools.islice(streams.take_due(0.0), 2)
    streams.accept(first, 11, ((7, 0),))
    assert streams.drop([1, 2, 3]) == [1]
    assert streams.open_by_opaque == {}
    assert not any(vb in streams for vb in (1, 2, 3))
    assert streams.next_retry() == float("inf")
    assert not second.is_subscribed
    streams.leave(second)
    streams.disconnect()
    assert list(streams.take_due(1e9)) == []


def test_dropped_stream_can_be_added_again_from_elsewhere():
    streams = Streams({1: ORIGIN})
    (first,) = streams.take_due(0.0)
    streams.accept(first, 11, ((7, 0),))
    streams.drop([1])
    streams.add({1: Checkpoint(7, 9, 9, 9)})
    (again,) = streams.take_due(0.0)
    streams.accept(again, 12, ((7, 0),))
    assert {opaque: stream.seqno for opaque, stream in streams.open_by_opaque.items()} == {12: 9}
