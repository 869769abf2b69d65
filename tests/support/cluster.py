"""Some nodes on this machine that share a bucket under a steady load, and what must be in the index."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from coordinator.cluster_state import ClusterState, read_cluster
from coordinator.lease_redis import connect as connect_redis
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.gaps import GapWatch
from tests.support.history import expected_channels
from tests.support.node import Node, until
from tests.support.running import assert_verified, await_stable, connect, indexed_channels

N_PARTITIONS = 16
N_VBUCKETS = 64


class SteadyLoad(threading.Thread):
    """Writes to all vbuckets, a little at a time, until told to stop."""

    def __init__(self, bucket: DevBucket, per_slice: int = 60, pause_s: float = 0.05) -> None:
        super().__init__(daemon=True)
        self._bucket = bucket
        self._per_slice = per_slice
        self._pause_s = pause_s
        self._stop_asked = threading.Event()
        self._error: Exception | None = None
        self.written: list[Revision] = []
        self.start()

    def run(self) -> None:
        source = synthetic_revisions(seed=11, n_documents=400)
        try:
            with connect(self._bucket) as client:
                loader = Loader(client, InlineLayout())
                while not self._stop_asked.wait(self._pause_s):
                    part = [next(source) for _ in range(self._per_slice)]
                    loader.load(part)
                    self.written += part
        except Exception as error:  # the test that finishes us must see it
            self._error = error

    def finish(self) -> list[dict[str, object]]:
        """Stop; all that was written."""
        self._stop_asked.set()
        self.join(30)
        if self._error:
            raise self._error
        return [{"id": r.id, "rev": r.rev, "channels": r.channels, "deleted": r.deleted} for r in self.written]


class NodeCluster:
    """Nodes by name, one index, its leases, a bucket and its load."""

    def __init__(self, folder: Path, store_url: str, leases_url: str, bucket: DevBucket, ttl_s: float) -> None:
        self.ttl_s = ttl_s
        self.bucket = bucket
        self.store_url = store_url
        self.leases_url = leases_url
        self.nodes: dict[str, Node] = {}
        self._folder = folder
        self._stack = ExitStack()

    def node(self, name: str, **settings: object) -> Node:
        """The node of this name, not started the first time."""
        if name not in self.nodes:
            settings = {
                "coordination__ttl_s": self.ttl_s,
                "coordination__redis": self.leases_url,
                "index__partitions": N_PARTITIONS,
                "workers__feed_workers": 1,
                "workers__batch_writers": 1,
                **settings,
            }
            node = Node(name, self._folder, self.store_url, self.bucket, **settings)
            self.nodes[name] = self._stack.enter_context(node)
        return self.nodes[name]

    def look(self, n_events: int = 0) -> ClusterState:
        """The coordination now."""
        with connect_redis(self.leases_url, 5.0) as redis:
            return read_cluster(redis, "channels", N_PARTITIONS, n_events)

    def shares(self) -> dict[str, int]:
        """How many partitions each live node has."""
        return {member.node: member.n_partitions for member in self.look().members if member.alive}

    def until_shared_by(self, *names: str) -> None:
        """Wait until these nodes and no others share all partitions evenly."""

        def even() -> bool:
            state = self.look()
            alive = sorted(member.node for member in state.members if member.alive)
            return alive == sorted(names) and not state.missing and state.target().n_moves() == 0

        until(even, f"{names} to share the partitions")

    def start(self, *names: str) -> None:
        """Start these nodes and wait until they, with those that run, share all partitions."""
        for name in names:
            self.node(name).start()
        self.until_shared_by(*(name for name, node in self.nodes.items() if node.running))

    def assert_exact(self, load: SteadyLoad) -> None:
        """The index holds exactly what was written."""
        lines = load.finish()
        await_stable(self.store_url, self.bucket)
        assert indexed_channels(self.store_url) == expected_channels(lines)
        assert_verified(next(iter(self.nodes.values())).config)

    def close(self) -> None:
        """End all nodes."""
        self._stack.close()


@contextmanager
def node_cluster(folder: Path, store_url: str, leases_url: str, ttl_s: float) -> Iterator[NodeCluster]:
    """A cluster without nodes."""
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket:
        cluster = NodeCluster(folder, store_url, leases_url, bucket, ttl_s)
        with closing(cluster):
            yield cluster


def settle(watch: GapWatch, seconds: float) -> tuple[float, float]:
    """Let the cluster run for a while; when that was."""
    begun = time.monotonic()
    time.sleep(seconds)
    assert watch.is_alive()
    return begun, time.monotonic()
