"""A node with nothing to do sleeps: nobody polls, each process wakes up for its heartbeat and what time requires."""

import time

import psutil

from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node, until
from tests.support.running import await_stable, connect

MOST_WAKES_PER_S = 12.0
"""A heartbeat is every quarter of a second (`MAX_WAIT_S`); the rest is for noops, reports and answers to both."""


def _wakes(processes: list[psutil.Process]) -> list[int]:
    return [process.num_ctx_switches().voluntary for process in processes]


def test_no_process_of_an_idle_node_wakes_up_more_often_than_for_its_heartbeat_and_timers(tmp_path, redis_url):
    with DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket, Node("n1", tmp_path, redis_url, bucket).start() as node:
        with connect(bucket) as kv:
            Loader(kv, InlineLayout()).load([Revision("doc", "1-a", ("A",))])
        await_stable(redis_url, bucket)
        processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children()]
        rates: list[float] = []

        def is_quiet() -> bool:
            """All of an interval; the first ones may still be of the start."""
            before, began = _wakes(processes), time.monotonic()
            time.sleep(1.0)
            after, seconds = _wakes(processes), time.monotonic() - began
            rates[:] = [(b - a) / seconds for a, b in zip(before, after, strict=True)]
            return max(rates) <= MOST_WAKES_PER_S

        until(is_quiet, "a quiet second")
        assert len(rates) >= 6
