"""A node whose processes are killed at random moments loses nothing, invents nothing, and never takes anything back."""

import random
import time
from functools import partial

import pytest

from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout, XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision, read_revisions
from tests.support.history import Line, expected_channels
from tests.support.node import Node, until
from tests.support.running import assert_verified, await_stable, connect, indexed_channels
from tests.support.shared import shared_path
from tests.support.watchers import Follower, StableWatch

pytestmark = pytest.mark.slow

SEEDS = 3
"""Of the twenty that every night tries."""
N_REVISIONS = 1_200
SLICE = 40
KILLS = ("feed_worker", "batch_writer", "supervisor", "feed_worker", "batch_writer")
"""What is killed in the course of one test, in a random order, with writes in between."""


@pytest.mark.parametrize(
    "seed", [*range(SEEDS), *(pytest.param(n, marks=pytest.mark.nightly) for n in range(SEEDS, 20))]
)
def test_processes_killed_at_random_moments_leave_an_exact_index(seed, tmp_path, redis_url):
    rnd = random.Random(seed)
    revisions = _some_revisions(rnd)
    expected = expected_channels([_line(revision) for revision in revisions])
    busiest = max(expected.keys() - {"*"}, key=lambda channel: len(expected[channel]))
    settings = {"coordination__ttl_s": 1.0, "index__partitions": 16, "index__block_bytes": 4096}
    with (
        DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, **settings).start() as node,
        connect(bucket) as client,
    ):
        watch = StableWatch(redis_url)
        followers = [Follower(redis_url, "*"), Follower(redis_url, busiest)]
        loader = Loader(client, InlineLayout() if seed % 2 else XattrLayout())
        slices = [revisions[start : start + SLICE] for start in range(0, len(revisions), SLICE)]
        kills = dict(zip(rnd.sample(range(len(slices)), len(KILLS)), rnd.sample(KILLS, len(KILLS)), strict=True))
        for number, part in enumerate(slices):
            if number in kills:
                _kill(rnd, node, kills[number])
            loader.load(part)
            time.sleep(rnd.uniform(0, 0.03))
        await_stable(redis_url, bucket)
        assert indexed_channels(redis_url) == expected
        for follower in followers:
            until(partial(follower.sees, expected[follower.channel]), "the follower to see everything")
            follower.finish()
        watch.finish()
        assert watch.samples > 0
        assert watch.moved_back == []
        assert_verified(node.config)


def _kill(rnd: random.Random, node: Node, role: str) -> None:
    """SIGKILL a live process; a supervisor is started again, as systemd would. The next write meets the damage.

    A child is killed while it works: once there is one, after a moment of the test's own choosing.
    """
    until(lambda: node.children("feed_worker") and node.children("batch_writer"), "the node to work")
    time.sleep(rnd.uniform(0, 0.1))
    if role == "supervisor":
        node.kill()
        node.start()
        return
    victim = rnd.choice(node.children(role))
    victim.kill()
    until(lambda: not victim.is_running(), "the killed process to be gone")


def _some_revisions(rnd: random.Random) -> list[Revision]:
    revisions = list(read_revisions(shared_path("data/repo-history.jsonl.gz")))
    start = rnd.randrange(len(revisions) - N_REVISIONS)
    return revisions[start : start + N_REVISIONS]


def _line(revision: Revision) -> Line:
    return {"id": revision.id, "rev": revision.rev, "channels": revision.channels, "deleted": revision.deleted}
