"""The client against the dev bucket: sockets, SCRAM, documents, failures that a node can have."""

import struct
import time
from collections.abc import Iterator

import pytest

from channelindex import mcbp
from channelindex.errors import AuthenticationFailed, OutcomeUnknown, SourceUnavailable
from channelindex.feeds.base import DELETION, EXPIRATION, HISTORY, MUTATION, ROLLBACK, SNAPSHOT
from channelindex.feeds.dcp import operations
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.exchange import Request
from channelindex.feeds.dcp.kv import KvClient, source_info
from channelindex.mcbp import Op, Status
from channelindex.model import Checkpoint
from devbucket import DevBucket, DevBucketConfig
from devbucket.accounts import Account
from tests.support.dcp_reading import ADMIN, Reading, fill

N_VBUCKETS = 8


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    config = DevBucketConfig(n_vbuckets=N_VBUCKETS, more_accounts=(Account("reader", "r", may_stream=False),))
    with DevBucket(config) as started:
        yield started


@pytest.fixture
def kv(bucket: DevBucket) -> Iterator[KvClient]:
    with KvClient(parse_source_url(bucket.url), ADMIN) as client:
        yield client


# -- the bucket


def test_the_bucket_says_what_it_is(bucket: DevBucket, kv: KvClient) -> None:
    info = source_info(parse_source_url(bucket.url), ADMIN, time.monotonic() + 5)
    assert info == kv.source
    assert info.n_vbuckets == N_VBUCKETS


@pytest.mark.parametrize("credentials", [Credentials("Administrator", "wrong"), Credentials("nobody", "p")])
def test_wrong_credentials_are_refused_at_once(bucket: DevBucket, credentials: Credentials) -> None:
    with pytest.raises(AuthenticationFailed, match=r"source\.password"):
        source_info(parse_source_url(bucket.url), credentials, time.monotonic() + 60)


def test_a_bucket_that_is_not_there_is_waited_for_until_the_deadline(bucket: DevBucket) -> None:
    missing = parse_source_url(bucket.url.replace("default", "nosuch"))
    with pytest.raises(SourceUnavailable, match=r"'nosuch' of source\.url does not exist"):
        source_info(missing, ADMIN, time.monotonic() + 0.3)


def test_a_node_that_is_not_there_is_named() -> None:
    with pytest.raises(SourceUnavailable, match=r"source\.url couchbase://127\.0\.0\.1:1/b\) cannot be reached"):
        source_info(parse_source_url("couchbase://127.0.0.1:1/b"), ADMIN, time.monotonic() + 0.1)


def test_a_user_who_may_not_stream_is_refused(bucket: DevBucket) -> None:
    with Reading(bucket, credentials=Credentials("reader", "r")) as reading, pytest.raises(AuthenticationFailed):
        reading.until(lambda: False)


# -- documents


def test_documents_are_stored_read_and_deleted(kv: KvClient) -> None:
    assert kv.get(b"k") is None
    cas = kv.store(b"k", b'{"v":1}')
    assert kv.get(b"k") == operations.Document(b'{"v":1}', cas or 0)
    assert kv.store(b"k", b"{}", cas=(cas or 0) + 1) is None
    newer = kv.store(b"k", b"{}", cas=cas or 0)
    assert newer not in (None, cas)
    assert kv.delete(b"k", cas=newer or 0)
    assert kv.get(b"k") is None
    assert kv.delete(b"k") is None


def test_a_counter_counts_from_where_it_begins(kv: KvClient) -> None:
    assert kv.increment(b"n") is None
    assert kv.increment(b"n", 5, initial=10) == 10
    assert kv.increment(b"n", 5) == 15


def test_body_and_xattr_are_written_as_one_change(bucket: DevBucket, kv: KvClient) -> None:
    cas = kv.store_with_xattr(b"k", "_sync", b'{"rev":"1-a"}', b'{"v":1}')
    assert kv.lookup(b"k", "_sync") == operations.Document(b'{"v":1}', cas or 0, b'{"rev":"1-a"}')
    assert kv.store_with_xattr(b"k", "_sync", b'{"rev":"2-b"}', b"{}", cas=(cas or 0) + 1) is None
    assert kv.store_with_xattr(b"k", "_sync", b'{"rev":"2-b"}', b'{"v":2}', cas=cas or 0)
    assert sum(bucket.high_seqnos()) == 2


def test_a_document_without_the_xattr_has_none(kv: KvClient) -> None:
    cas = kv.store(b"k", b"{}")
    assert kv.lookup(b"k", "_sync") == operations.Document(b"{}", cas or 0, None)
    assert kv.lookup(b"other", "_sync") is None


def test_a_tombstone_keeps_its_xattr_and_can_be_changed(kv: KvClient) -> None:
    kv.store_with_xattr(b"k", "_sync", b'{"rev":"1-a"}', b'{"v":1}')
    cas = kv.delete_with_xattr(b"k", "_sync", b'{"rev":"2-b"}')
    assert kv.get(b"k") is None
    assert kv.lookup(b"k", "_sync") == operations.Document(None, cas or 0, b'{"rev":"2-b"}')
    (answer,) = kv.pipeline([_upsert_xattr(b"k", b"_sync", b'{"rev":"3-c"}')])
    assert operations.stored(answer)
    found = kv.lookup(b"k", "_sync")
    assert found is not None
    assert (found.body, found.xattr) == (None, b'{"rev":"3-c"}')


def _upsert_xattr(key: bytes, path: bytes, text: bytes) -> Request:
    """Write one xattr of a document that exists, deleted or not, and leave its body alone, as Sync Gateway does."""
    access_deleted, xattr_path = 0x04, 0x04
    spec = struct.pack(">BBHI", Op.SUBDOC_DICT_UPSERT, xattr_path, len(path), len(text)) + path + text
    return Request(Op.SUBDOC_MULTI_MUTATION, key, bytes((access_deleted,)), spec)


def test_a_pipeline_larger_than_all_buffers_does_not_block(kv: KvClient) -> None:
    body = b'"' + b"x" * 20_000 + b'"'
    requests = [operations.store(b"k%d" % (i % 50), body) for i in range(300)]
    requests += [operations.get(b"k%d" % (i % 50)) for i in range(300)]
    answers = kv.pipeline(requests)
    assert {answer.status for answer in answers} == {Status.SUCCESS}
    assert {answer.value for answer in answers[300:]} == {body}


def test_answers_come_in_the_order_of_the_requests(kv: KvClient) -> None:
    fill(kv, 100)
    answers = kv.pipeline([operations.get(b"doc:%d" % i) for i in reversed(range(100))])
    assert [answer.value for answer in answers] == [b'{"i":%d}' % i for i in reversed(range(100))]


def test_a_lost_connection_leaves_the_outcome_open(bucket: DevBucket, kv: KvClient) -> None:
    bucket.drop_connections()
    with pytest.raises(OutcomeUnknown, match=r"source\.url"):
        kv.store(b"k", b"{}")


def test_a_server_that_does_not_answer_is_not_waited_for_forever(bucket: DevBucket) -> None:
    with KvClient(parse_source_url(bucket.url), ADMIN, timeout_s=0.2) as client:
        ack_has_no_answer = Request(Op.DCP_BUFFER_ACK, extras=bytes(4), vb=0)
        with pytest.raises(OutcomeUnknown):
            client.pipeline([ack_has_no_answer])


# -- the feed


def test_everything_that_is_there_and_then_what_comes(bucket: DevBucket, kv: KvClient) -> None:
    fill(kv, 200)
    with Reading(bucket) as reading:
        reading.until(lambda: len(reading.documents()) == 200)
        kv.store(b"live", b"{}")
        kv.delete(b"doc:7")
        reading.until(lambda: reading.documents(DELETION))
        reading.until(lambda: len(reading.documents()) == 201)
        assert reading.feed.connected()
        reading.until(lambda: sum(reading.feed.high_seqnos().values()) == 202)
    assert {key for _, _, key in reading.documents()} == {b"live", *(b"doc:%d" % i for i in range(200))}


def test_xattrs_arrive(bucket: DevBucket, kv: KvClient) -> None:
    kv.store_with_xattr(b"k", "_sync", b'{"rev":"1-a"}', b'{"v":1}')
    with Reading(bucket) as reading:
        reading.until(reading.documents)
        (event,) = [event for event in reading.events if event[0] == MUTATION]
    assert event[4] == 0x05
    assert mcbp.split_xattrs(event[5]) == ({"_sync": b'{"rev":"1-a"}'}, b'{"v":1}')


def test_a_document_that_expires_is_distinguished_as_we_ask_for_delete_times(bucket: DevBucket, kv: KvClient) -> None:
    kv.pipeline([operations.store(b"expires", b"{}", expiry=1), operations.store(b"deleted", b"{}")])
    kv.delete(b"deleted")
    with Reading(bucket) as reading:
        reading.until(lambda: len(reading.documents(DELETION)) + len(reading.documents(EXPIRATION)) == 2)
        assert [key for _, _, key in reading.documents(DELETION)] == [b"deleted"]
        assert [key for _, _, key in reading.documents(EXPIRATION)] == [b"expires"]


def test_dropped_connections_lose_and_repeat_nothing(bucket: DevBucket) -> None:
    with Reading(bucket) as reading:
        for round_ in range(5):
            with KvClient(parse_source_url(bucket.url), ADMIN) as kv:
                fill(kv, 50, f"round{round_}")
            wanted = 50 * round_ + 20
            reading.until(lambda wanted=wanted: len(reading.documents()) >= wanted)  # type: ignore[misc]
            bucket.drop_connections()
        reading.until(lambda: len(reading.documents()) >= 250)
    seqnos = [(vb, seqno) for vb, seqno, _ in reading.documents()]
    assert len(seqnos) == len(set(seqnos)) == 250
    for vb in range(N_VBUCKETS):
        mine = [seqno for each, seqno in seqnos if each == vb]
        assert mine == list(range(1, len(mine) + 1))


def test_a_failover_that_loses_seqnos_is_a_rollback(bucket: DevBucket, kv: KvClient) -> None:
    key = next(b"k%d" % i for i in range(1000) if kv.vbucket_of(b"k%d" % i) == 3)
    for _ in range(5):
        kv.store(key, b"{}")
        bucket.new_checkpoint(3)
    with Reading(bucket) as reading:
        reading.until(lambda: any(seqno == 5 for _, seqno, _ in reading.documents()))
        bucket.failover(3, lose=2)
        reading.until(lambda: any(event[0] == ROLLBACK for event in reading.events))
        (rollback,) = [event[2] for event in reading.events if event[0] == ROLLBACK]
        assert (rollback.seqno, rollback.snap_start, rollback.snap_end) == (3, 3, 3)
        kv.store(key, b'{"new":1}')
    with Reading(bucket, {3: rollback}) as again:
        again.until(again.documents)
        assert [seqno for _, seqno, _ in again.documents()] == [4]
        (history,) = [event[2] for event in again.events if event[0] == HISTORY]
        assert len(history) == 2
        assert rollback.vbuuid in {vbuuid for vbuuid, _ in history}


def test_a_stream_that_the_server_ends_goes_on(bucket: DevBucket, kv: KvClient) -> None:
    with Reading(bucket) as reading:
        reading.until(reading.feed.connected)
        fill(kv, 30)
        reading.until(lambda: len(reading.documents()) == 30)
        for vb in range(N_VBUCKETS):
            bucket.close_stream(vb)
        fill(kv, 30, "more")
        reading.until(lambda: len(reading.documents()) == 60)
    assert len({document[:2] for document in reading.documents()}) == 60


def test_a_bounded_feed_ends(bucket: DevBucket, kv: KvClient) -> None:
    fill(kv, 100)
    ends = kv.high_seqnos()
    assert list(ends.values()) == bucket.high_seqnos()
    with Reading(bucket, end_seqnos=ends) as reading:
        reading.until(reading.feed.ended)
    assert len(reading.documents()) == 100


def test_without_acknowledgement_the_server_stops_within_its_buffer(bucket: DevBucket, kv: KvClient) -> None:
    body = b'"' + b"x" * 1000 + b'"'
    kv.pipeline([operations.store(b"doc:%d" % i, body) for i in range(300)])
    with Reading(bucket, buffer_bytes=50_000) as reading:
        reading.acknowledging = False
        reading.until(lambda: len(reading.documents()) >= 40)
        full_at = time.monotonic()
        reading.until(lambda: time.monotonic() > full_at + 0.1)
        assert 40 <= len(reading.documents()) <= 52
        reading.acknowledging = True
        reading.until(lambda: len(reading.documents()) == 300)


def test_documents_larger_than_the_buffer_come_one_by_one(bucket: DevBucket, kv: KvClient) -> None:
    for i in range(3):
        kv.store(b"large%d" % i, b"x" * 19_000_000)
    with Reading(bucket, buffer_bytes=512 * 1024) as reading:
        reading.until_caught_up(bucket)
        assert {len(event[5]) for event in reading.events if event[0] == MUTATION} == {19_000_000}


@pytest.mark.parametrize("knows_the_purge", [True, False])
def test_a_position_below_a_purge_that_was_reported_is_resumed(
    bucket: DevBucket, kv: KvClient, knows_the_purge: bool
) -> None:
    fill(kv, 200)
    for number in range(0, 200, 3):
        assert kv.delete(b"doc:%d" % number)
    purged = [bucket.purge(vb) for vb in range(N_VBUCKETS)]
    for vb in range(N_VBUCKETS):
        bucket.settle(vb)
    with Reading(bucket) as reading:
        reading.until_caught_up(bucket)
    told = {event[1]: event for event in reading.events if event[0] == SNAPSHOT}
    assert [told[vb][4] for vb in range(N_VBUCKETS)] == purged
    vbuuids = {event[1]: event[2][0][0] for event in reading.events if event[0] == HISTORY}
    below = {vb: min(seqno for seqno in reading.seqnos(vb) if seqno < purged[vb]) for vb in range(N_VBUCKETS)}
    checkpoints = {
        vb: Checkpoint(vbuuids[vb], seqno, 0, told[vb][3], purge_seqno=purged[vb] if knows_the_purge else 0)
        for vb, seqno in below.items()
    }
    with Reading(bucket, checkpoints) as resumed:
        resumed.until(
            lambda: len({event[1] for event in resumed.events if event[0] in {ROLLBACK, MUTATION}}) == N_VBUCKETS
        )
    assert any(event[0] == ROLLBACK for event in resumed.events) is not knows_the_purge
