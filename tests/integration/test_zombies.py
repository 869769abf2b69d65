"""An owner that stands still at any step of its work, past its leases, and then goes on: the index is exact each time.

One process of a node stops at the step, the rest of the node with it; the other node takes over and indexes more; then
the processes of the paused node go on, its supervisor, which would stop them, last.
"""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.cluster import N_PARTITIONS, NodeCluster, node_cluster
from tests.support.history import expected_channels
from tests.support.node import until
from tests.support.pausing import STEPS, PausingNode
from tests.support.running import assert_verified, await_stable, connect, indexed_channels
from tests.support.watchers import StableWatch

pytestmark = pytest.mark.slow

SLICE = 60
ALONE_S = 0.4
"""How long the zombie works before its supervisor wakes and kills it."""
TYPICAL = ("after begin", "after append", "before advance")
TTL_S = 1.0


class Matrix:
    """Nodes "a" and "z", of which z is the one that stands still."""

    def __init__(self, folder: Path, cluster: NodeCluster, redis_url: str, loader: Loader) -> None:
        self.cluster = cluster
        self.zombie = PausingNode(
            "z",
            folder,
            redis_url,
            cluster.bucket,
            coordination__ttl_s=TTL_S,
            index__partitions=N_PARTITIONS,
            index__block_bytes=1024,
            workers__feed_workers=1,
            workers__batch_writers=1,
        )
        cluster.node("a", index__block_bytes=1024).start()
        cluster.until_shared_by("a")
        self._redis_url = redis_url
        self._loader = loader
        self._source = synthetic_revisions(seed=5, n_documents=200)
        self._written: list[dict[str, object]] = []

    def write(self) -> None:
        part = [next(self._source) for _ in range(SLICE)]
        self._loader.load(part)
        self._written += [{"id": r.id, "rev": r.rev, "channels": r.channels, "deleted": r.deleted} for r in part]

    def pause_at(self, step: str) -> None:
        """One round: the zombie stops at *step*, loses everything, goes on, and shares again."""
        fresh = step.endswith(("begin", "append_and_locate"))  # steps of a worker's first moments
        if fresh:
            self.zombie.ask(step)
            self.zombie.start()
        else:
            self.zombie.start()
            self.cluster.until_shared_by("a", "z")
            self.zombie.ask(step)
        until(self._write_and_look, f"the node to come to the step {step!r}")
        self.zombie.signal_all(signal.SIGSTOP)
        self.write()
        self.cluster.until_shared_by("a")
        self.write()
        await_stable(self._redis_url, self.cluster.bucket)
        for child in psutil.Process(self.zombie.pid).children():
            os.kill(child.pid, signal.SIGCONT)
        self.write()
        time.sleep(ALONE_S)
        self.zombie.signal(signal.SIGCONT)
        self.zombie.forget()
        self.cluster.until_shared_by("a", "z")
        self.write()
        self._assert_exact(step)
        self.zombie.kill()

    def _write_and_look(self) -> bool:
        self.write()
        return self.zombie.stopped() is not None

    def _assert_exact(self, step: str) -> None:
        await_stable(self._redis_url, self.cluster.bucket)
        assert indexed_channels(self._redis_url) == expected_channels(self._written), step


@pytest.fixture
def matrix(tmp_path, redis_url):
    with (
        node_cluster(tmp_path, redis_url, redis_url, TTL_S) as cluster,
        connect(cluster.bucket) as client,
    ):
        made = Matrix(tmp_path, cluster, redis_url, Loader(client, InlineLayout()))
        watch = StableWatch(redis_url)
        with made.zombie:
            yield made
        watch.finish()
        assert watch.moved_back == []
        assert_verified(cluster.node("a").config)


def test_owner_that_stands_still_at_a_typical_step_does_no_harm(matrix):
    for step in TYPICAL:
        matrix.pause_at(step)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_owner_that_stands_still_at_any_step_does_no_harm(matrix):
    for step in STEPS:
        matrix.pause_at(step)
