"""What a client sees of each fault that a dev bucket can be told to have."""

import json
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from channelindex import mcbp
from channelindex.errors import ConfigInvalid, ProtocolError
from channelindex.mcbp import Frame, Op, Status
from devbucket import DevBucket, DevBucketConfig
from tests.support.mcbp_client import RawClient, Writer

N_VBUCKETS = 4
QUIET_S = 0.2
"""How long nothing comes where nothing may come."""


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as running:
        yield running


@pytest.fixture
def open_client(bucket: DevBucket) -> Iterator[Callable[[], RawClient]]:
    opened: list[RawClient] = []

    def connect() -> RawClient:
        opened.append(RawClient(bucket.port))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def writer(open_client) -> Writer:
    return Writer(open_client().log_in().call)


@pytest.fixture
def feed(open_client) -> RawClient:
    """A feed of vbucket 0 that has seen all there is, which is nothing."""
    client: RawClient = open_client().log_in().open_dcp("feed")
    assert client.request_stream(0).status == Status.SUCCESS
    return client


def next_mutation(client: RawClient) -> Frame:
    while (frame := client.read()) is not None:
        if frame.opcode == Op.DCP_MUTATION:
            return frame
    raise AssertionError("hung up")


def assert_silent(client: RawClient) -> None:
    with pytest.raises(TimeoutError):
        client.read(QUIET_S)


def test_connections_are_listed_and_chosen_by_name(bucket, writer, feed):
    names = {found["name"]: found["streams"] for found in bucket.connections()}
    assert names == {"": 0, "feed": 1}
    assert bucket.drop_connections(name="fee") == 1
    assert feed.read() is None
    assert writer.call(Op.NOOP).status == Status.SUCCESS
    assert bucket.drop_connections(node=0) == 1
    with pytest.raises(ConfigInvalid, match="no node 1"):
        bucket.drop_connections(node=1)


def test_stalled_connection_answers_but_streams_nothing_until_it_goes_on(bucket, writer, feed):
    bucket.stall(on=True, name="feed")
    writer.set(0, b"k", b"{}")
    assert_silent(feed)
    assert feed.call(Op.NOOP).status == Status.SUCCESS
    bucket.stall(on=False, name="feed")
    assert next_mutation(feed).key == b"k"


def test_half_open_connection_stands_and_says_nothing(bucket, open_client, writer, feed):
    assert bucket.half_open(name="feed") == 1
    writer.set(0, b"k", b"{}")
    feed.send(mcbp.pack_request(Op.NOOP))
    assert_silent(feed)
    assert [found["name"] for found in bucket.connections()].count("feed") == 1
    again = open_client().log_in().open_dcp("feed2")
    again.request_stream(0)
    assert next_mutation(again).key == b"k"


def test_delayed_connection_gets_everything_late_and_in_order(bucket, writer, feed):
    bucket.delay(100, name="feed")
    asked_at = time.monotonic()
    for i in range(5):
        writer.set(0, b"%d" % i, b"{}")
    assert [next_mutation(feed).key for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    assert time.monotonic() - asked_at >= 0.1
    bucket.delay(0, name="feed")
    writer.set(0, b"x", b"{}")
    assert next_mutation(feed).key == b"x"


def test_frames_in_pieces_are_the_same_frames(bucket, writer, feed):
    bucket.fragment(7, name="feed")
    value = bytes(range(256))
    writer.set(0, b"k", value)
    assert next_mutation(feed).value == value


def test_document_cut_in_two_ends_the_connection_in_its_middle(bucket, writer, feed):
    bucket.cut_frame(name="feed")
    writer.set(0, b"k", b"x" * 200)
    marker = feed.read()
    assert marker is not None
    assert marker.opcode == Op.DCP_SNAPSHOT_MARKER
    assert feed.read() is None
    assert len(feed.unread) == (24 + 31 + len(b"k") + 200) // 2


def test_flipped_byte_at_the_start_is_no_frame(bucket, writer, feed):
    bucket.flip_byte(0, name="feed")
    writer.set(0, b"k", b"{}")
    assert feed.read() is not None
    with pytest.raises(ProtocolError, match="unknown magic 0x7f"):
        feed.read()


def test_flipped_byte_at_the_end_is_a_wrong_value_once(bucket, writer, feed):
    bucket.flip_byte(name="feed")
    writer.set(0, b"k", b"{}")
    assert next_mutation(feed).value == b"{\x82"
    writer.set(0, b"k", b"{}")
    assert next_mutation(feed).value == b"{}"


def test_refused_logins_are_refused_whatever_the_password(bucket, open_client, writer):
    bucket.refuse_logins(on=True)
    stranger = open_client()
    login = {"key": b"PLAIN", "value": b"\0Administrator\0password"}
    assert stranger.call(Op.SASL_AUTH, **login).status == Status.AUTH_ERROR
    assert writer.set(0, b"k", b"{}").status == Status.SUCCESS
    bucket.refuse_logins(on=False)
    assert stranger.call(Op.SASL_AUTH, **login).status == Status.SUCCESS


@pytest.mark.parametrize("reason", range(9))
def test_stream_ends_with_any_reason(bucket, feed, reason):
    assert bucket.close_stream(0, reason, name="feed") == 1
    end = feed.read()
    assert end is not None
    assert (end.opcode, end.extras) == (Op.DCP_STREAM_END, struct.pack(">I", reason))
    assert bucket.close_stream(0, reason) == 0


def test_dropped_bucket_cuts_its_connections_and_cannot_be_selected(bucket, open_client, writer, feed):
    writer.set(0, b"k", b"{}")
    next_mutation(feed)
    uuid = json.loads(writer.call(Op.GET_CLUSTER_CONFIG).value)["uuid"]
    bucket.drop_bucket()
    assert feed.read() is None
    client = open_client()
    client.call(Op.SASL_AUTH, key=b"PLAIN", value=b"\0Administrator\0password")
    assert client.call(Op.SELECT_BUCKET, key=b"default").status == Status.KEY_ENOENT
    assert client.call(Op.LIST_BUCKETS).value == b""
    with pytest.raises(ConfigInvalid, match="was dropped: create it first"):
        bucket.high_seqnos()
    bucket.create_bucket()
    assert client.call(Op.SELECT_BUCKET, key=b"default").status == Status.SUCCESS
    assert json.loads(client.call(Op.GET_CLUSTER_CONFIG).value)["uuid"] != uuid
    assert bucket.high_seqnos() == [0] * N_VBUCKETS


def test_resume_in_a_bucket_made_anew_rolls_back_to_zero(bucket, open_client, writer, feed):
    writer.set(0, b"k", b"{}")
    next_mutation(feed)
    vbuuid = int.from_bytes(feed.call(Op.DCP_GET_FAILOVER_LOG).value[:8], "big")
    bucket.drop_bucket()
    bucket.create_bucket()
    refused = open_client().log_in().open_dcp().request_stream(0, start=1, vbuuid=vbuuid)
    assert (refused.status, refused.value) == (Status.ROLLBACK, bytes(8))
    with pytest.raises(ConfigInvalid, match="there already"):
        bucket.create_bucket()


def test_bucket_that_warms_up_cannot_be_selected_yet(bucket, open_client, writer):
    bucket.warm_up(on=True)
    client = open_client()
    client.call(Op.SASL_AUTH, key=b"PLAIN", value=b"\0Administrator\0password")
    assert client.call(Op.SELECT_BUCKET, key=b"default").status == Status.KEY_ENOENT
    assert writer.set(0, b"k", b"{}").status == Status.SUCCESS
    bucket.warm_up(on=False)
    assert client.call(Op.SELECT_BUCKET, key=b"default").status == Status.SUCCESS
