"""Faults that a node, or its bucket, does not outlive; and what is worth a bucket of its own."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from channelindex import exits
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from channelindex.feeds.dcp.messages import StreamEnd
from devbucket import DevBucket, DevBucketConfig
from devbucket.server import FLUSH_S
from devbucket.sync_gateway.layouts import XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node, until
from tests.support.running import assert_verified, await_stable, cli, connect, indexed_channels
from tests.support.unforgiving import UnforgivingNode

N_VBUCKETS = 16
HELD_S = 1.0
"""How long nothing may be indexed that is held back; what is not takes a tenth of that."""
SETTINGS = {"coordination__ttl_s": 1.0, "index__partitions": 8, "workers__batch_writers": 1}


def write(bucket: DevBucket, prefix: str, n: int = 50, collection: str = "") -> set[str]:
    """Write documents into the channel `a`; their ids."""
    address = replace(parse_source_url(bucket.url), collections=tuple(filter(None, [collection])))
    with KvClient(address, Credentials(bucket.user, bucket.password)) as client:
        Loader(client, XattrLayout()).load(Revision(f"{prefix}{i}", "1-a", ("a",)) for i in range(n))
    return {f"{prefix}{i}" for i in range(n)}


def indexed(store_url: str) -> set[str]:
    """The documents in the channel `a`."""
    return {entry[0] for entry in indexed_channels(store_url).get("a", set())}


def until_exact(node: Node) -> None:
    """Wait until `verify` finds that the index is what the bucket is."""
    until(lambda: cli("verify", "--config", node.config).returncode == exits.OK, "the index to be what the bucket is")


def test_a_node_that_is_refused_for_too_long_ends_and_goes_on_when_it_may(tmp_path: Path, redis_url: str) -> None:
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        UnforgivingNode("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as node,
    ):
        written = write(bucket, "before")
        await_stable(redis_url, bucket)
        bucket.refuse_logins(on=True)
        assert bucket.close_stream(3, StreamEnd.LOST_PRIVILEGES, "channelindex") == 1
        assert node.wait() == exits.AUTH
        assert node.start().wait() == exits.AUTH
        assert indexed(redis_url) == written
        bucket.refuse_logins(on=False)
        written |= write(bucket, "meanwhile")
        node.start()
        await_stable(redis_url, bucket)
        assert indexed(redis_url) == written


def test_a_collection_that_was_dropped_is_waited_for(tmp_path: Path, redis_url: str) -> None:
    config = DevBucketConfig(n_vbuckets=N_VBUCKETS, collections=("shop.orders",))
    settings = {**SETTINGS, "source__collections": "shop.orders"}
    with DevBucket(config) as bucket, Node("n1", tmp_path, redis_url, bucket, **settings).start() as node:
        written = write(bucket, "before", collection="shop.orders")
        await_stable(redis_url, bucket)
        bucket.drop_collection("shop.orders")
        assert sum(bucket.close_stream(vb, StreamEnd.FILTER_EMPTY, "channelindex") for vb in range(N_VBUCKETS))
        missing = "source.collections = 'shop.orders': the bucket of source.url has no collection"
        until(lambda: node.log.read_text().count(missing) >= 2, "the node to look again")
        assert "feed.collection_missing" in node.log.read_text()
        assert "since" in node.log.read_text()
        assert indexed(redis_url) == written
        bucket.create_collection("shop.orders")
        written |= write(bucket, "after", collection="shop.orders")
        await_stable(redis_url, bucket)
        assert indexed(redis_url) == written
        assert node.running


def test_a_node_that_joins_without_an_address_for_us_is_waited_for(tmp_path: Path, redis_url: str) -> None:
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS, alternate_host="localhost")) as bucket:
        settings = {**SETTINGS, "source__url": f"{bucket.url}?network=external"}
        with Node("n1", tmp_path, redis_url, bucket, **settings).start() as node:
            written = write(bucket, "before")
            await_stable(redis_url, bucket)
            joined = bucket.add_node()
            bucket.rebalance()
            written |= write(bucket, "meanwhile")
            until(lambda: "feed.node_without_address" in node.log.read_text(), "the log to name the node")
            time.sleep(HELD_S)
            assert node.running
            assert "child.failed" not in node.log.read_text()
            assert indexed(redis_url) < written
            bucket.set_alternate(joined, "localhost")
            await_stable(redis_url, bucket)
            assert indexed(redis_url) == written
            assert node.running


def test_streams_that_end_for_want_of_a_collection_are_asked_for_again(tmp_path: Path, redis_url: str) -> None:
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as node,
    ):
        written = write(bucket, "before")
        await_stable(redis_url, bucket)
        assert bucket.close_stream(3, StreamEnd.FILTER_EMPTY, "channelindex") == 1
        until(lambda: "feed.collection_missing" in node.log.read_text(), "the node to tell")
        written |= write(bucket, "meanwhile")
        await_stable(redis_url, bucket)
        assert indexed(redis_url) == written
        assert node.running


def test_a_bucket_that_is_killed_before_it_wrote_takes_back_what_it_lost(tmp_path: Path, redis_url: str) -> None:
    config = DevBucketConfig(n_vbuckets=N_VBUCKETS, file=tmp_path / "bucket.db")
    with DevBucket(config) as bucket, Node("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as node:
        kept = write(bucket, "kept")
        await_stable(redis_url, bucket)
        time.sleep(2 * FLUSH_S)
        bucket.stall_disk(on=True)
        lost = write(bucket, "lost")
        await_stable(redis_url, bucket)
        assert indexed(redis_url) == kept | lost
        bucket.kill()
        with DevBucket(replace(config, port=bucket.port)) as again:
            kept |= write(again, "new", 20)
            until_exact(node)
            assert indexed(redis_url) == kept
            assert "feed.rolled_back" in node.log.read_text()


def test_a_rebuild_for_a_bucket_that_was_made_again_is_refused_and_says_what_helps(
    tmp_path: Path, redis_url: str
) -> None:
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket:
        with Node("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as node:
            write(bucket, "before")
            await_stable(redis_url, bucket)
            assert node.drain() == 0
        port = bucket.port
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS, port=port)):
        done = cli("rebuild", "--yes", "--no-wait", "--config", node.config)
    assert done.returncode == exits.MISMATCH, done.stderr
    assert "Give index.name a new value" in done.stderr


def test_collections_that_are_created_are_indexed_with_their_scope(tmp_path: Path, redis_url: str) -> None:
    config = DevBucketConfig(n_vbuckets=N_VBUCKETS, collections=("shop.orders", "other.things"))
    settings = {**SETTINGS, "source__collections": "shop.*"}
    with DevBucket(config) as bucket, Node("n1", tmp_path, redis_url, bucket, **settings).start() as node:
        expected = qualified("shop.orders", write(bucket, "o", collection="shop.orders"))
        await_stable(redis_url, bucket)
        for name in ("shop.later", "other.later"):
            bucket.create_collection(name)
        expected |= qualified("shop.later", write(bucket, "l", collection="shop.later"))
        write(bucket, "x", collection="other.later")
        await_stable(redis_url, bucket)
        assert indexed(redis_url) == expected
        bucket.drop_connections("channelindex")
        expected |= qualified("shop.later", write(bucket, "m", collection="shop.later"))
        await_stable(redis_url, bucket)
        assert indexed(redis_url) == expected
        assert_verified(node.config)


def qualified(collection: str, ids: Iterable[str]) -> set[str]:
    return {f"{collection}/{each}" for each in ids}


def test_what_replicas_lack_is_not_indexed_and_a_failover_that_loses_it_is_no_rollback(
    tmp_path: Path, redis_url: str
) -> None:
    settings = {**SETTINGS, "source__rollback_mitigation": True}
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS, n_nodes=3, n_replicas=1)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, **settings).start() as node,
    ):
        replicated = write(bucket, "replicated")
        await_stable(redis_url, bucket)
        bucket.stall_replicas(on=True)
        behind = write(bucket, "behind")
        time.sleep(HELD_S)
        assert indexed(redis_url) == replicated
        bucket.failover_node(0)
        bucket.stall_replicas(on=False)
        write(bucket, "after")
        await_stable(redis_url, bucket)
        assert_verified(node.config)
        left = indexed(redis_url) & behind
        assert left < behind, "the failover lost nothing"
        assert left, "the other nodes' documents are there"
        assert "feed.rolled_back" not in node.log.read_text()


def test_a_removal_that_nothing_names_is_found_by_verify_and_gone_after_a_rebuild(
    tmp_path: Path, redis_url: str
) -> None:
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as node,
    ):
        written = write(bucket, "doc", 5)
        await_stable(redis_url, bucket)
        with connect(bucket) as client:
            restored = b'{"rev":"2-b","sequence":99,"channels":{"b":null}}'
            client.store_with_xattr(b"doc0", "_sync", restored, b"{}")
        await_stable(redis_url, bucket)
        assert indexed(redis_url) == written
        found = cli("verify", "--config", node.config)
        assert found.returncode != exits.OK
        assert "extra" in found.stdout
        assert cli("rebuild", "--yes", "--config", node.config).returncode == exits.OK
        assert_verified(node.config)
        assert indexed(redis_url) == written - {"doc0"}
