"""The supervisor: worker counts that change under load, workers that stand still, configurations that are wrong."""

import signal
from contextlib import closing, contextmanager
from functools import partial

import pytest
import redis

from channelindex import exits
from channelindex.config import load_config
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.history import expected_channels
from tests.support.node import Node, until
from tests.support.running import await_stable, connect, indexed_channels
from tests.support.watchers import StableWatch
from workers.node.start import prepare_index

pytestmark = pytest.mark.real_start

SLICE = 100


class Load:
    """Writes to a bucket and knows what must be indexed."""

    def __init__(self, client):
        self._loader = Loader(client, InlineLayout())
        self._source = synthetic_revisions(seed=3, n_documents=200)
        self._written = []

    def write(self) -> None:
        part = [next(self._source) for _ in range(SLICE)]
        self._loader.load(part)
        self._written += part

    def expected(self):
        return expected_channels(
            [{"id": r.id, "rev": r.rev, "channels": r.channels, "deleted": r.deleted} for r in self._written]
        )


@pytest.fixture
def running(tmp_path, redis_url):
    @contextmanager
    def start(**settings):
        settings = {"coordination__ttl_s": 1.0, "index__partitions": 16, **settings}
        with (
            DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket,
            connect(bucket) as client,
            Node("n1", tmp_path, redis_url, bucket, **settings).start() as node,
        ):
            until(lambda: node.children("feed_worker"), "the node to run")
            yield node, bucket, Load(client)

    return start


def _set_workers(node: Node, feed_workers: int, batch_writers: int) -> None:
    lines = [line for line in node.config.read_text().splitlines() if not line.startswith("workers.")]
    lines += [f"workers.feed_workers = {feed_workers}", f"workers.batch_writers = {batch_writers}"]
    node.config.write_text("\n".join(lines) + "\n")
    node.signal(signal.SIGHUP)


def _counts(node: Node) -> tuple[int, int]:
    return len(node.children("feed_worker")), len(node.children("batch_writer"))


def _has_counts(node: Node, counts: tuple[int, int]) -> bool:
    return _counts(node) == counts


def test_sighup_changes_the_worker_counts_under_load_without_losing_anything(running, redis_url):
    with running() as (node, bucket, load):
        watch = StableWatch(redis_url)
        for counts in ((4, 3), (1, 1), (2, 2)):
            load.write()
            _set_workers(node, *counts)
            load.write()
            until(partial(_has_counts, node, counts), f"{counts} workers")
        load.write()
        await_stable(redis_url, bucket)
        assert indexed_channels(redis_url) == load.expected()
        watch.finish()
        assert watch.moved_back == []
        assert node.drain() == exits.OK


def test_a_wrong_configuration_is_refused_and_the_node_goes_on(running, redis_url):
    with running() as (node, bucket, load):
        node.config.write_text(node.config.read_text() + 'workers.feed_workers = "many"\n')
        node.signal(signal.SIGHUP)
        until(lambda: "config.refused" in node.log.read_text(), "the refusal in the log")
        load.write()
        await_stable(redis_url, bucket)
        assert _counts(node) == (2, 2)
        assert node.drain() == exits.OK


@pytest.mark.parametrize("role", ["feed_worker", "batch_writer", "lease_keeper"])
def test_a_process_that_stands_still_is_replaced(running, redis_url, role):
    with running(workers__heartbeat_timeout_s=6.0) as (node, bucket, load):
        frozen = node.children(role)[0]
        frozen.send_signal(signal.SIGSTOP)
        load.write()
        until(lambda: not frozen.is_running(), "the frozen process to be killed")
        until(lambda: node.children(role), "another one in its place")
        load.write()
        await_stable(redis_url, bucket)
        assert indexed_channels(redis_url) == load.expected()


def test_a_second_sigterm_stops_at_once(running, redis_url):
    with running(workers__drain_timeout_s=300.0) as (node, _bucket, load):
        load.write()
        for writer in node.children("batch_writer"):
            writer.send_signal(signal.SIGSTOP)
        load.write()
        node.signal(signal.SIGTERM)
        until(lambda: "node.draining" in node.log.read_text(), "the drain to begin")
        node.signal(signal.SIGTERM)
        assert node.wait() == exits.INTERRUPTED


def test_a_drain_that_takes_too_long_ends_with_its_own_code_and_loses_nothing(running, redis_url):
    with running(workers__drain_timeout_s=1.0, workers__heartbeat_timeout_s=60.0) as (node, bucket, load):
        for writer in node.children("batch_writer"):
            writer.send_signal(signal.SIGSTOP)
        load.write()
        assert node.drain() == exits.DRAIN_TIMEOUT
        node.start()
        await_stable(redis_url, bucket)
        assert indexed_channels(redis_url) == load.expected()


def test_a_store_that_fails_for_a_while_only_delays(running, redis_url):
    with running() as (node, bucket, load), closing(redis.Redis.from_url(redis_url)) as client:
        load.write()
        await_stable(redis_url, bucket)
        client.config_set("maxmemory", 1)  # every write is refused with OOM
        load.write()
        until(lambda: "batch.write_failed" in node.log.read_text(), "the writers to meet the error")
        client.config_set("maxmemory", 0)
        load.write()
        await_stable(redis_url, bucket)
        assert indexed_channels(redis_url) == load.expected()
        assert node.drain() == exits.OK


def test_an_index_that_is_lost_under_a_node_is_made_anew_by_its_restart(running, redis_url):
    with running() as (node, bucket, load), closing(redis.Redis.from_url(redis_url)) as client:
        load.write()
        await_stable(redis_url, bucket)
        client.flushall()
        load.write()
        assert node.wait() == exits.MISSING
        node.start()
        load.write()
        await_stable(redis_url, bucket)
        assert indexed_channels(redis_url) == load.expected()


def test_an_index_that_is_lost_and_made_anew_under_a_node_is_complete(running, redis_url):
    with running() as (node, bucket, load), closing(redis.Redis.from_url(redis_url)) as client:
        load.write()
        await_stable(redis_url, bucket)
        anew = load_config(node.config, {}, {"index.store": f"{redis_url}?db=1"})
        prepare_index(anew)  # as a peer does that starts at this moment
        client.swapdb(0, 1)  # lost, and there again: the node never finds nothing
        load.write()
        await_stable(redis_url, bucket)
        assert indexed_channels(redis_url) == load.expected()
