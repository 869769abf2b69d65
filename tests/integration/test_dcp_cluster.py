"""The client against a cluster: which node has what, and what happens when that changes."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from channelindex.errors import OutcomeUnknown, SourceUnavailable
from channelindex.feeds.base import MUTATION, ROLLBACK
from channelindex.feeds.dcp import operations
from channelindex.feeds.dcp.connstr import Endpoint, parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from channelindex.mcbp import Status
from channelindex.model import ORIGIN
from devbucket import DevBucket, DevBucketConfig
from devbucket.sync_gateway.layouts import XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.dcp_reading import ADMIN, Reading, fill

N_VBUCKETS = 12
N_NODES = 3
NOBODY_LISTENS = Endpoint("127.0.0.1", 1)


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS, n_nodes=N_NODES)) as started:
        yield started


@pytest.fixture
def kv(bucket: DevBucket) -> Iterator[KvClient]:
    with KvClient(parse_source_url(bucket.url), ADMIN) as client:
        yield client


def connections(bucket: DevBucket) -> list[int]:
    return [node["connections"] for node in bucket.nodes()]


def assert_complete(reading: Reading, bucket: DevBucket) -> None:
    """Every vbucket's seqnos came in order and none twice, up to the highest."""
    reading.until_caught_up(bucket)
    for vb, high in enumerate(bucket.high_seqnos()):
        seqnos = reading.seqnos(vb)
        assert seqnos == sorted(set(seqnos))
        assert not high or seqnos[-1] == high


def test_one_connection_to_each_node_brings_all_vbuckets(bucket: DevBucket, kv: KvClient) -> None:
    fill(kv, 100)
    kv.close()
    with Reading(bucket) as reading:
        assert_complete(reading, bucket)
        assert len({key for _, _, key in reading.documents()}) == 100
        reading.until(reading.feed.connected)
        assert connections(bucket) == [1, 1, 1]
        assert sum(reading.feed.high_seqnos().values()) <= 100
        reading.until(lambda: sum(reading.feed.high_seqnos().values()) == 100)


def test_no_connection_to_a_node_without_vbuckets_of_ours(bucket: DevBucket) -> None:
    ours = {vb: ORIGIN for vb, owner in enumerate(bucket.owners()) if owner == 1}
    for seed in bucket.ports:
        address = replace(parse_source_url(bucket.url), seeds=(Endpoint("127.0.0.1", seed),))
        with Reading(bucket, ours, address=address) as reading:
            reading.until(lambda: reading.feed.connected() and connections(bucket) == [0, 1, 0])


def test_a_seed_that_is_down_does_not_matter(bucket: DevBucket) -> None:
    address = replace(parse_source_url(bucket.url), seeds=(NOBODY_LISTENS, Endpoint("localhost", bucket.ports[2])))
    with Reading(bucket, address=address) as reading, KvClient(address, ADMIN) as kv:
        fill(kv, 30)
        assert_complete(reading, bucket)
        assert connections(bucket)[0] == 2  # the seed's other name made no second connection
    with pytest.raises(SourceUnavailable, match="cannot be reached"):
        KvClient(replace(address, seeds=(NOBODY_LISTENS,)), ADMIN, timeout_s=1.0)


def test_vbuckets_take_their_streams_along_and_others_go_on(bucket: DevBucket, kv: KvClient) -> None:
    fill(kv, 100)
    with Reading(bucket) as reading:
        assert_complete(reading, bucket)
        moved = [vb for vb, owner in enumerate(bucket.owners()) if owner == 0]
        bucket.move(moved, 2)
        fill(kv, 100, "more")
        assert_complete(reading, bucket)
        assert {vb for vb in range(N_VBUCKETS) if reading.n_opened(vb) > 1} == set(moved)
        assert not [event for event in reading.events if event[0] == ROLLBACK]
        reading.until(lambda: connections(bucket)[0] == 1)  # that of *kv*; ours has no stream left


def test_a_node_that_restarts_is_waited_for(bucket: DevBucket, kv: KvClient) -> None:
    fill(kv, 100)
    with Reading(bucket) as reading:
        assert_complete(reading, bucket)
        bucket.stop_node(1)
        reading.until(lambda: not reading.feed.connected())
        assert f":{bucket.ports[1]}" in str(reading.feed.last_error)
        bucket.start_node(1)
        reading.until(reading.feed.connected)
        assert reading.feed.last_error is None
        own = {vb for vb, owner in enumerate(bucket.owners()) if owner == 1}
        reading.until(lambda: {vb for vb in range(N_VBUCKETS) if reading.n_opened(vb) > 1} == own)


def test_a_failover_that_lost_seqnos_rolls_back_the_vbuckets_of_that_node_alone(
    bucket: DevBucket, kv: KvClient
) -> None:
    fill(kv, 200)
    lost = {vb for vb, owner in enumerate(bucket.owners()) if owner == 1}
    with Reading(bucket) as reading:
        assert_complete(reading, bucket)
        bucket.failover_node(1, 2)
        reading.until(lambda: {event[1] for event in reading.events if event[0] == ROLLBACK} == lost)
        highs = bucket.high_seqnos()
        assert all(event[2].seqno == highs[event[1]] for event in reading.events if event[0] == ROLLBACK)
        assert all(reading.n_opened(vb) == 1 for vb in set(range(N_VBUCKETS)) - lost)


def test_whatever_moves_at_random_each_seqno_comes_once_and_in_order(bucket: DevBucket) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with Reading(bucket) as reading, KvClient(parse_source_url(bucket.url), ADMIN) as kv:
        for step in range(25):
            fill(kv, 20, f"step{step}")
            match chance.randrange(5):
                case 0 | 1:
                    bucket.move(chance.sample(range(N_VBUCKETS), 4), chance.randrange(N_NODES))
                case 2:
                    bucket.rebalance()
                case 3:
                    bucket.drop_connections("channelindex")
                case 4:
                    bucket.close_stream(chance.randrange(N_VBUCKETS), chance.randrange(7))
            for _ in range(chance.randrange(40)):
                reading.turn()
        assert_complete(reading, bucket)
        assert len(reading.documents()) == 25 * 20
        assert not [event for event in reading.events if event[0] == ROLLBACK]


def test_streams_end_and_go_on_for_every_reason(bucket: DevBucket, kv: KvClient) -> None:
    with Reading(bucket) as reading:
        for reason in (0, 1, 2, 3, 4, 5, 6, 99):
            reading.until(reading.feed.connected)
            assert bucket.close_stream(5, reason) == 1
            fill(kv, 50, f"reason{reason}")
            assert_complete(reading, bucket)
        assert reading.n_opened(5) == 9


def test_dropped_vbuckets_bring_nothing_more_and_added_ones_do(bucket: DevBucket, kv: KvClient) -> None:
    first, second = range(6), range(6, N_VBUCKETS)
    with Reading(bucket, dict.fromkeys(first, ORIGIN)) as reading:
        reading.until(reading.feed.connected)
        reading.feed.drop(first[:3])
        reading.feed.add(dict.fromkeys(second, ORIGIN))
        reading.until(reading.feed.connected)
        reading.turn()
        fill(kv, 100)
        expected = {*first[3:], *second}
        highs = bucket.high_seqnos()
        reading.until(lambda: all(reading.newest().get(vb, 0) == highs[vb] for vb in expected))
        assert {event[1] for event in reading.events if event[0] == MUTATION} <= expected


# -- document operations


def test_operations_follow_a_vbucket_that_moved(bucket: DevBucket, kv: KvClient) -> None:
    cas = kv.store(b"k", b"{}")
    bucket.move(range(N_VBUCKETS), 1)
    assert kv.get(b"k") == operations.Document(b"{}", cas or 0)
    fill(kv, 50)
    assert sum(kv.high_seqnos().values()) == 51


def test_an_operation_on_a_vbucket_that_is_nowhere_ends_in_time(bucket: DevBucket) -> None:
    with KvClient(parse_source_url(bucket.url), ADMIN, timeout_s=0.3) as kv:
        bucket.stop_node(0)
        bucket.stop_node(1)
        bucket.stop_node(2)
        with pytest.raises((OutcomeUnknown, SourceUnavailable)):
            kv.store(b"k", b"{}")


def test_revisions_are_loaded_into_a_cluster(bucket: DevBucket, kv: KvClient) -> None:
    revisions = [Revision(f"doc{i}", "1-a", ("news",), {"i": i}) for i in range(300)]
    assert Loader(kv, XattrLayout()).load(revisions) == 300
    assert Loader(kv, XattrLayout()).load(revisions) == 0


def test_answers_come_in_the_order_of_the_requests(bucket: DevBucket, kv: KvClient) -> None:
    fill(kv, 100)
    answers = kv.pipeline([operations.get(b"doc:%d" % i) for i in range(120)])
    assert [answer.value for answer in answers[:100]] == [b'{"i":%d}' % i for i in range(100)]
    assert {answer.status for answer in answers[100:]} == {Status.KEY_ENOENT}
