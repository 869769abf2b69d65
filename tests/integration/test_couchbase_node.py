"""A node whose index is in a bucket: the source is one dev bucket, the index another."""

from functools import partial

import pytest

from channelindex import exits
from devbucket import DevBucket, DevBucketConfig
from devbucket.sync_gateway.layouts import XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import read_revisions
from tests.support.history import Line, expected_channels
from tests.support.node import Node, until
from tests.support.running import assert_verified, await_stable, connect, indexed_channels
from tests.support.shared import shared_path

N_REVISIONS = 3_000
SLICE = 250
KILLS = {2: "batch_writer", 4: "feed_worker", 6: "batch_writer", 8: "feed_worker"}
"""Which process is killed after which slice."""


@pytest.fixture
def index_bucket():
    with DevBucket(DevBucketConfig(bucket="index", n_vbuckets=64)) as bucket:
        yield bucket


def settings_for(bucket: DevBucket, redis_url: str) -> dict[str, object]:
    return {
        "index__user": bucket.user,
        "index__password": bucket.password,
        "index__partitions": 16,
        "index__block_bytes": 4096,
        "coordination__redis": redis_url,
    }


def test_real_history_with_kills_gives_exactly_the_channels_that_the_file_says(tmp_path, redis_url, index_bucket):
    revisions = list(read_revisions(shared_path("data/repo-history.jsonl.gz")))[:N_REVISIONS]
    expected = expected_channels([_line(revision) for revision in revisions])
    with (
        DevBucket(DevBucketConfig(n_vbuckets=64)) as source,
        Node("n1", tmp_path, index_bucket.url, source, **settings_for(index_bucket, redis_url)).start() as node,
        connect(source) as client,
    ):
        loader = Loader(client, XattrLayout())
        for number, start in enumerate(range(0, N_REVISIONS, SLICE)):
            loader.load(revisions[start : start + SLICE])
            if number in KILLS:
                until(partial(node.children, KILLS[number]), "the worker to be there")
                node.children(KILLS[number])[0].kill()
        await_stable(index_bucket.url, source)
        assert indexed_channels(index_bucket.url) == expected
        assert_verified(node.config)
        assert node.drain() == 0


def test_a_server_without_durability_is_a_wrong_setting_at_the_start(tmp_path, redis_url, index_bucket):
    index_bucket.refuse_sync_writes(on=True)
    with (
        DevBucket(DevBucketConfig(n_vbuckets=64)) as source,
        Node("n1", tmp_path, index_bucket.url, source, **settings_for(index_bucket, redis_url)) as node,
    ):
        assert node.start().wait() == exits.CONFIG
        assert "index.durability" in node.log.read_text()


def _line(revision) -> Line:
    return {"id": revision.id, "rev": revision.rev, "channels": revision.channels, "deleted": revision.deleted}
