"""Fixtures for all tests: a real redis-server of our own, never one that was there before."""

import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from devbucket import DevBucket, DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis
from tests.support.profiles import load_profile
from tests.support.redis_cluster import ClusterOfThree

WHOLE_FILES = ("test_installed.py", "test_service.py", "test_serve.py", "test_serve_access.py")
"""Those whose tests share what takes long to set up, so that one process runs all of them."""

OF_THE_SOURCE = ("test_house.py", "test_no_error_is_ignored.py", "test_no_pickle.py")
"""Those that look at the syntax of all modules, which one process parses once for them."""

WITHOUT_PROCESSES = tuple(f"tests/{folder}/" for folder in ("unit", "contract", "fuzz"))
"""Those that wait for nobody, so that they take all the time that a processor has."""

load_profile()
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Under nohup, in the background of a script and on many runners Ctrl-C is ignored, by us and by all that we start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Have Python's collector look at nothing that is there by now: thousands of tests, which stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, and put last what takes a moment of nothing but our own time."""
    items.sort(key=lambda item: ("slow" not in item.keywords, item.nodeid.startswith(WITHOUT_PROCESSES)))


class Schedule(LoadScopeScheduling):  # type: ignore[misc]  # xdist carries no types
    """Hands the next test to whoever is free, and those of one of `WHOLE_FILES` together.

    The last process begins at the end of the list: there is always one at work while the others, whose tests begin
    with those that take longest, wait for nodes; and no two of the long ones are left when all the rest is done.
    """

    def _assign_work_unit(self, node: WorkerController) -> None:
        if len(self.nodes) > 1 and node is self.nodes[-1]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.endswith(OF_THE_SOURCE):
            return "source"
        return file if file.endswith(WHOLE_FILES) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Schedule:
    """Return what decides which process runs which test."""
    return Schedule(config, log)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """One private redis-server for the whole run."""
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The URL of the private server, empty."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def couchbase_url() -> Iterator[str]:
    """The URL of a bucket for indexes: a dev bucket, or one of a real cluster (`make test-couchbase COUCHBASE=…`)."""
    if url := os.environ.get("COUCHBASE"):
        yield url
        return
    with DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket:
        yield bucket.url


@pytest.fixture(scope="session")
def cluster_of_three() -> Iterator[ClusterOfThree]:
    """One private Redis Cluster for the whole run."""
    with ClusterOfThree() as cluster:
        yield cluster


@pytest.fixture
def cluster_url(cluster_of_three: ClusterOfThree) -> str:
    """The URL of the private cluster, empty."""
    cluster_of_three.flush()
    return cluster_of_three.url
