"""The bucket fails over and takes changes back: the index follows, and readers are sent what replaced them."""

from contextlib import closing

from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node, until
from tests.support.running import assert_verified, await_stable, cli, connect

N_VBUCKETS = 16
N_DOCUMENTS = 160


def _revisions(generation: int, digest: str) -> list[Revision]:
    return [Revision(f"doc-{n:03}", f"{generation}-{digest * 32}", ("a",)) for n in range(N_DOCUMENTS)]


def test_a_failover_of_many_vbuckets_replaces_what_was_lost_in_the_index_and_for_readers(tmp_path, redis_url):
    settings = {"coordination__ttl_s": 1.0, "index__partitions": 8}
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, **settings).start() as node,
        closing(open_reader(IndexSettings("channels", redis_url))) as store,
    ):
        reader = ChangesReader(store)
        with connect(bucket) as client:
            Loader(client, InlineLayout()).load(_revisions(1, "a"))
            Loader(client, InlineLayout()).load(_revisions(2, "b"))
        await_stable(redis_url, bucket)
        since = reader.changes(["a"]).since

        for vb in range(0, N_VBUCKETS, 2):
            bucket.failover(vb, lose=3)
        until(lambda: "feed.rolled_back" in node.log.read_text(), "the node to notice the rollback")
        with connect(bucket) as client:
            Loader(client, InlineLayout()).load(_revisions(3, "c"))
        await_stable(redis_url, bucket)
        until(lambda: _revs(reader, since) == {f"3-{'c' * 32}"}, "the reader to be sent what replaced the lost changes")
        assert len(reader.changes(["a"], since).entries) == N_DOCUMENTS
        assert {entry.rev for entry in reader.changes(["a"]).entries} == {f"3-{'c' * 32}"}
        assert_verified(node.config)
        assert node.drain() == 0


def _revs(reader: ChangesReader, since: str) -> set[str]:
    return {entry.rev for entry in reader.changes(["a"], since).entries}


def test_a_rollback_without_later_writes_leaves_the_index_as_the_bucket_is(tmp_path, redis_url):
    settings = {"coordination__ttl_s": 1.0, "index__partitions": 8}
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, **settings).start() as node,
        closing(open_reader(IndexSettings("channels", redis_url))) as store,
    ):
        with connect(bucket) as client:
            Loader(client, InlineLayout()).load(_revisions(1, "a"))
        await_stable(redis_url, bucket)
        lost = 0
        for vb, high in enumerate(bucket.high_seqnos()):
            bucket.failover(vb, lose=min(2, high))
            lost += min(2, high)
        reader = ChangesReader(store)
        until(lambda: len(reader.changes(["a"]).entries) == N_DOCUMENTS - lost, "the lost changes to disappear")
        assert_verified(node.config)


def test_versions_that_a_snapshot_left_out_are_indexed_when_a_failover_brings_them_back(tmp_path, redis_url):
    settings = {"coordination__ttl_s": 1.0, "index__partitions": 8}
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, **settings) as node,
        closing(open_reader(IndexSettings("channels", redis_url))) as store,
    ):
        with connect(bucket) as client:
            Loader(client, InlineLayout()).load(_revisions(1, "a"))
            Loader(client, InlineLayout()).load(_revisions(2, "b"))
        node.start()  # it is brought the second revisions alone
        await_stable(redis_url, bucket)
        for vb, high in enumerate(bucket.high_seqnos()):
            bucket.failover(vb, lose=high // 4)
        reader = ChangesReader(store)
        until(lambda: len({entry.rev for entry in reader.changes(["a"]).entries}) == 2, "first revisions to be back")
        until(lambda: cli("verify", "--config", node.config).returncode == 0, "the other worker to have gone back too")
        assert len(reader.changes(["a"]).entries) == N_DOCUMENTS
        assert_verified(node.config)
