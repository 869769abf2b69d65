"""The feed on a socket: reconnects, resumes, silence, backpressure."""

import select
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from channelindex.errors import AuthenticationFailed, IndexMismatch, ProtocolError, SourceUnavailable
from channelindex.feeds.base import HISTORY, MUTATION, SNAPSHOT, Feed
from channelindex.feeds.dcp import resolver
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.client import DcpFeed
from channelindex.feeds.dcp.connection import FRAME_BYTES, FRAME_S
from channelindex.feeds.dcp.connstr import Endpoint, SourceAddress
from channelindex.mcbp import Frame, Op, Status, pack_request
from channelindex.model import ORIGIN, Checkpoint
from tests.support.dcp_node import LOG, Rig, rig
from tests.support.dcp_replay import ADDRESS, BUCKET_UUID, answer
from tests.support.dcp_wire import marker, mutation, stream_end

NOOP = pack_request(Op.DCP_NOOP, opaque=77)


@pytest.fixture
def running() -> Iterator[Rig]:
    """A rig whose feed has started to stream vbucket 0."""
    with rig() as made:
        made.feed.start({0: ORIGIN})
        yield made


def test_it_is_a_feed() -> None:
    feed: Feed = DcpFeed(ADDRESS, Credentials(), name="n")
    feed.close()
    feed.close()


def test_documents_arrive(running: Rig) -> None:
    assert not running.feed.connected()
    request = running.accept()
    running.node.send(marker(request.opaque, 0, 0, 1) + mutation(request.opaque, 0, 1, b"k", b"v"))
    running.until(lambda: len(running.events) == 3)
    assert [event[0] for event in running.events] == [HISTORY, SNAPSHOT, MUTATION]
    assert running.feed.connected()
    assert running.feed.last_error is None


def test_the_descriptor_wakes_whoever_polls_it(running: Rig) -> None:
    request = running.accept()
    running.until(lambda: running.events)
    poll = select.poll()
    poll.register(running.feed.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    running.node.send(mutation(request.opaque, 0, 1, b"k"))
    assert poll.poll(5000) != []


def test_a_lost_connection_resumes_behind_the_last_document(running: Rig) -> None:
    first = running.accept()
    data = marker(first.opaque, 0, 0, 9) + mutation(first.opaque, 0, 4, b"k") + mutation(first.opaque, 0, 5, b"half")
    running.node.send(data[:-3])
    running.until(lambda: len(running.events) == 3)
    running.node.hang_up()
    running.until(lambda: not running.feed.connected())
    assert isinstance(running.feed.last_error, SourceUnavailable)
    again = running.accept()
    assert struct.unpack(">QQQQ", again.extras[8:24] + again.extras[32:]) == (4, (1 << 64) - 1, 0, 9)
    assert again.opaque != first.opaque
    running.node.send(mutation(again.opaque, 0, 5, b"whole"))
    running.until(lambda: running.events[-1][0] == MUTATION and running.events[-1][2] == 5)
    assert [event[3] for event in running.events if event[0] == MUTATION] == [b"k", b"whole"]
    assert [event[0] for event in running.events].count(HISTORY) == 2
    assert running.node.n_connections == 2


def test_what_came_before_garbage_is_handed_out_once(running: Rig) -> None:
    request = running.accept()
    documents = mutation(request.opaque, 0, 1, b"k") + mutation(request.opaque, 0, 2, b"l")
    running.node.send(marker(request.opaque, 0, 1, 2) + documents + b"\x55" * 24)
    running.until(lambda: isinstance(running.feed.last_error, ProtocolError))
    again = running.accept()
    assert int.from_bytes(again.extras[8:16], "big") == 1
    assert [event[:3] for event in running.events if event[0] == MUTATION] == [(MUTATION, 0, 1)]


def test_a_name_server_that_does_not_answer_stops_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, real, threads = threading.Event(), socket.getaddrinfo, threading.active_count()

    def slow(host: str, port: int, **options: Any) -> object:
        if host == "one.example" and not options["flags"]:
            answers.wait(10.0)
            host = "127.0.0.1"
        return real(host, port, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(resolver, "WAIT_S", 0.05)
    with rig() as made:
        address = SourceAddress((Endpoint("one.example", made.node.endpoint.port),), "default")
        feed = made.feed = DcpFeed(address, Credentials(), name="test", clock=made.clock)
        feed.start({0: ORIGIN})
        made.until(lambda: "one.example is still being looked up" in str(feed.last_error))
        for _ in range(20):
            made.turn()
            made.clock.now += 1.0
        assert threading.active_count() == threads + 1  # however often it was tried
        answers.set()
        made.accept()
        feed.close()


def test_names_differ_with_every_connection(running: Rig) -> None:
    names = []

    def respond(frame: Frame) -> None:
        if frame.opcode == Op.DCP_OPEN:
            names.append(frame.key)

    running.node.respond = respond
    for _ in range(3):
        running.accept()
        running.node.hang_up()
        running.until(lambda: not running.feed.connected())
    assert len(set(names)) == 3
    assert all(name.startswith(b"channelindex:test:") and len(name) <= 200 for name in names)


def test_attempts_grow_apart_while_nobody_answers() -> None:
    with rig() as made:
        made.node.close()
        made.feed.start({0: ORIGIN})
        waits = []
        for _ in range(10):
            made.until(lambda: made.feed.tick(made.clock()) > made.clock() or made.feed.read(1))
            wait_s = made.feed.tick(made.clock()) - made.clock()
            waits.append(wait_s)
            made.clock.now += wait_s
        assert isinstance(made.feed.last_error, SourceUnavailable)
        assert "source.url" in str(made.feed.last_error)
        assert waits[0] <= 0.1
        assert 5.0 <= waits[-1] <= 10.0


def test_a_bucket_that_is_not_loaded_yet_is_waited_for(running: Rig) -> None:
    refusals = 3

    def respond(frame: Frame) -> bytes | None:
        nonlocal refusals
        if frame.opcode == Op.SELECT_BUCKET and refusals:
            refusals -= 1
            return answer(frame, Status.KEY_ENOENT)
        return None

    running.node.respond = respond
    running.accept()
    assert running.node.n_connections == 4


def test_wrong_credentials_are_not_tried_again(running: Rig) -> None:
    running.node.respond = lambda frame: answer(frame, Status.EACCESS) if frame.opcode == Op.SELECT_BUCKET else None
    with pytest.raises(AuthenticationFailed):
        running.until(lambda: False)


def test_a_bucket_created_anew_is_reported(running: Rig) -> None:
    running.accept()
    running.until(lambda: running.events)
    running.node.respond = lambda frame: (
        answer(frame, value=running.node.config.replace(BUCKET_UUID.encode(), b"9" * 32))
        if frame.opcode == Op.GET_CLUSTER_CONFIG
        else None
    )
    running.node.hang_up()
    with pytest.raises(IndexMismatch, match=r"Give index\.name a new value"):
        running.until(lambda: False, step_s=0.05)


def test_a_silent_connection_is_given_up_and_one_with_noops_is_not(running: Rig) -> None:
    running.accept()
    running.until(lambda: running.events)
    for _ in range(10):
        running.node.send(NOOP)
        running.until(lambda: running.node.replies)
        assert running.node.replies.pop().opaque == 77
        running.clock.now += 20.0
    assert running.node.n_connections == 1
    running.node.respond = lambda frame: b""
    running.until(lambda: running.feed.last_error is not None, step_s=1.0)
    assert "silent for 50 s" in str(running.feed.last_error)


def test_a_process_that_was_stopped_finds_its_connection_alive(running: Rig) -> None:
    request = running.accept()
    running.until(lambda: running.events)
    running.node.send(marker(request.opaque, 0, 1, 1) + mutation(request.opaque, 0, 1, b"k"))
    running.clock.now += 3600.0
    running.until(lambda: running.events[-1][0] == MUTATION)
    assert running.feed.last_error is None


def test_a_frame_that_never_completes_is_given_up_although_bytes_come(running: Rig) -> None:
    request = running.accept()
    running.until(lambda: running.events)
    document = bytearray(mutation(request.opaque, 0, 1, b"k", b"v"))
    document[9] ^= 0xFF
    running.node.send(marker(request.opaque, 0, 1, 1) + document)
    n_rounds = 0
    while running.feed.last_error is None:  # a round in which no byte has arrived yet is none of those that count
        n_rounds += 1
        assert n_rounds < 50
        running.node.send(NOOP * 100)
        running.turn()
        running.clock.now += 6.0
        running.turn()
    assert n_rounds >= 4
    assert isinstance(running.feed.last_error, ProtocolError)
    assert "a frame that claims 16711737 bytes" in str(running.feed.last_error)
    again = running.accept()
    assert int.from_bytes(again.extras[8:16], "big") == 0


def test_a_large_document_may_come_slowly_and_while_we_are_stopped(running: Rig) -> None:
    request = running.accept()
    running.until(lambda: running.events)
    running.node.respond = lambda frame: b""  # an answer amid the document would be a part of it
    document = mutation(request.opaque, 0, 1, b"k", b"v" * 20 * FRAME_BYTES)
    running.node.send(marker(request.opaque, 0, 1, 1))
    piece_bytes = FRAME_BYTES // 8
    for start in range(0, len(document), piece_bytes):
        running.node.send(document[start : start + piece_bytes])
        if start == 2 * piece_bytes:
            running.clock.now += 3600.0  # and there is something to read
        running.turn()
        running.clock.now += FRAME_S / 9
        running.turn()
    running.until(lambda: running.events[-1][0] == MUTATION)
    assert running.feed.last_error is None


def test_a_node_that_does_not_answer_the_handshake_is_given_up(running: Rig) -> None:
    running.node.respond = lambda frame: b""
    running.until(lambda: running.feed.last_error is not None, step_s=0.5)
    assert "silent for 10 s" in str(running.feed.last_error)


def test_high_seqnos_are_those_reported_last(running: Rig) -> None:
    running.node.respond = lambda frame: (
        answer(frame, value=struct.pack(">HQHQ", 0, 7, 1, 9)) if frame.opcode == Op.GET_ALL_VB_SEQNOS else None
    )
    running.until(running.feed.high_seqnos)
    assert running.feed.high_seqnos() == {0: 7}


def test_what_was_taken_over_is_acknowledged() -> None:
    with rig(buffer_bytes=1000) as made:
        made.feed.start({0: ORIGIN})
        request = made.accept()
        data = marker(request.opaque, 0, 1, 1) + mutation(request.opaque, 0, 1, b"k", b"x" * 300)
        made.node.send(data)
        made.until(lambda: made.events[-1:] and made.events[-1][0] == MUTATION)
        made.turn()
        assert made.node.take(Op.DCP_BUFFER_ACK) == []
        made.feed.acknowledge()
        ack = made.asked(Op.DCP_BUFFER_ACK)
        assert int.from_bytes(ack.extras, "big") == len(data)


def test_a_bounded_feed_says_when_all_has_come() -> None:
    with rig(end_seqnos={0: 3, 1: 0}) as made:
        made.feed.start({0: ORIGIN, 1: ORIGIN})
        request = made.accept()
        assert (request.vbucket, int.from_bytes(request.extras[16:24], "big")) == (0, 3)
        made.node.send(marker(request.opaque, 0, 0, 5) + mutation(request.opaque, 0, 3, b"k"))
        made.until(lambda: len(made.events) == 3)
        assert not made.feed.ended()
        made.node.send(mutation(request.opaque, 0, 5, b"l") + stream_end(request.opaque, 0, 0))
        made.until(made.feed.ended)
        assert [event[2] for event in made.events if event[0] == MUTATION] == [3, 5]


def test_before_the_start_there_is_nothing_to_do() -> None:
    with rig() as made:
        assert made.feed.tick(0.0) == float("inf")
        assert list(made.feed.read(1)) == []
        made.feed.acknowledge()
        assert not made.feed.connected()
        assert made.feed.high_seqnos() == {}


def test_after_close_nothing_connects(running: Rig) -> None:
    running.accept()
    running.feed.close()
    assert running.feed.tick(1e9) == float("inf")
    assert list(running.feed.read(1)) == []


def test_a_resumed_checkpoint_is_sent_as_it_is() -> None:
    with rig() as made:
        made.feed.start({3: Checkpoint(0xAB, 8, 3, 20, 99)})
        request = made.asked(Op.DCP_STREAM_REQ)
        assert request.vbucket == 3
        assert struct.unpack(">QQQQQ", request.extras[8:]) == (8, (1 << 64) - 1, 0xAB, 3, 20)


def test_stream_that_is_added_runs_beside_the_others(running: Rig) -> None:
    request = running.accept()
    running.feed.add({1: ORIGIN})
    added = running.asked(Op.DCP_STREAM_REQ)
    running.node.send(answer(added, value=LOG))
    running.node.send(marker(added.opaque, 1, 0, 1) + mutation(added.opaque, 1, 1, b"k"))
    running.node.send(marker(request.opaque, 0, 0, 1) + mutation(request.opaque, 0, 1, b"k"))
    running.until(lambda: [event[1] for event in running.events if event[0] == MUTATION] == [1, 0])


def test_stream_that_is_dropped_is_closed_and_brings_nothing_more(running: Rig) -> None:
    request = running.accept()
    running.feed.add({1: ORIGIN})
    added = running.asked(Op.DCP_STREAM_REQ)
    running.until(lambda: running.events)
    running.feed.drop([0])
    assert running.asked(Op.DCP_CLOSE_STREAM).status == 0
    running.node.send(mutation(request.opaque, 0, 1, b"late") + answer(added, value=LOG))
    running.until(lambda: running.events[-1][1] == 1)
    assert not [event for event in running.events if event[0] == MUTATION]


def test_stream_that_is_dropped_before_its_answer_is_closed_when_that_comes(running: Rig) -> None:
    running.accept()
    running.feed.add({1: ORIGIN})
    added = running.asked(Op.DCP_STREAM_REQ)
    running.feed.drop([1])
    running.node.send(answer(added, value=LOG))
    assert running.asked(Op.DCP_CLOSE_STREAM).status == 1
    assert [event[1] for event in running.events] == [0]
