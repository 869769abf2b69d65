"""A node whose index is in a bucket: the source is one dev bucket, the index another."""

import json
from contextlib import closing
from functools import partial

import pytest

from channelindex import exits
from channelindex.stores.couchbase.keys import Keys
from devbucket import DevBucket, DevBucketConfig
from devbucket.sync_gateway.layouts import XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import read_revisions
from tests.support.history import Line, expected_channels
from tests.support.node import Node, until
from tests.support.running import assert_verified, await_stable, cli, connect, indexed_channels
from tests.support.shared import shared_path
from tests.support.stores import Backend, visible_entries

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


def test_what_is_lost_of_channels_in_a_bucket_is_repaired_under_a_running_node(tmp_path, redis_url, index_bucket):
    """A directory, whose groups nobody can list, and a block."""
    revisions = list(read_revisions(shared_path("data/repo-history.jsonl.gz")))[:600]
    with (
        DevBucket(DevBucketConfig(n_vbuckets=64)) as source,
        Node("n1", tmp_path, index_bucket.url, source, **settings_for(index_bucket, redis_url)).start() as node,
        connect(source) as client,
        closing(Backend(index_bucket.url, "channels")) as backend,
    ):
        loader, keys = Loader(client, XattrLayout()), Keys("channels")
        loader.load(revisions[:400])
        await_stable(index_bucket.url, source)
        reader, lost = backend.reader(), backend.link()._opened()
        largest = sorted(reader.channels(), key=lambda channel: len(visible_entries(reader, channel)))[-2:]
        (state,) = reader.channel_states(largest[1:])
        assert state is not None
        group, found = min(state.groups.items())
        lost.remove(keys.directory(largest[0]))
        lost.remove(keys.block(largest[1], group, found.directory.number))
        repaired = cli("repair", "--yes", "--json", "--config", node.config)
        assert repaired.returncode == exits.OK, repaired.stderr + repaired.stdout
        report = json.loads(repaired.stdout)
        assert [len(report["repaired"][what]) for what in ("directories", "blocks")] == [1, 1]
        assert report["written"]["entries"] > 0
        assert report["verified"]["ok"]
        loader.load(revisions[400:])
        await_stable(index_bucket.url, source)
        assert_verified(node.config)
        assert node.running
