"""The dev bucket as a process: what a test can make it do, and how it starts and stops."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import cramjam
import psutil
import pytest

from channelindex.errors import ConfigInvalid, SourceUnavailable
from channelindex.feeds.base import JSON, SNAPPY, XATTR
from channelindex.mcbp import Feature, Frame, Op, Status, join_xattrs, pack_request
from devbucket import DevBucket, DevBucketConfig
from devbucket.items import DELETE_TIMES, INCLUDE_XATTRS
from devbucket.kv_commands import EVICT_KEY
from tests.support.mcbp_client import RawClient, Writer

N_VBUCKETS = 8
STATE_CHANGED = 2
SERVE = """
from devbucket import DevBucketConfig, serve
serve(DevBucketConfig(n_vbuckets=4), lambda url: print(url, flush=True))
"""

INTERRUPTED = """
import signal
from devbucket import DevBucket, DevBucketConfig
from workers.signals import interrupt_on_termination
interrupt_on_termination()
with DevBucket(DevBucketConfig(n_vbuckets=1)) as bucket:
    print(bucket.port, flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        pass
"""

ABANDON = """
import time
from devbucket import DevBucket, DevBucketConfig
with DevBucket(DevBucketConfig(n_vbuckets=1)) as bucket:
    print(bucket.port, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as running:
        yield running


@pytest.fixture
def clients(bucket: DevBucket) -> Iterator[list[RawClient]]:
    opened: list[RawClient] = []
    yield opened
    for client in opened:
        client.close()


@pytest.fixture
def connect(bucket: DevBucket, clients: list[RawClient]):
    def connected(*features: int) -> RawClient:
        clients.append(RawClient(bucket.port))
        return clients[-1].log_in((0x06, 0x07, 0x08, 0x0B, *features))

    return connected


def next_of(client: RawClient, opcode: int) -> Frame:
    """The next frame of an opcode; others are skipped."""
    while (frame := client.read()) is not None:
        if frame.opcode == opcode:
            return frame
    raise AssertionError("hung up")


def test_failover_ends_the_stream_and_the_client_must_roll_back(bucket, connect):
    writer = Writer(connect().call)
    for i in range(5):
        writer.set(3, b"%d" % i, b"{}")
    writer.set(3, b"0", b'{"newer":1}')
    feed = connect().open_dcp()
    vbuuid = int.from_bytes(feed.request_stream(3).value[:8], "big")
    while struct.unpack_from(">Q", next_of(feed, Op.DCP_MUTATION).extras)[0] < 6:
        pass
    bucket.failover(3, lose=2)
    assert next_of(feed, Op.DCP_STREAM_END).extras == struct.pack(">I", STATE_CHANGED)
    assert bucket.high_seqnos()[3] == 4
    assert writer.get(3, b"0").value == b"{}"
    assert writer.get(3, b"4").status == Status.KEY_ENOENT
    refused = feed.request_stream(3, start=6, vbuuid=vbuuid)
    assert (refused.status, refused.value) == (Status.ROLLBACK, struct.pack(">Q", 4))
    assert feed.request_stream(3, start=4, vbuuid=vbuuid).status == Status.SUCCESS


def test_failover_that_loses_more_than_there_is_raises_here(bucket):
    with pytest.raises(ValueError, match="cannot lose 1 of 0"):
        bucket.failover(0, lose=1)
    assert bucket.high_seqnos() == [0] * N_VBUCKETS


def test_dropped_connections_are_closed_and_new_ones_welcome(bucket, connect):
    client = connect()
    bucket.drop_connections()
    assert client.read() is None
    assert connect().call(Op.NOOP).status == Status.SUCCESS


def test_closed_stream_gets_a_stream_end_and_may_be_opened_again(bucket, connect):
    feed = connect().open_dcp()
    feed.request_stream(1)
    assert bucket.close_stream(1, reason=4) == 1
    assert next_of(feed, Op.DCP_STREAM_END).extras == struct.pack(">I", 4)
    assert bucket.close_stream(1) == 0
    assert feed.request_stream(1).status == Status.SUCCESS


def test_bulk_loaded_documents_come_as_a_disk_snapshot_under_their_seqnos(bucket, connect):
    bucket.bulk_load([(2, 10, b"a", b"{}"), (2, 25, b"b", b"[]"), (2, 30, b"a", b"1")])
    feed = connect().open_dcp()
    feed.request_stream(2)
    assert struct.unpack(">QQI", next_of(feed, Op.DCP_SNAPSHOT_MARKER).extras) == (0, 30, 2)
    seqnos = [struct.unpack_from(">Q", next_of(feed, Op.DCP_MUTATION).extras)[0] for _ in range(2)]
    assert seqnos == [25, 30]
    Writer(connect().call).set(2, b"c", b"{}")
    assert struct.unpack(">QQI", next_of(feed, Op.DCP_SNAPSHOT_MARKER).extras)[:2] == (31, 31)


def test_bulk_loaded_documents_may_have_xattrs(bucket, connect):
    value = join_xattrs([("_sync", b'{"rev":"1-a"}')], b"{}")
    bucket.bulk_load([(2, 10, b"a", value)], with_xattrs=True)
    feed = connect().open_dcp()
    feed.request_stream(2)
    assert struct.unpack(">QQI", next_of(feed, Op.DCP_SNAPSHOT_MARKER).extras) == (0, 10, 2)
    frame = next_of(feed, Op.DCP_MUTATION)
    assert (frame.datatype, frame.value) == (XATTR | JSON, value)


def test_purged_tombstones_are_gone_and_older_positions_roll_back(bucket, connect):
    writer = Writer(connect().call)
    writer.set(0, b"a", b"{}")
    writer.delete(0, b"a")
    writer.set(0, b"b", b"{}")
    assert bucket.purge(0) == 2
    feed = connect().open_dcp()
    vbuuid = int.from_bytes(feed.call(Op.DCP_GET_FAILOVER_LOG).value[:8], "big")
    assert feed.request_stream(0, start=1, vbuuid=vbuuid).status == Status.ROLLBACK
    assert feed.request_stream(0).status == Status.SUCCESS
    assert next_of(feed, Op.DCP_MUTATION).key == b"b"


def test_who_has_seen_a_purge_need_not_roll_back_for_it(bucket, connect):
    """Read in couchbase/kv_engine master, docs/dcp/documentation/commands/{stream-request-value,control}.md."""
    writer = Writer(connect().call)
    for key in (b"a", b"b", b"c"):
        writer.set(0, key, b"{}")
    writer.delete(0, b"a")
    writer.set(0, b"d", b"{}")
    bucket.purge(0)
    bucket.settle(0)
    feed = connect().open_dcp(max_marker_version="2.2")
    vbuuid = int.from_bytes(feed.request_stream(0).value[:8], "big")
    marker = next_of(feed, Op.DCP_SNAPSHOT_MARKER)
    assert (marker.extras, struct.unpack(">QQIQQQQ", marker.value)) == (b"\x02", (0, 5, 2, 5, 0, 4, 5))
    bucket.drop_connections()
    for seen, status in ((None, Status.ROLLBACK), ("3", Status.ROLLBACK), ("4", Status.SUCCESS)):
        feed = connect().open_dcp(max_marker_version="2.2")
        value = b"" if seen is None else b'{"purge_seqno":"%s"}' % seen.encode()
        assert feed.request_stream(0, start=3, vbuuid=vbuuid, value=value).status == status
    older = connect().open_dcp("older")
    refused = older.request_stream(0, start=3, vbuuid=vbuuid, value=b'{"purge_seqno":"4"}')
    assert refused.status == Status.ROLLBACK, "it is for connections that know marker 2.2"


@pytest.mark.parametrize("value", [b'{"purge_seqno":4}', b'{"purge_seqno":"x"}', b"[]", b"{"])
def test_purge_seqno_that_makes_no_sense_is_refused(connect, value):
    feed = connect().open_dcp(max_marker_version="2.2")
    assert feed.request_stream(0, value=value).status == Status.EINVAL


def test_only_known_marker_versions_are_accepted(connect):
    feed = connect().open_dcp()
    assert feed.call(Op.DCP_CONTROL, key=b"max_marker_version", value=b"2.1").status == Status.EINVAL


def test_evicted_documents_come_from_disk_and_memory_holds_what_the_mode_says(bucket, connect):
    body = b'{"text":"' + b"x" * 200 + b'"}'
    Writer(connect().call).set(0, b"k", body)
    assert bucket.evict(0) == 1
    feed = connect(Feature.SNAPPY).open_dcp(flags=0x45)
    feed.request_stream(0)
    mutation = next_of(feed, Op.DCP_MUTATION)
    assert (mutation.datatype, mutation.value) == (JSON | SNAPPY, b"")
    plain, packed = connect(), connect(Feature.SNAPPY)
    assert packed.call(Op.GET, key=b"k").datatype == JSON
    bucket.set_compression("active")
    assert plain.call(Op.GET, key=b"k").value == body
    compressed = packed.call(Op.GET, key=b"k")
    assert (compressed.datatype, bytes(cramjam.snappy.decompress_raw(compressed.value))) == (JSON | SNAPPY, body)


@pytest.mark.parametrize(("arguments", "error"), [({"every": 0}, "at least 1"), ({"vb": 8}, "no vbucket 8")])
def test_eviction_that_makes_no_sense_is_refused(bucket, arguments, error):
    with pytest.raises(ConfigInvalid, match=error):
        bucket.evict(**arguments)


def test_a_client_may_evict_one_document(bucket, connect):
    client = connect()
    assert client.call(EVICT_KEY, key=b"k").status == Status.KEY_ENOENT
    Writer(client.call).set(0, b"k", b"{}")
    assert client.call(EVICT_KEY, key=b"k").value == b"Ejected."
    bucket.new_checkpoint(0)
    feed = connect().open_dcp()
    feed.request_stream(0)
    assert next_of(feed, Op.DCP_MUTATION).extras[-1] == 3, "how a server says that it was evicted"


def test_compression_mode_is_one_of_three(bucket):
    with pytest.raises(ConfigInvalid, match="no compression mode 'on': off, passive, active"):
        bucket.set_compression("on")
    with pytest.raises(ConfigInvalid, match="is none of off, passive, active"):
        DevBucketConfig(compression_mode="on")


def test_moved_vbucket_is_not_ours_and_its_map_is_pushed(bucket, connect):
    client = connect(Feature.DUPLEX, Feature.CLUSTERMAP_NOTIFICATION)
    bucket.set_state(5, "dead")
    pushed = client.read()
    assert pushed is not None
    assert (pushed.magic, pushed.key) == (0x82, b"default")
    assert b"[-1]" in pushed.value
    assert Writer(client.call).get(5, b"k").status == Status.NOT_MY_VBUCKET


@pytest.mark.parametrize(
    ("flags", "control", "opcode", "extras_bytes"),
    [
        (1, "false", Op.DCP_DELETION, 18),
        (1 | DELETE_TIMES, "false", Op.DCP_DELETION, 21),
        (1 | DELETE_TIMES, "true", Op.DCP_EXPIRATION, 20),
        (1, "true", Op.DCP_DELETION, 18),
    ],
)
def test_expiry_is_a_deletion_unless_opcode_and_delete_times_were_asked_for(
    connect, flags, control, opcode, extras_bytes
):
    """Read in couchbase/kv_engine 6.5 to master, engines/ep/src/dcp/producer.cc: both, or neither has an effect."""
    writer = Writer(connect().call)
    writer.set(0, b"k", b"{}", expiry=int(time.time()) - 1)
    writer.get(0, b"k")
    feed = connect().open_dcp(flags=flags, enable_expiry_opcode=control)
    feed.request_stream(0)
    gone = next_of(feed, opcode)
    assert (gone.key, len(gone.extras), gone.value) == (b"k", extras_bytes, b"")


def test_documents_expire_without_being_read(connect):
    feed = connect().open_dcp()
    feed.request_stream(0)
    Writer(connect().call).set(0, b"k", b"{}", expiry=1)
    assert next_of(feed, Op.DCP_DELETION).key == b"k"


def test_sync_gateways_feed_without_bodies(connect):
    writer = Writer(connect().call)
    spec = (Op.SUBDOC_DICT_UPSERT, 0x05, "_sync", b'{"rev":"1-a"}')
    writer.mutate_in(0, b"k", spec, (Op.SET, 0, "", b'{"body":1}'), doc_flags=1)
    feed = connect().open_dcp(flags=1 | INCLUDE_XATTRS | 0x40)
    feed.request_stream(0)
    mutation = next_of(feed, Op.DCP_MUTATION)
    assert mutation.datatype == 0x05
    assert mutation.value == b'\0\0\0\x18\0\0\0\x14_sync\0{"rev":"1-a"}\0'


def test_documents_are_for_who_logged_in_and_selected_the_bucket(bucket, clients):
    clients += [RawClient(bucket.port), RawClient(bucket.port)]
    explained, silent = clients
    explained.call(Op.HELLO, value=b"\0\x07\0\x0b")
    assert explained.call(Op.GET, key=b"k").status == Status.EACCESS
    explained.call(Op.SASL_AUTH, key=b"PLAIN", value=b"\0Administrator\0password")
    assert explained.call(Op.LIST_BUCKETS).value == b"default"
    assert explained.call(Op.GET, key=b"k").status == Status.NO_BUCKET
    assert explained.call(Op.SELECT_BUCKET, key=b"default").status == Status.SUCCESS
    assert explained.call(Op.GET, key=b"k").status == Status.KEY_ENOENT
    silent.send(pack_request(Op.GET, key=b"k"))
    assert silent.read() is None


def test_quit_is_answered_before_the_connection_is_closed(connect):
    client = connect()
    assert client.call(Op.QUIT).status == Status.SUCCESS
    assert client.read() is None


def test_stopped_bucket_refuses_controls():
    bucket = DevBucket(DevBucketConfig(n_vbuckets=1))
    bucket.close()
    with pytest.raises(SourceUnavailable, match="not running"):
        bucket.drop_connections()
    with bucket:
        bucket.drop_connections()
    bucket.close()


def test_only_loopback_is_served():
    for host in ("0.0.0.0", "192.0.2.1", "example.com"):
        with pytest.raises(ConfigInvalid, match="loopback only"):
            DevBucketConfig(host=host)


def test_number_of_vbuckets_is_checked():
    with pytest.raises(ConfigInvalid, match="1 to 1024 vbuckets, not 0"), DevBucket(DevBucketConfig(n_vbuckets=0)):
        pass


def test_taken_port_is_a_configuration_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigInvalid, match="cannot listen on"), DevBucket(DevBucketConfig(port=port)):
            pass


def test_serve_says_where_it_listens_and_stops_on_sigterm():
    child = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        port = int(url.removeprefix("couchbase://127.0.0.1:").removesuffix("/default"))
        client = RawClient(port).log_in()
        os.kill(child.pid, signal.SIGTERM)
        assert client.read() is None
        client.close()
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_parent_and_child_ends_both_without_a_traceback(number):
    """As `kill` of all processes of `channelindex play`, whose handlers its child has from its fork."""
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        client = RawClient(int(parent.stdout.readline())).log_in()
        (child,) = psutil.Process(parent.pid).children()
        child.send_signal(number)
        assert client.read() is None
        client.close()
        parent.send_signal(number)
        _, said = parent.communicate(timeout=60)
    assert (parent.returncode, said) == (0, "")
    assert not child.is_running()


def test_bucket_ends_with_a_parent_that_was_killed():
    parent = subprocess.Popen([sys.executable, "-c", ABANDON], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    client = RawClient(int(parent.stdout.readline())).log_in()
    parent.kill()
    parent.wait()
    assert client.read() is None
    client.close()
    parent.stdout.close()


def test_compressed_values_are_stored_plain_and_sent_as_each_client_takes_them(connect):
    body = b'{"text":"' + b"x" * 200 + b'"}'
    packed = bytes(cramjam.snappy.compress_raw(body))
    writer = connect(Feature.SNAPPY)
    stored = {"key": b"k", "extras": bytes(8), "value": packed, "datatype": SNAPPY}
    assert writer.call(Op.SET, **stored).status == Status.SUCCESS
    plain = connect()
    assert plain.call(Op.GET, key=b"k").value == body
    assert plain.call(Op.SET, **stored).status == Status.EINVAL
    feed = connect(Feature.SNAPPY).open_dcp("packed", force_value_compression="true")
    feed.request_stream(0)
    mutation = next_of(feed, Op.DCP_MUTATION)
    assert (mutation.datatype, bytes(cramjam.snappy.decompress_raw(mutation.value))) == (JSON | SNAPPY, body)
    feed = connect().open_dcp("plain")
    feed.request_stream(0)
    assert next_of(feed, Op.DCP_MUTATION).value == body


def test_compression_that_was_not_negotiated_or_makes_no_sense_is_refused(connect):
    control = {"key": b"force_value_compression", "value": b"true"}
    assert connect().open_dcp().call(Op.DCP_CONTROL, **control).status == Status.EINVAL
    client = connect(Feature.SNAPPY)
    assert client.call(Op.SET, key=b"k", extras=bytes(8), value=b"\xff" * 9, datatype=SNAPPY).status == Status.EINVAL
    assert client.read() is None
