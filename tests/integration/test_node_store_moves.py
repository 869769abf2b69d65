"""A whole node goes on while its store moves to another server, and its index stays exact."""

import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from channelindex import exits
from channelindex.stores.redis.keys import Keys
from devbucket import DevBucket, DevBucketConfig
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.chaos.proxy import Proxy
from tests.support.node import Node, until
from tests.support.redis_cluster import N_MASTERS, ClusterOfThree
from tests.support.redis_sentinel import MasterAndReplica, SentinelAndMaster
from tests.support.running import assert_verified, await_stable, cli, connect

pytestmark = pytest.mark.slow

N_DOCUMENTS = 300
N_CHANNELS = 40
PATIENT = "?socket_timeout=3600"
"""Whoever waits out a reply that does not come waits longer than any test."""


class Site:
    """A bucket, and a node that indexes it in the store at *url*."""

    def __init__(self, folder: Path, bucket: DevBucket, url: str) -> None:
        self._bucket = bucket
        self._url = url
        self._generation = 0
        settings = {
            "index__partitions": 4,
            "workers__feed_workers": 2,
            "workers__batch_writers": 2,
            "workers__heartbeat_timeout_s": 600,
            "coordination__ttl_s": 60.0,
        }
        self.node = Node("n1", folder, url, bucket, coordination__redis=url, **settings).start()
        self.save()
        await_stable(url, bucket)

    def save(self) -> None:
        """One more revision of every document, each in a channel that it was not in before."""
        self._generation += 1
        revisions = (
            Revision(f"doc-{n:03}", f"{self._generation}-{n:032x}", ("all", f"c{(n + self._generation) % N_CHANNELS}"))
            for n in range(N_DOCUMENTS)
        )
        with connect(self._bucket) as client:
            Loader(client, InlineLayout()).load(revisions)

    def suffer(self, move: Callable[[], object], seen: Callable[[], object] = lambda: None) -> None:
        """Save, have the store *move* meanwhile, save again: the index gets there. Prints how long it took.

        *seen* returns when the new master is there.
        """
        self.save()
        move()
        self.save()
        began = time.monotonic()
        seen()
        there = time.monotonic()
        await_stable(self._url, self._bucket)
        print(f"new master after {there - began:.2f} s, index complete {time.monotonic() - there:.2f} s later")
        assert_verified(self.node.config)
        assert self.node.running


@pytest.fixture
def bucket():
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket:
        yield bucket


def test_a_node_outlives_every_master_of_its_cluster(tmp_path, bucket):
    with ClusterOfThree(replicas=True) as cluster:
        site = Site(tmp_path, bucket, cluster.url)
        with site.node:
            for number in range(N_MASTERS):
                site.suffer(partial(cluster.kill, number), partial(cluster.await_promotion, number + N_MASTERS))
                cluster.await_agreement(gone=number)


def test_a_node_outlives_a_master_of_its_cluster_that_hangs(tmp_path, bucket):
    with ClusterOfThree(replicas=True) as cluster:
        site = Site(tmp_path, bucket, cluster.url + PATIENT)
        with site.node:
            site.suffer(
                lambda: cluster.process(1).send_signal(signal.SIGSTOP),
                lambda: cluster.await_promotion(1 + N_MASTERS),
            )
            cluster.process(1).send_signal(signal.SIGCONT)
            site.suffer(lambda: None)
        assert "child.killed" not in site.node.log.read_text()


def test_a_node_outlives_a_master_that_hangs_and_that_its_sentinel_replaces(tmp_path, bucket):
    with SentinelAndMaster() as servers:
        site = Site(tmp_path, bucket, servers.url + PATIENT)
        with site.node:
            site.suffer(
                lambda: servers.process(0).send_signal(signal.SIGSTOP),
                lambda: until(lambda: servers.master == 1, "the Sentinel to name another master"),
            )
            servers.process(0).send_signal(signal.SIGCONT)
            site.suffer(lambda: None)
        assert "child.killed" not in site.node.log.read_text()


def test_a_node_follows_its_sentinel(tmp_path, bucket):
    with SentinelAndMaster() as servers:
        site = Site(tmp_path, bucket, servers.url)
        with site.node:
            site.suffer(servers.fail_over)


def test_a_node_follows_an_address_that_was_handed_over(tmp_path, bucket):
    with MasterAndReplica() as servers, Proxy() as proxy:
        address = proxy.link(servers.ports[0])
        site = Site(tmp_path, bucket, address.url)

        def move() -> None:
            servers.hand_over()
            address.upstream = servers.ports[1]

        with site.node:
            site.suffer(move)


def test_a_node_follows_an_address_that_moved_while_the_old_master_lives(tmp_path, bucket):
    """It answers, and takes writes. Nobody else reads them: applications that connect get the new master."""
    with MasterAndReplica() as servers, Proxy() as proxy:
        address = proxy.link(servers.ports[0])
        site = Site(tmp_path, bucket, address.url)

        def move() -> None:
            servers.client(1).execute_command("REPLICAOF", "NO", "ONE")
            address.upstream = servers.ports[1]

        with site.node:
            site.suffer(move)
            assert servers.client(0).execute_command("ROLE")[0] == b"master", "nobody demoted it"


def test_a_node_outlives_a_master_whose_file_lost_its_end(tmp_path, bucket):
    """What was stable is gone, and nobody but the marks in that master's slots knows since when."""
    with ClusterOfThree(append_only=True) as cluster:
        site = Site(tmp_path, bucket, cluster.url)
        records = cluster.owner_of(cluster.nodes[0].execute_command("CLUSTER", "KEYSLOT", "{i}"))
        number = (records + 1) % N_MASTERS

        def lose() -> None:
            size = cluster.append_file_size(number)
            site.save()
            await_stable(cluster.url, bucket)
            cluster.kill(number)
            cluster.tear_append_file(number, size)
            cluster.restart(number)

        with site.node:
            site.suffer(lose)
        assert "store.went_back" in site.node.log.read_text()


def test_a_partition_of_which_nobody_knows_since_when_it_is_complete_is_repaired_under_a_running_node(tmp_path, bucket):
    """Its timeline was evicted, and a master was replaced before there was another moment. The others go on."""
    with ClusterOfThree(append_only=True) as cluster:
        site = Site(tmp_path, bucket, cluster.url)
        timeline = Keys("channels").timeline(0)
        with site.node as node:
            assert node.drain() == exits.OK
            owner = cluster.owner_of(cluster.nodes[0].execute_command("CLUSTER", "KEYSLOT", timeline))
            assert cluster.nodes[owner].execute_command("DEL", timeline) == 1
            other = (owner + 1) % N_MASTERS
            cluster.append_file_size(other)
            cluster.kill(other)
            cluster.restart(other)
            node.start()
            site.save()
            until(lambda: f"code={exits.CORRUPT}" in node.log.read_text(), "the node to miss the timeline")
            assert "everything of partitions 0: channelindex repair" in node.log.read_text()
            repaired = cli("repair", "--yes", "--json", "--config", node.config)
            assert repaired.returncode == exits.OK, repaired.stderr + repaired.stdout
            report = json.loads(repaired.stdout)
            assert report["written"] == {"meta": False, "partitions": [0], "entries": 0}
            assert report["verified"]["ok"]
            assert node.running
