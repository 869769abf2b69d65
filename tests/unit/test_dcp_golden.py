"""What a real server said, and what must be concluded from it. The recordings' README says why."""

import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.feeds.base import DELETION, HISTORY, JSON, MUTATION, ROLLBACK, SNAPPY, SNAPSHOT, XATTR, Event
from channelindex.feeds.dcp.streams import State
from channelindex.feeds.dcp.topology import parse_cluster_map
from channelindex.mcbp import REQUEST, SERVER_REQUEST, Op, Status, split_xattrs
from channelindex.model import ORIGIN, Checkpoint
from tests.support.dcp_replay import ADDRESS, Replay, counted_frames, sent
from tests.support.recording import Line, by_connection, described_event, outline, read_recording
from tests.support.shared import SHARED, shared_path

RECORDINGS = sorted(path.name for path in (SHARED / "golden").glob("*.jsonl*")) or ["c_live_tail.jsonl"]
CHUNKS = (1, 2, 3, 7, 23, 24, 25, 31, 32, 33, 55, 100, 1000)
LARGE_CHUNKS = (1, 4096, 65_537)
FEW_PLACES, LARGE_HEAD = 60, 400
SMALL_BYTES = 100_000


def recording(name: str) -> Path:
    return shared_path(f"golden/{name}")


def replay(lines: list[Line], chunk: int = 1 << 30) -> Replay:
    run = Replay()
    run.run(lines, chunk)
    return run


def one(name: str, conn: str = "dcp") -> tuple[Replay, list[Line]]:
    lines = by_connection(recording(name))[conn]
    return replay(lines), lines


def seqnos(events: list[Event], kind: int) -> list[int]:
    return [event[2] for event in events if event[0] == kind]


def connections(name: str) -> dict[str, list[Line]]:
    """Those that a session of ours can be on: it always asks for noops before it asks for a stream."""
    found = {conn: lines for conn, lines in by_connection(recording(name)).items() if conn != "c-nonoop"}
    assert found
    return found


@pytest.mark.parametrize("name", RECORDINGS)
def test_events_are_those_that_the_recording_describes(name: str) -> None:
    for conn, lines in connections(name).items():
        run = replay(lines)
        asked = {event[1] for event in run.events if event[0] == HISTORY}
        described = [event for event in map(described_event, lines) if event is not None and event[1] in asked]
        assert [outline(event) for event in run.events if event[0] != ROLLBACK] == described, conn


@pytest.mark.parametrize("name", RECORDINGS)
def test_cuts_change_nothing(name: str) -> None:
    for lines in connections(name).values():
        whole = replay(lines)
        size = sum(len(line.data) for line in lines)
        for chunk in CHUNKS if size < SMALL_BYTES else LARGE_CHUNKS:
            cut = replay(lines, chunk)
            assert cut.events == whole.events
            assert cut.session._parser.counted_bytes == whole.session._parser.counted_bytes
            assert cut.session.ignored_frames == whole.session.ignored_frames


def conclusions(run: Replay) -> tuple[object, ...]:
    """All that follows from what the server sent."""
    streams = {vb: (stream.state, stream.checkpoint) for vb, stream in run.streams._by_vb.items()}
    session = run.session
    return run.events, streams, session._parser.counted_bytes, session.ignored_frames, session.map_doubtful, run.configs


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_cut_at_any_byte_of_any_frame_changes_nothing(name: str) -> None:
    """Each frame of the server in two pieces, the second with the first of the next: for each length of the first.

    Of a connection with more places than `FEW_PLACES`, as many are drawn.
    """
    for lines in connections(name).values():
        places = cut_places(lines)
        assert_cuts_change_nothing(lines, random.Random(name).sample(places, min(len(places), FEW_PLACES)))


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RECORDINGS)
def test_a_cut_at_every_byte_of_every_frame_changes_nothing(name: str) -> None:
    for lines in connections(name).values():
        assert_cuts_change_nothing(lines, cut_places(lines))


def cut_places(lines: list[Line]) -> range:
    """Each length that the first piece of a frame can have; of a large recording, those in its frames' heads."""
    longest = max((len(line.data) for line in lines if line.direction == "s2c"), default=0)
    is_large = sum(len(line.data) for line in lines) > SMALL_BYTES
    return range(1, min(longest, LARGE_HEAD) if is_large else longest)


def assert_cuts_change_nothing(lines: list[Line], places: Sequence[int]) -> None:
    whole = conclusions(replay(lines))
    for place in places:
        run = Replay()
        run.run(lines, cut=place)
        assert conclusions(run) == whole, place


# -- documents


def test_memory_snapshot_has_the_newest_version_of_each_key() -> None:
    run, _ = one("b_variety_memory.jsonl.gz")
    mutations = [3, 4, 5, 6, 7, 8, 10, 12, 14, 27, 30, 31, 32, 33, 34, 37, 38]
    assert seqnos(run.events, MUTATION) == mutations
    assert seqnos(run.events, DELETION) == [16, 19, 21, 24, 35, 36]
    assert [event[2:] for event in run.events if event[0] == SNAPSHOT] == [(0, 37), (38, 38)]


def test_disk_snapshot_starts_at_the_request_and_the_next_one_behind_it() -> None:
    run, _ = one("b_variety_disk.jsonl.gz")
    assert [event[2:] for event in run.events if event[0] == SNAPSHOT] == [(0, 38), (39, 40)]


def test_a_tombstone_carries_its_system_xattr_and_no_body() -> None:
    run, _ = one("b_variety_memory.jsonl.gz")
    kind, vb, _, key, datatype, value = next(event for event in run.events if event[2] == 21)
    assert (kind, vb, key, datatype) == (DELETION, 0, b"tomb", XATTR)
    assert split_xattrs(value) == ({"_sync": b'{"rev":"2-tomb","flags":1}'}, b"")


def test_keys_and_values_come_whole() -> None:
    run, _ = one("b_variety_memory.jsonl.gz")
    by_key = {event[3]: event for event in run.events if event[0] == MUTATION}
    assert by_key[b"bin"][4:] == (0, b"\x00\xff\xfe\x80binary")
    assert by_key[b"empty"][4:] == (0, b"")
    assert by_key[b"num"][4:] == (JSON, b"42")
    assert len(by_key[b"big"][5]) == 1 << 20
    assert len(by_key[b"k" * 250][3]) == 250
    assert split_xattrs(by_key[b"binx"][5]) == ({"_sync": b'{"rev":"1-bin"}'}, b"\xff\x00bin")


def test_deletions_with_delete_time_are_like_those_without() -> None:
    with_time, lines = one("b_variety_disk_delete_times.jsonl.gz")
    without, _ = one("b_variety_disk.jsonl.gz")
    assert {len(line.frame.extras) for line in lines if line.opcode == Op.DCP_DELETION} == {21}
    assert [e for e in with_time.events if e[0] == DELETION] == [e for e in without.events if e[0] == DELETION]


def test_live_writes_of_two_vbuckets_interleave() -> None:
    run, _ = one("c_live_tail.jsonl")
    documents = [event[1:3] for event in run.events if event[0] == MUTATION]
    assert [seqno for vb, seqno in documents if vb == 0] == [1, 2, 3, 5, 7, 8, 10, 11, 13, 15, 16]
    assert [seqno for vb, seqno in documents if vb == 1] == [1]
    assert (SNAPSHOT, 0, 5, 8) in run.events  # deduplicated: it does not start behind the last one


def test_sixteen_vbuckets_at_once() -> None:
    run, lines = one("q_interleave.jsonl")
    assert {event[1] for event in run.events if event[0] == HISTORY} == set(range(16))
    ended = [stream.vb for stream in run.streams._by_vb.values() if stream.state is State.ENDED]
    assert len(ended) == 8
    assert run.session.ignored_frames == 0
    assert len([event for event in run.events if event[0] == MUTATION]) == sum(
        line.opcode == Op.DCP_MUTATION for line in lines
    )


# -- positions


def test_a_cut_in_the_middle_of_a_snapshot_resumes_there() -> None:
    run, _ = one("e_resume_mid_snapshot.jsonl", "dcp1")
    run.streams.disconnect()
    again = run.streams._by_vb[0]
    resumed = by_connection(recording("e_resume_mid_snapshot.jsonl"))["dcp2"]
    request = next(line.frame for line in resumed if line.opcode == Op.DCP_STREAM_REQ)
    assert again.request().extras[8:] == request.extras[8:]
    assert again.state is State.WAITING
    assert seqnos(replay(resumed).events, MUTATION) == list(range(9, 26))


def test_between_snapshots_the_position_is_a_snapshot_of_its_own() -> None:
    run, _ = one("c_live_tail.jsonl")
    run.streams.disconnect()
    vbuuid = next(event[2][0][0] for event in run.events if event[:2] == (HISTORY, 0))
    assert run.streams._by_vb[0].checkpoint == Checkpoint(vbuuid, 16, 16, 16)


# -- rollback


def test_rollbacks_go_where_the_server_says() -> None:
    run, _ = one("e_rollback_simple.jsonl")
    vbuuid = 0x492479AEE82A
    assert [event[2] for event in run.events if event[0] == ROLLBACK] == [
        ORIGIN,  # another history
        ORIGIN,  # no history named
        Checkpoint(vbuuid, 10, 10, 10),  # ahead of the server
        Checkpoint(vbuuid, 8, 8, 8),  # ahead, in a snapshot
        Checkpoint(vbuuid, 8, 8, 8),  # in a snapshot that reaches beyond what the server has
    ]


def test_a_crash_takes_back_what_was_not_persisted() -> None:
    before, _ = one("e_rollback_crash.jsonl", "dcp1")
    assert seqnos(before.events, MUTATION) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    after, _ = one("e_rollback_crash.jsonl", "dcp2")
    new_branch = 0xE5437FF8CA0F
    assert [event[2] for event in after.events if event[0] == ROLLBACK] == [
        Checkpoint(new_branch, 5, 5, 5),
        Checkpoint(new_branch, 5, 5, 5),
        Checkpoint(new_branch, 5, 5, 5),
        Checkpoint(0x581C5A6EC3FF, 4, 4, 4),  # below the branch point: on the older history
    ]
    assert seqnos(after.events, MUTATION) == [4, 5, 6, 7, 8, 9, 10, 11]


def test_a_crash_of_an_ephemeral_bucket_takes_back_all() -> None:
    run, _ = one("p_ephemeral.jsonl", "dcp2")
    assert [event[2] for event in run.events if event[0] == ROLLBACK] == [ORIGIN]


def test_a_purge_takes_back_all_without_a_new_history() -> None:
    run, _ = one("e_rollback_purge.jsonl")
    assert [event[2] for event in run.events if event[0] == ROLLBACK] == [ORIGIN]
    assert seqnos(run.events, DELETION) == [7, 8, 9]


def test_a_bucket_created_anew_shows_in_the_history() -> None:
    lines = by_connection(recording("j_bucket_delete.jsonl"))
    before, after = replay(lines["dcp"]), replay(lines["dcp2"])
    assert [event[2] for event in after.events if event[0] == ROLLBACK] == [ORIGIN, ORIGIN]
    histories = [[event[2] for event in run.events if event[:2] == (HISTORY, 0)] for run in (before, after)]
    assert histories == [[((0xEC28C6F2F4FA, 0),)], [((0xEE1090374DE1, 0),)]]


# -- ends


def test_the_server_completes_the_snapshot_beyond_the_end_seqno() -> None:
    run, _ = one("d_end_seqno.jsonl")
    assert seqnos(run.events, MUTATION)[5:10] == [1, 2, 3, 4, 5]  # 0 to 3 was asked for
    assert run.streams._by_vb[0].state is State.ENDED
    assert run.streams.all_ended is False  # vbucket 1 was asked for without an end


def test_a_changed_state_of_the_vbucket_asks_again_later() -> None:
    run, _ = one("g_vb_state_change.jsonl")
    states = {vb: stream.state for vb, stream in run.streams._by_vb.items()}
    assert {vb for vb, state in states.items() if state is State.WAITING} == {0, 2, 3, 6}
    assert {vb for vb, state in states.items() if state is State.OPEN} == {1, 4, 5}
    assert seqnos(run.events, MUTATION)[-1] == 2


def test_a_vbucket_that_is_elsewhere_is_asked_for_again() -> None:
    run, lines = one("f_not_my_vbucket.jsonl")
    assert {stream.state for vb, stream in run.streams._by_vb.items() if vb in (2, 7, 1023, 5000)} == {State.WAITING}
    assert [line for line in lines if line.opcode == Op.DCP_STREAM_REQ and line.frame.vbucket == 7]


def test_a_duplicate_request_leaves_the_open_stream_alone() -> None:
    run, _ = one("l_duplicate_stream.jsonl")
    assert seqnos(run.events, MUTATION) == [1, 2]


# -- flow control, noops


def test_flow_control_counts_what_the_server_counts() -> None:
    run, acknowledged, checked = Replay(), 0, []
    for line in read_recording(recording("i_flow_control.jsonl")):
        if line.conn == "dcp" and line.opcode == Op.DCP_BUFFER_ACK:
            acknowledged += int.from_bytes(line.frame.extras, "big")
        elif line.conn == "dcp":
            run.run([line], 1 << 30)
        elif match := re.search(r'"eq_dcpq:golden-i:unacked_bytes": "(\d+)"', line.note):
            checked.append((run.session._parser.counted_bytes - acknowledged, int(match[1])))
    (ours, theirs), (ours_after_over_ack, theirs_after_over_ack) = checked
    assert ours == theirs == 1200
    assert ours_after_over_ack == theirs_after_over_ack - 1000  # the recorded client acknowledged 1000 too many


def test_noops_are_not_counted() -> None:
    for name in ("h_noop.jsonl", "i_flow_control.jsonl"):
        for lines in by_connection(recording(name)).values():
            assert replay(lines).session._parser.counted_bytes == counted_frames(lines)


def test_a_noop_is_echoed_byte_for_byte() -> None:
    lines = by_connection(recording("h_noop.jsonl"))["dcp1"]
    replies = [line.data for line in lines if line.direction == "c2s" and line.opcode == Op.DCP_NOOP]
    noops = [line.data for line in lines if line.direction == "s2c" and line.opcode == Op.DCP_NOOP]
    assert len(replies) == 4
    session = Replay().session
    for noop, reply in zip(noops, replies, strict=False):
        session.receive(noop, 0.0)
        assert bytes(session.outgoing) == reply
        session.outgoing.clear()


# -- open flags and compression: what comes of the same documents


def documents(name: str) -> dict[bytes, Event]:
    """The newest event of each document, by its key."""
    run, _ = one(name)
    return {event[3]: event for event in run.events if event[0] in (MUTATION, DELETION)}


def test_the_json_bit_comes_without_having_been_asked_for() -> None:
    without = documents("b_variety_disk_no_json_hello.jsonl.gz")
    assert {key: event[4:] for key, event in without.items()} == {
        key: event[4:] for key, event in documents("b_variety_disk.jsonl.gz").items()
    }


def test_without_the_flag_for_them_there_are_no_xattrs() -> None:
    assert not any(event[4] & XATTR for event in documents("b_variety_disk_no_xattr_flag.jsonl.gz").values())


def test_without_values_xattrs_stay_and_bodies_are_gone() -> None:
    whole, plain = documents("b_variety_disk.jsonl.gz"), documents("b_variety_disk_no_value.jsonl")
    underlying = documents("b_variety_disk_no_value_underlying.jsonl")
    assert plain.keys() == underlying.keys() == whole.keys()
    for key, event in whole.items():
        xattrs = split_xattrs(event[5])[0] if event[4] & XATTR else {}
        assert split_xattrs(underlying[key][5]) == (xattrs, b"")
        assert split_xattrs(plain[key][5]) == (xattrs, b"")
        assert underlying[key][4] == event[4]
        assert plain[key][4] == event[4] & XATTR


def test_the_decoder_tells_which_of_them_need_their_bodies() -> None:
    needs_body = SyncGatewayDecoder().needs_body
    whole = documents("b_variety_disk.jsonl.gz")
    for key, event in documents("b_variety_disk_no_value_underlying.jsonl").items():
        if event[0] == MUTATION and event[4] & JSON and not key.startswith(b"_"):
            has_sync = bool(event[4] & XATTR) and "_sync" in split_xattrs(whole[key][5])[0]
            assert needs_body(key, event[4], event[5]) is not has_sync


def test_an_empty_value_whose_datatype_says_xattr_means_nothing() -> None:
    decoder = SyncGatewayDecoder()
    events = documents("b_variety_disk_no_value_no_xattr.jsonl").values()
    assert any(event[4] & XATTR for event in events)
    for kind, _, _, key, datatype, value in events:
        assert value == b""
        assert decoder.decode(kind, key, datatype, value) is None


def test_compressed_values_come_as_if_they_had_not_been() -> None:
    lines = by_connection(recording("b_variety_disk_snappy.jsonl"))["dcp"]
    assert any(line.frame.datatype & SNAPPY for line in lines if line.opcode == Op.DCP_MUTATION)
    compressed, whole = documents("b_variety_disk_snappy.jsonl"), documents("b_variety_disk.jsonl.gz")
    assert compressed.keys() <= whole.keys()
    assert all(event[4:] == whole[key][4:] for key, event in compressed.items())


def test_a_server_that_may_compress_need_not() -> None:
    lines = by_connection(recording("b_variety_disk_snappy_hello_only.jsonl.gz"))["dcp"]
    assert not any(line.frame.datatype & SNAPPY for line in lines if line.opcode == Op.DCP_MUTATION)
    assert documents("b_variety_disk_snappy_hello_only.jsonl.gz").keys() == documents("b_variety_disk.jsonl.gz").keys()


# -- checkpoints, closing, restarts, the map


def test_each_checkpoint_is_a_snapshot_and_a_key_may_come_again() -> None:
    run, _ = one("o_checkpoints.jsonl")
    snapshots = [event[2:] for event in run.events if event[0] == SNAPSHOT]
    keys = [event[3] for event in run.events if event[0] == MUTATION]
    assert snapshots[:3] == [(0, 3), (4, 5), (6, 7)]
    assert keys[:5] == [b"b", b"a", b"a", b"c", b"b"]
    assert snapshots[3:] == [(0, 5), (6, 7), (3, 5), (6, 7)]  # resumed at the end of the first, and inside the second


def test_a_stream_that_we_closed_is_not_missed() -> None:
    lines = by_connection(recording("k_close_stream.jsonl"))
    for conn, frames in lines.items():
        assert replay(frames).session.ignored_frames == sum(
            line.direction == "s2c" and line.opcode == Op.DCP_CLOSE_STREAM for line in frames
        ), conn  # the answers, to requests that the recorded client made


def test_a_server_that_stops_is_resumed_under_the_same_history() -> None:
    lines = by_connection(recording("n_server_stop.jsonl"))
    histories = {
        event[2][-1]
        for frames in lines.values()
        for event in replay(frames).events
        if event[0] == HISTORY and event[1] == 0
    }
    assert len(histories) == 1
    refused = [
        line.frame.status
        for frames in lines.values()
        for line in frames
        if line.direction == "s2c" and line.opcode == Op.SELECT_BUCKET
    ]
    assert Status.KEY_ENOENT in refused  # until the bucket is loaded: `SourceUnavailable`, see test_dcp_auth


def test_a_pushed_map_is_handed_on() -> None:
    lines = by_connection(recording("r_cluster_config.jsonl"))["duplex"]
    pushed = [line.data for line in lines if line.data[0] == SERVER_REQUEST]
    run = Replay()
    for data in pushed:
        run.session.receive(data, 0.0)
    assert [parse_cluster_map(text, ADDRESS.seeds[0], ADDRESS).revision for text in run.configs[-len(pushed) :]] == [
        (0, 95455907)
    ]


def test_a_map_comes_with_the_answer_not_my_vbucket() -> None:
    run, lines = one("f_not_my_vbucket.jsonl")
    refusals = [line for line in lines if line.direction == "s2c" and line.opcode == Op.DCP_STREAM_REQ]
    assert run.configs[1:] == [line.frame.value for line in refusals if line.frame.status == Status.NOT_MY_VBUCKET]
    assert run.session.map_doubtful


def test_what_the_server_closes_a_connection_for_we_never_send() -> None:
    """Malformed requests, noops of ours, a second DCP_OPEN: the requests of our sessions are none of these."""
    closed_for = {Op.DCP_NOOP}
    session = Replay().session
    session.tick(0.0)
    for line in read_recording(recording("m_bad_requests.jsonl")):
        if line.direction == "s2c" and line.data[0] == REQUEST and line.opcode == Op.DCP_NOOP:
            session.receive(line.data, 0.0)
    requests = [frame for frame in sent(session) if frame.magic == REQUEST]
    assert requests
    assert not closed_for & {frame.opcode for frame in requests}
