"""The feed on several nodes that do what the test says: whose map is believed, and where streams go."""

import struct
from collections.abc import Iterator
from dataclasses import replace

import cramjam
import pytest

from channelindex.errors import AuthenticationFailed, ConfigInvalid, ProtocolError
from channelindex.feeds.base import HISTORY, JSON, MUTATION, ROLLBACK, SNAPPY, SNAPSHOT, XATTR
from channelindex.feeds.dcp.messages import StreamEnd
from channelindex.feeds.dcp.streams import LIVE
from channelindex.mcbp import SERVER_REQUEST, Frame, Op, Status, join_xattrs, pack_request
from channelindex.model import ORIGIN, Checkpoint
from tests.support.dcp_node import LOG, Rig, rig
from tests.support.dcp_replay import answer, cluster_config
from tests.support.dcp_wire import marker, mutation, stream_end

COLLECTIONS = struct.pack(">H", 0x12)


@pytest.fixture
def two() -> Iterator[Rig]:
    """Two nodes; vbucket 0 is on the first, 1 on the second. Both streams are open."""
    with rig(n_nodes=2, chains=[[0], [1]]) as made:
        made.feed.start({0: ORIGIN, 1: ORIGIN})
        made.opened = [made.accept(0), made.accept(1)]
        made.until(lambda: len(made.events) == 2)
        yield made


def push(made: Rig, number: int, *, bucket: bytes = b"default", value: bytes | None = None) -> None:
    """Node *number* sends its map unasked."""
    node = made.nodes[number]
    body = node.config if value is None else value
    node.send(pack_request(0x01, magic=SERVER_REQUEST, extras=bytes(4), key=bucket, value=body))


def n_requests(made: Rig, number: int) -> int:
    return sum(frame.opcode == Op.DCP_STREAM_REQ for frame in made.nodes[number].asked)


def test_each_node_is_asked_for_its_own_vbuckets(two: Rig) -> None:
    assert [node.n_connections for node in two.nodes] == [1, 1]
    assert {event[1] for event in two.events if event[0] == HISTORY} == {0, 1}


def test_a_stream_that_its_node_ended_goes_where_a_pushed_map_says(two: Rig) -> None:
    two.tell([[1], [1]], rev=2)
    push(two, 1)
    two.node.send(stream_end(two.opened[0].opaque, 0, 2))
    assert two.accept(1).status == 0
    two.until(two.feed.connected)
    assert len(two.feed._cluster._nodes) == 1  # the first node has no stream of ours any more


def test_a_map_in_the_answer_not_my_vbucket_is_followed() -> None:
    with rig(n_nodes=2, chains=[[0]]) as made:
        made.feed.start({0: ORIGIN})
        request = made.asked(Op.DCP_STREAM_REQ)
        made.tell([[1]], rev=2)
        made.node.send(answer(request, Status.NOT_MY_VBUCKET, made.nodes[0].config))
        assert made.accept(1).status == 0


def test_without_a_map_in_it_the_map_is_asked_for() -> None:
    with rig(n_nodes=2, chains=[[0]]) as made:

        def respond(frame: Frame) -> bytes | None:
            if frame.opcode != Op.DCP_STREAM_REQ:
                return None
            made.tell([[1]], rev=2)
            return answer(frame, Status.NOT_MY_VBUCKET)

        made.node.respond = respond
        made.feed.start({0: ORIGIN})
        assert made.accept(1).status == 0


def test_an_older_map_is_not_believed(two: Rig) -> None:
    two.tell([[1], [1]], rev=3)
    push(two, 1)
    two.until(lambda: two.feed._cluster._map.revision == (0, 3))  # type: ignore[union-attr]
    two.tell([[0], [0]], rev=2)
    push(two, 0)
    for _ in range(20):
        two.turn()
    assert two.feed._cluster._map.revision == (0, 3)  # type: ignore[union-attr]


@pytest.mark.parametrize(("bucket", "value"), [(b"default", b""), (b"other", None)])
def test_a_push_that_does_not_say_what_is_new_makes_us_ask(bucket: bytes, value: bytes | None, two: Rig) -> None:
    two.tell([[0], [1]], rev=5)
    push(two, 0, bucket=bucket, value=value)
    two.until(lambda: two.feed._cluster._map.revision == (0, 5), step_s=0.05)  # type: ignore[union-attr]


def test_a_map_that_is_none_breaks_the_connection_that_it_came_by_alone(two: Rig) -> None:
    push(two, 0, value=b"{")
    two.until(lambda: isinstance(two.feed.last_error, ProtocolError))
    two.until(lambda: n_requests(two, 0), step_s=0.05)
    assert [node.n_connections for node in two.nodes] == [2, 1]


def test_what_was_missed_is_asked_for_every_ten_seconds(two: Rig) -> None:
    two.tell([[0], [1]], rev=5)
    started = two.clock.now
    two.until(lambda: two.feed._cluster._map.revision == (0, 5), step_s=0.1)  # type: ignore[union-attr]
    assert 5.0 < two.clock.now - started < 15.0


def test_the_streams_of_a_node_that_left_go_to_the_others(two: Rig) -> None:
    port = two.nodes[1].endpoint.port
    two.node.config = cluster_config(port, chains=[[0], [0]], here=1, rev=2)
    push(two, 0)
    assert {two.accept(1).status} == {0}
    two.until(two.feed.connected)
    assert two.nodes[0].n_connections == 1
    assert list(two.feed._cluster._nodes) == [two.nodes[1].endpoint]


def test_a_vbucket_that_is_nowhere_waits_for_a_map_that_has_it() -> None:
    with rig(n_nodes=2, chains=[[0], [-1]]) as made:
        made.feed.start({0: ORIGIN, 1: ORIGIN})
        made.accept(0)
        made.until(lambda: made.events)
        assert not made.feed.connected()
        made.tell([[0], [1]], rev=2)
        push(made, 0)
        assert made.accept(1).status == 1


def test_a_lost_node_is_replaced_by_what_the_others_say(two: Rig) -> None:
    two.tell([[0], [0]], rev=2)
    two.nodes[1].close()
    two.nodes[1].hang_up()
    two.nodes[1].turn = lambda: None  # type: ignore[method-assign]
    assert two.accept(0).status == 1


def test_when_all_nodes_are_lost_the_seeds_are_asked_again() -> None:
    with rig(n_nodes=3, chains=[[1]]) as made:
        seeds = (made.nodes[0].endpoint, made.nodes[2].endpoint)
        made.feed._cluster._address = replace(made.nodes[0].address, seeds=seeds)
        made.feed._cluster._n_sought = 0
        made.feed.start({0: ORIGIN})
        made.accept(1)
        made.tell([[2]], rev=2)
        made.nodes[1].close()
        made.nodes[1].turn = lambda: None  # type: ignore[method-assign]
        assert made.accept(2).status == 0


def test_while_our_only_node_is_down_one_other_is_asked_over_one_connection() -> None:
    with rig(n_nodes=2, chains=[[1]]) as made:
        made.nodes[1].close()
        made.nodes[1].turn = lambda: None  # type: ignore[method-assign]
        made.feed.start({0: ORIGIN})
        started = made.clock.now
        made.until(lambda: made.clock.now > started + 60.0, step_s=0.2)
        assert made.node.n_connections == 1
        made.tell([[0]], rev=2)
        assert made.accept(0).status == 0
        assert made.node.n_connections == 1


@pytest.mark.parametrize("streams", [{}, {0: ORIGIN}])
def test_without_a_stream_that_has_a_node_there_is_one_connection(streams: dict[int, Checkpoint]) -> None:
    with rig(n_nodes=2, chains=[[-1], [1]]) as made:
        made.feed.start(streams)
        started = made.clock.now
        made.until(lambda: made.clock.now > started + 30.0, step_s=0.2)
        assert [node.n_connections for node in made.nodes] == [1, 0]
        made.feed.add({1: ORIGIN})
        assert made.accept(1).status == 1


def test_a_node_that_refuses_us_for_a_while_is_borne_and_then_not(two: Rig) -> None:
    two.nodes[1].respond = lambda frame: answer(frame, Status.EACCESS) if frame.opcode == Op.SELECT_BUCKET else None
    two.nodes[1].hang_up()
    started = two.clock.now
    with pytest.raises(AuthenticationFailed):
        two.until(lambda: False, step_s=0.2)
    assert two.clock.now - started > 60.0


def test_a_node_that_lets_us_in_and_refuses_every_stream_is_not_borne_for_ever(two: Rig) -> None:
    two.nodes[1].respond = lambda frame: answer(frame, Status.EACCESS) if frame.opcode == Op.DCP_STREAM_REQ else None
    two.nodes[1].hang_up()
    with pytest.raises(AuthenticationFailed, match="privilege"):
        two.until(lambda: two.clock.now > 2000.0, step_s=0.2)


def test_privileges_that_were_lost_are_looked_for_again(two: Rig) -> None:
    two.nodes[1].send(stream_end(two.opened[1].opaque, 1, StreamEnd.LOST_PRIVILEGES))
    assert two.accept(1).status == 1
    two.until(two.feed.connected)
    assert two.feed.last_error is None


def test_a_refusal_that_passes_is_forgotten(two: Rig) -> None:
    refused = 0

    def respond(frame: Frame) -> bytes | None:
        nonlocal refused
        if frame.opcode == Op.SELECT_BUCKET and refused < 3:
            refused += 1
            return answer(frame, Status.EACCESS)
        return None

    two.nodes[1].respond = respond
    two.nodes[1].hang_up()
    assert two.accept(1).status == 1
    two.until(two.feed.connected)
    assert two.feed.last_error is None


def test_the_buffer_is_shared_by_the_nodes() -> None:
    asked: list[bytes] = []

    def respond(frame: Frame) -> None:
        if frame.opcode == Op.DCP_CONTROL and frame.key == b"connection_buffer_size":
            asked.append(frame.value)

    with rig(n_nodes=2, chains=[[1], [1]], buffer_bytes=4_000_000) as made:
        made.nodes[1].respond = respond
        made.feed.start({0: ORIGIN, 1: ORIGIN})
        made.accept(1)
    assert asked == [b"4000000"]


# -- bodies


def flags_of(made: Rig) -> list[int]:
    """The flags of each DCP_OPEN that the node gets from now on."""
    flags: list[int] = []

    def respond(frame: Frame) -> None:
        if frame.opcode == Op.DCP_OPEN:
            flags.append(int.from_bytes(frame.extras[4:], "big"))

    made.node.respond = respond
    return flags


def needs_body(key: bytes, datatype: int, value: bytes) -> bool:
    return not key.startswith(b"_") and not datatype & XATTR


def test_bodies_are_left_out_until_a_document_may_need_its_own() -> None:
    with rig(bodies=False, needs_body=needs_body) as made:
        flags = flags_of(made)
        made.feed.start({0: ORIGIN, 1: ORIGIN})
        made.until(lambda: n_requests(made, 0) == 2)
        first, second = made.node.take(Op.DCP_STREAM_REQ)
        made.node.send(answer(first, value=struct.pack(">QQ", 1, 0)) + answer(second, value=struct.pack(">QQ", 1, 0)))
        xattrs = join_xattrs([("_sync", b"{}")], b"")
        made.node.send(
            marker(first.opaque, 0, 0, 9)
            + mutation(first.opaque, 0, 1, b"raw")
            + mutation(first.opaque, 0, 2, b"_sync:user:x", datatype=JSON)
            + mutation(first.opaque, 0, 3, b"k", xattrs, datatype=JSON | XATTR)
            + mutation(first.opaque, 0, 4, b"inline", datatype=JSON)
            + mutation(first.opaque, 0, 5, b"k5", xattrs, datatype=JSON | XATTR)
        )
        made.until(lambda: made.node.n_connections == 2)
        assert [event[2] for event in made.events if event[0] == MUTATION] == [1, 2, 3]
        made.until(lambda: n_requests(made, 0) == 2)
        resumed = {frame.vbucket: frame for frame in made.node.take(Op.DCP_STREAM_REQ)}
        assert struct.unpack(">QQQQQ", resumed[0].extras[8:]) == (3, (1 << 64) - 1, 1, 0, 9)
        assert flags == [0x65, 0x25]
        made.node.send(answer(resumed[0], value=struct.pack(">QQ", 1, 0)))
        made.node.send(mutation(resumed[0].opaque, 0, 4, b"inline", b'{"a":1}', datatype=JSON))
        made.until(lambda: made.events[-1][0] == MUTATION and made.events[-1][2] == 4)
        assert made.events[-1][5] == b'{"a":1}'


def test_a_server_that_cannot_leave_bodies_out_sends_them() -> None:
    with rig(bodies=False, needs_body=needs_body) as made:
        made.node.respond = lambda frame: (
            answer(frame, Status.EINVAL) if frame.opcode == Op.DCP_OPEN and frame.extras[7] & 0x40 else None
        )
        made.feed.start({0: ORIGIN})
        made.accept()


def test_a_feed_that_must_not_take_bodies_says_what_to_set() -> None:
    with rig(bodies=False) as made:
        made.node.respond = lambda frame: answer(frame, Status.EINVAL) if frame.opcode == Op.DCP_OPEN else None
        made.feed.start({0: ORIGIN})
        with pytest.raises(ConfigInvalid, match=r"source\.metadata"):
            made.until(lambda: False)


# -- collections


def test_keys_come_without_their_collection() -> None:
    with rig() as made:
        made.node.features = COLLECTIONS
        made.feed.start({0: ORIGIN})
        request = made.accept()
        assert request.value == b'{"collections":["0"]}'
        made.node.send(marker(request.opaque, 0, 0, 2) + mutation(request.opaque, 0, 1, b"\0key", b"v"))
        made.until(lambda: made.events[-1:] and made.events[-1][0] == MUTATION)
        assert made.events[-1][3:] == (b"key", 0, b"v")


def test_keys_of_several_collections_come_with_their_names() -> None:
    manifest = b'{"scopes":[{"name":"s","uid":"8","collections":[{"name":"a","uid":"9"},{"name":"b","uid":"a"}]}]}'
    with rig() as made:
        address = replace(made.node.address, collections=("s.a", "s.b"))
        made.feed._cluster._address = made.feed._address = address
        made.node.features = COLLECTIONS
        made.node.respond = lambda frame: (
            answer(frame, value=manifest) if frame.opcode == Op.COLLECTIONS_GET_MANIFEST else None
        )
        made.feed.start({0: ORIGIN})
        request = made.accept()
        assert request.value == b'{"collections":["9","a"]}'
        made.node.send(
            marker(request.opaque, 0, 0, 2)
            + mutation(request.opaque, 0, 1, b"\x09key", b"v")
            + mutation(request.opaque, 0, 2, b"\x0akey", b"w")
        )
        made.until(lambda: made.events[-1:] and made.events[-1][1:3] == (0, 2))
        assert [event[3] for event in made.events if event[0] == MUTATION] == [b"s.a/key", b"s.b/key"]


def test_collections_that_were_dropped_are_looked_up_again() -> None:
    with rig() as made:
        made.feed.start({0: ORIGIN})
        request = made.accept()
        made.node.send(stream_end(request.opaque, 0, 7))
        again = made.accept()
        assert again.opaque != request.opaque
        made.until(made.feed.connected)
        assert made.feed.last_error is None


def test_collections_that_a_node_does_not_know_where_nothing_is_open_are_looked_up_again() -> None:
    n_greeted: list[int] = []

    def respond(frame: Frame) -> bytes | None:
        if frame.opcode == Op.HELLO:
            n_greeted.append(frame.opcode)
        refused = frame.opcode == Op.DCP_STREAM_REQ and len(n_greeted) <= 2
        return answer(frame, Status.UNKNOWN_COLLECTION) if refused else None

    with rig() as made:
        made.node.respond = respond
        made.feed.start({0: ORIGIN})
        made.accept()
        assert len(n_greeted) == 3


# -- compression


def test_compressed_values_come_plain() -> None:
    body = b'{"a":1}' * 100
    with rig() as made:
        made.feed.start({0: ORIGIN})
        request = made.accept()
        packed = bytes(cramjam.snappy.compress_raw(body))
        bomb = b"\xff\xff\xff\xff\x0f" + bytes(20)  # claims 4 GiB
        made.node.send(
            marker(request.opaque, 0, 0, 3)
            + mutation(request.opaque, 0, 1, b"k", packed, datatype=JSON | SNAPPY)
            + mutation(request.opaque, 0, 2, b"k", packed[:-5], datatype=JSON | SNAPPY)
            + mutation(request.opaque, 0, 3, b"k", bomb, datatype=SNAPPY)
        )
        made.until(lambda: made.events[-1:] and made.events[-1][1:3] == (0, 3))
        documents = [event[4:] for event in made.events if event[0] == MUTATION]
        assert documents == [(JSON, body), (JSON | SNAPPY, packed[:-5]), (SNAPPY, bomb)]


# -- rollback mitigation

ROLLBACK_TO = 4


def test_what_a_failover_took_back_before_anybody_saw_it_is_no_rollback() -> None:
    with rig(n_nodes=2, chains=[[0, 1]], replicated_only=True) as made:
        for node in made.nodes:
            node.respond = lambda frame: (
                observe_answer(frame, ROLLBACK_TO) if frame.opcode == Op.OBSERVE_SEQNO else None
            )
        made.feed.start({0: ORIGIN})
        request = made.accept(0)
        documents = b"".join(mutation(request.opaque, 0, seqno, b"k") for seqno in (1, ROLLBACK_TO))
        lost = marker(request.opaque, 0, 5, 6) + mutation(request.opaque, 0, 6, b"lost")
        made.node.send(marker(request.opaque, 0, 0, ROLLBACK_TO) + documents + lost)
        made.until(lambda: made.events and made.events[-1] == (SNAPSHOT, 0, 5, 6), step_s=0.05)
        made.node.send(stream_end(request.opaque, 0, 2))
        again = made.asked(Op.DCP_STREAM_REQ)
        assert int.from_bytes(again.extras[8:16], "big") == 6
        made.node.send(answer(again, Status.ROLLBACK, ROLLBACK_TO.to_bytes(8, "big")))
        made.node.send(answer(made.asked(Op.DCP_GET_FAILOVER_LOG), value=LOG))
        last = made.accept(0)
        assert struct.unpack(">QQQQQ", last.extras[8:]) == (ROLLBACK_TO, LIVE, 0xABC, ROLLBACK_TO, ROLLBACK_TO)
        assert not [event for event in made.events if event[0] == ROLLBACK]


def observe_answer(frame: Frame, persisted: int) -> bytes:
    vbuuid = int.from_bytes(frame.value, "big")
    return answer(frame, value=struct.pack(">BHQQQ", 0, frame.vbucket, vbuuid, persisted, 99))


def test_events_wait_for_the_disks_of_all_copies() -> None:
    with rig(n_nodes=2, chains=[[0, 1]], replicated_only=True) as made:
        persisted = [9, 0]

        def respond(number: int, frame: Frame) -> bytes | None:
            return observe_answer(frame, persisted[number]) if frame.opcode == Op.OBSERVE_SEQNO else None

        for number, node in enumerate(made.nodes):
            node.respond = lambda frame, number=number: respond(number, frame)  # type: ignore[misc]
        made.feed.start({0: ORIGIN})
        request = made.accept(0)
        made.node.send(marker(request.opaque, 0, 0, 9) + mutation(request.opaque, 0, 1, b"k"))
        made.until(lambda: len(made.events) == 2)
        started = made.clock.now
        made.until(lambda: made.clock.now > started + 3.0, step_s=0.05)
        assert not [event for event in made.events if event[0] == MUTATION]
        persisted[1] = 1
        made.until(lambda: made.events[-1][0] == MUTATION, step_s=0.05)
        assert [node.n_connections for node in made.nodes] == [1, 1]


def test_it_is_a_feed_that_can_be_closed_while_it_connects() -> None:
    with rig() as made:
        made.feed.start({0: ORIGIN})
        made.feed.tick(made.clock())
        made.feed.close()
        assert not made.feed.read(1)


def test_what_a_node_did_wrong_is_in_the_log(two: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "channelindex")
    two.node.send(b"\x55" * 24)
    two.until(lambda: two.feed.last_error is not None)
    (record,) = [record for record in caplog.records if record.getMessage() == "feed.protocol_broken"]
    fields = record.__dict__["fields"]
    assert fields["server"] == two.node.endpoint
    assert fields["msg"] == "frame with unknown magic 0x55"


def test_an_unknown_frame_is_reported_once(two: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "channelindex.feed")
    for _ in range(3):
        two.node.send(pack_request(0x7F, magic=SERVER_REQUEST))
    sessions = [node.connection.session for node in two.feed._cluster.all_nodes() if node.connection]
    two.until(lambda: sum(session.ignored_frames for session in sessions) == 3)
    assert [record.getMessage() for record in caplog.records].count("feed.frame_ignored") == 1
