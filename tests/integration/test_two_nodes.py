"""Two nodes share a bucket: fairly, over a hand-over, over a death, and over a pause that outlives the leases."""

import signal
from contextlib import contextmanager

import pytest

from channelindex import exits
from coordinator.cluster_state import read_cluster
from coordinator.lease_redis import connect as connect_redis
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.history import expected_channels
from tests.support.node import DEADLINE_S, Node, until
from tests.support.running import assert_verified, await_stable, connect, indexed_channels
from tests.support.watchers import StableWatch

N_PARTITIONS = 16
SLICE = 100


class Cluster:
    """Nodes "a" and "b", a bucket under writes, and what must be in the index."""

    def __init__(self, tmp_path, redis_url, bucket, client, ttl_s):
        settings = {"coordination__ttl_s": ttl_s, "index__partitions": N_PARTITIONS}
        self.a = Node("a", tmp_path, redis_url, bucket, **settings)
        self.b = Node("b", tmp_path, redis_url, bucket, **settings)
        self._redis_url = redis_url
        self.bucket = bucket
        self._loader = Loader(client, InlineLayout())
        self._source = synthetic_revisions(seed=7, n_documents=300)
        self._written = []

    def write(self, n_slices: int = 3) -> None:
        for _ in range(n_slices):
            part = [next(self._source) for _ in range(SLICE)]
            self._loader.load(part)
            self._written += part

    def shares(self) -> dict[str, int]:
        with connect_redis(self._redis_url, 5.0) as redis:
            cluster = read_cluster(redis, "channels", N_PARTITIONS)
        return {member.node: member.n_partitions for member in cluster.members if member.alive}

    def start_both(self) -> None:
        self.a.start()
        until(lambda: self.shares() == {"a": 16}, "one node to have all partitions")
        self.b.start()
        until(lambda: self.shares() == {"a": 8, "b": 8}, "two nodes to share the partitions evenly")

    def assert_exact(self) -> None:
        await_stable(self._redis_url, self.bucket)
        lines = [{"id": r.id, "rev": r.rev, "channels": r.channels, "deleted": r.deleted} for r in self._written]
        assert indexed_channels(self._redis_url) == expected_channels(lines)
        assert_verified(self.a.config)


@pytest.fixture
def cluster_of(tmp_path, redis_url):
    @contextmanager
    def make(ttl_s):
        with DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket, connect(bucket) as client:
            cluster = Cluster(tmp_path, redis_url, bucket, client, ttl_s)
            with cluster.a, cluster.b:
                yield cluster

    return make


def test_a_second_node_gets_its_share_and_nothing_is_lost(cluster_of, redis_url):
    with cluster_of(ttl_s=1.0) as cluster:
        watch = StableWatch(redis_url)
        cluster.start_both()
        cluster.write()
        cluster.assert_exact()
        watch.finish()
        assert watch.moved_back == []


def test_sigterm_hands_over_without_waiting_for_the_leases_to_run_out(cluster_of):
    with cluster_of(ttl_s=3 * DEADLINE_S) as cluster:
        cluster.start_both()
        cluster.write()
        assert cluster.a.drain() == 0
        until(lambda: cluster.shares() == {"b": 16}, "the other node to take over")
        cluster.write()
        cluster.assert_exact()


def test_a_second_node_of_a_name_says_so_ends_with_its_own_code_and_takes_nothing(cluster_of, redis_url, tmp_path):
    with cluster_of(ttl_s=4.0) as cluster:
        cluster.a.start()
        until(lambda: cluster.shares() == {"a": 16}, "one node to have all partitions")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        settings = {"coordination__ttl_s": 4.0, "index__partitions": N_PARTITIONS}
        with Node("a", elsewhere, redis_url, cluster.bucket, **settings) as second:
            assert second.start().wait() == exits.NAME_TAKEN
            log = second.log.read_text()
        assert "node.name 'a' belongs to another node" in log
        assert "a name of its own" in log
        assert "feed.started" not in log
        assert cluster.shares() == {"a": 16}
        cluster.write(1)
        cluster.assert_exact()


def test_a_dead_nodes_partitions_are_taken_when_its_leases_run_out(cluster_of):
    with cluster_of(ttl_s=1.0) as cluster:
        cluster.start_both()
        cluster.a.kill()
        cluster.write()
        until(lambda: cluster.shares() == {"b": 16}, "the other node to take over")
        cluster.assert_exact()


def test_a_node_that_was_paused_beyond_its_leases_does_no_harm_and_stops_its_stale_workers(cluster_of, redis_url):
    with cluster_of(ttl_s=1.0) as cluster:
        watch = StableWatch(redis_url)
        cluster.start_both()
        cluster.write()
        stale = {worker.pid for worker in cluster.a.children("feed_worker")}
        assert stale
        cluster.a.signal_all(signal.SIGSTOP)
        cluster.write()
        until(lambda: cluster.shares() == {"b": 16}, "the other node to take over")
        cluster.write()
        cluster.a.signal_all(signal.SIGCONT)
        until(
            lambda: stale.isdisjoint(worker.pid for worker in cluster.a.children("feed_worker")),
            "the woken node to stop the workers that have no lease",
        )
        cluster.write()
        until(lambda: cluster.shares() == {"a": 8, "b": 8}, "the woken node to have its share again")
        cluster.write()
        cluster.assert_exact()
        watch.finish()
        assert watch.moved_back == []
