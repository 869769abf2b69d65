"""Whatever a dev bucket is told to suffer, under load: afterwards the index is what the bucket is.

One bucket of three nodes and one node of the index suffer all faults, in any order; each test has its own documents.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from channelindex import exits
from channelindex.stores import open_reader
from devbucket import DevBucket, DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.sync_gateway.layouts import InlineLayout, Layout, XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.history import Membership
from tests.support.impatient import ImpatientNode
from tests.support.node import Node, until
from tests.support.running import assert_verified, await_stable, cli, connect, indexed_channels
from tests.support.steady_load import SteadyLoad
from tests.support.stores import settings_of

N_VBUCKETS = 24
FEED = "channelindex"
"""What the names of the node's connections begin with: the writer's have none."""


class Rig(NamedTuple):
    """A bucket, and a node that indexes it."""

    bucket: DevBucket
    node: Node
    store_url: str

    def log(self) -> str:
        """The node's log so far."""
        return self.node.log.read_text()

    def until_logged(self, event: str, since: str) -> None:
        """Wait until the node tells of *event* once more than in the log *since*."""
        n_before = since.count(event)
        until(lambda: self.log().count(event) > n_before, f"{event} in the log")

    def until_streaming(self) -> None:
        """Wait until every vbucket has a stream."""
        n_vbuckets = self.bucket.config.n_vbuckets
        until(lambda: sum(c["streams"] for c in self.bucket.connections(FEED)) >= n_vbuckets, "all streams")


Fault = Callable[[Rig, SteadyLoad], None]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    settings = {"coordination__ttl_s": 1.0, "index__partitions": 8, "workers__batch_writers": 1}
    with (
        EmbeddedRedis() as redis,
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS, n_nodes=3)) as bucket,
        ImpatientNode("n1", tmp_path_factory.mktemp("node"), redis.url, bucket, **settings).start() as node,
    ):
        rig = Rig(bucket, node, redis.url)
        rig.until_streaming()
        yield rig


def of(load: SteadyLoad, channels: Membership) -> Membership:
    """What *channels* hold of the documents of *load*."""
    ours = {
        channel: {entry for entry in entries if entry[0].startswith(load.prefix)}
        for channel, entries in channels.items()
    }
    return {channel: entries for channel, entries in ours.items() if entries}


def suffer(rig: Rig, name: str, fault: Fault, layout: Layout) -> SteadyLoad:
    """Write before, during and after *fault*; the load, which has ended."""
    with SteadyLoad(rig.bucket, name, layout) as load:
        load.more()
        rig.until_streaming()
        fault(rig, load)
        load.more()
    return load


# -- faults that take nothing back


def drop_connections(rig: Rig, load: SteadyLoad) -> None:
    for _ in range(3):
        rig.until_streaming()
        assert rig.bucket.drop_connections(FEED) > 0
        load.more(20)


def stall(rig: Rig, load: SteadyLoad) -> None:
    assert rig.bucket.stall(on=True, name=FEED) > 0
    load.more()
    rig.bucket.stall(on=False, name=FEED)


def half_open(rig: Rig, load: SteadyLoad) -> None:
    log = rig.log()
    assert rig.bucket.half_open(FEED, node=1) > 0
    rig.until_logged("has been silent", since=log)
    rig.bucket.drop_connections(FEED, node=1)  # the bucket's end of it too, or its streams would count for ever


def delay_and_fragment(rig: Rig, load: SteadyLoad) -> None:
    rig.bucket.delay(200, FEED)
    rig.bucket.fragment(100, FEED)
    load.more()
    rig.bucket.delay(0, FEED)
    rig.bucket.fragment(0, FEED)


def cut_frame(rig: Rig, load: SteadyLoad) -> None:
    log = rig.log()
    assert rig.bucket.cut_frame(FEED) > 0
    rig.until_logged("feed.connection_lost", since=log)


def flip_first_byte(rig: Rig, load: SteadyLoad) -> None:
    log = rig.log()
    assert rig.bucket.flip_byte(0, FEED) > 0
    rig.until_logged("feed.protocol_broken", since=log)


def flip_bytes(rig: Rig, load: SteadyLoad, offsets: tuple[int, ...]) -> None:
    """One byte of a document on its way from each node."""
    for node, offset in enumerate(offsets):
        assert rig.bucket.flip_byte(offset, FEED, node) > 0
    load.more(200)


def close_streams(rig: Rig, load: SteadyLoad) -> None:
    log = rig.log()
    reasons = (0, 1, 2, 3, 4, 5, 6, 8, 99)
    for vb in range(N_VBUCKETS):
        rig.until_streaming()  # reason 8 ends a connection
        assert rig.bucket.close_stream(vb, reasons[vb % len(reasons)], FEED) > 0
    rig.until_logged("feed.stream_ended", since=log)


def refuse_logins(rig: Rig, load: SteadyLoad) -> None:
    log = rig.log()
    rig.bucket.refuse_logins(on=True)
    rig.bucket.drop_connections(FEED)
    rig.until_logged("AUTH_ERROR", since=log)
    rig.bucket.refuse_logins(on=False)


def warm_up(rig: Rig, load: SteadyLoad) -> None:
    log = rig.log()
    rig.bucket.warm_up(on=True)
    rig.bucket.drop_connections(FEED)
    rig.until_logged("feed.connection_lost", since=log)
    load.more()
    rig.bucket.warm_up(on=False)


def move(rig: Rig, load: SteadyLoad) -> None:
    for node in range(3):
        rig.bucket.move(range(node, N_VBUCKETS, 2), node)
        load.more(20)
    rig.bucket.rebalance()


def take_vbucket_away(rig: Rig, load: SteadyLoad) -> None:
    log = rig.log()
    for state in ("replica", "pending", "dead"):
        rig.bucket.set_state(5, state)
    rig.until_logged("feed.stream_ended", since=log)
    rig.bucket.set_state(5, "active")


def new_checkpoints_and_disk(rig: Rig, load: SteadyLoad) -> None:
    for vb in range(N_VBUCKETS):
        rig.bucket.new_checkpoint(vb)
        rig.bucket.settle(vb)
    load.more(20)
    rig.bucket.drop_connections(FEED)


LOSSLESS = (
    drop_connections,
    stall,
    half_open,
    delay_and_fragment,
    cut_frame,
    flip_first_byte,
    close_streams,
    refuse_logins,
    warm_up,
    move,
    take_vbucket_away,
    new_checkpoints_and_disk,
)


@pytest.mark.parametrize("fault", LOSSLESS, ids=lambda fault: fault.__name__)
def test_a_fault_that_takes_nothing_back_leaves_the_index_exact(rig: Rig, fault: Fault) -> None:
    log = rig.log()
    load = suffer(rig, fault.__name__, fault, XattrLayout())
    await_stable(rig.store_url, rig.bucket)
    assert of(load, indexed_channels(rig.store_url)) == load.expected()
    assert_verified(rig.node.config)
    assert "feed.rolled_back" not in rig.log()[len(log) :]


CAS = range(16, 24)
"""Where it is in a frame. Nobody reads it."""
OFFSETS = (
    (0, 1, 2),
    (3, 4, 5),
    (6, 7, 8),
    (9, 10, 11),
    (12, 13, 14),
    (15, 16, 17),
    (18, 19, 20),
    (21, 22, 23),
    (24, -1),
)
"""Every byte of a document frame's head, the first behind it and the last; one for each node at a time."""


@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
def test_a_flipped_byte_loses_and_invents_nothing(rig: Rig, offsets: tuple[int, ...]) -> None:
    log, before = rig.log(), indexed_channels(rig.store_url)
    load = suffer(rig, f"flip {offsets}", partial(flip_bytes, offsets=offsets), XattrLayout())
    if not set(offsets) <= set(CAS):
        rig.until_logged("feed.protocol_broken", since=log)
    await_stable(rig.store_url, rig.bucket)
    damaged = quarantined_keys(rig)
    expected = united(before, load.expected())
    assert without(damaged, indexed_channels(rig.store_url)) == without(damaged, expected)
    load.rewrite()  # what was damaged, and did not happen to change, would be missing in all tests that come
    await_stable(rig.store_url, rig.bucket)
    assert_verified(rig.node.config)
    assert "feed.rolled_back" not in rig.log()[len(log) :]


def united(one: Membership, other: Membership) -> Membership:
    return {channel: one.get(channel, set()) | other.get(channel, set()) for channel in {*one, *other}}


def without(damaged: Sequence[bytes], channels: Membership) -> Membership:
    """What *channels* hold of all other documents. A key whose length is damaged goes on with what lies behind it."""

    def is_whole(document: str) -> bool:
        return not any(key.startswith(document.encode()) for key in damaged)

    return {channel: {entry for entry in entries if is_whole(entry[0])} for channel, entries in channels.items()}


# -- faults after which the bucket lacks what it had


def fail_over_vbuckets(rig: Rig, load: SteadyLoad) -> None:
    load.more(200)
    for vb in range(0, N_VBUCKETS, 2):
        rig.bucket.failover(vb, lose=2)


def crash_node(rig: Rig, load: SteadyLoad) -> None:
    rig.bucket.crash_node(1, 2)
    rig.bucket.start_node(1)


def fail_over_node(rig: Rig, load: SteadyLoad) -> None:
    rig.bucket.failover_node(2, 2)
    load.more(20)
    rig.bucket.start_node(2)
    rig.bucket.rebalance()


def purge(rig: Rig, load: SteadyLoad) -> None:
    """Tombstones go that the node was not sent, and others that it was."""
    rig.bucket.stall(on=True, name=FEED)
    load.more(400)
    purge_seqnos = [rig.bucket.purge(vb) for vb in range(N_VBUCKETS)]
    assert any(purge_seqnos)
    rig.bucket.drop_connections(FEED)


@pytest.mark.parametrize(
    "fault", [fail_over_vbuckets, crash_node, fail_over_node, purge], ids=lambda fault: fault.__name__
)
def test_a_fault_that_takes_changes_back_leaves_the_index_as_the_bucket_is(rig: Rig, fault: Fault) -> None:
    log = rig.log()
    suffer(rig, fault.__name__, fault, XattrLayout())
    rig.until_logged("feed.rolled_back", since=log)
    rig.until_streaming()
    until(partial(is_verified, rig.node), "the index to be what the bucket is")


def is_verified(node: Node) -> bool:
    done = cli("verify", "--config", node.config)
    print(done.returncode, done.stdout, done.stderr)  # shown where it never comes to be
    return done.returncode == exits.OK


# -- what is not cured by itself


def test_a_document_damaged_on_its_way_is_quarantined_until_it_changes(rig: Rig) -> None:
    before = n_quarantined(rig)
    with SteadyLoad(rig.bucket, "damaged", XattrLayout()) as load:
        load.more()
        rig.until_streaming()
        assert rig.bucket.flip_byte(-1, FEED) > 0
        until(lambda: n_quarantined(rig) > before, "the damaged document to be in quarantine")
    load.rewrite()
    await_stable(rig.store_url, rig.bucket)
    assert of(load, indexed_channels(rig.store_url)) == load.expected()
    assert_verified(rig.node.config)


def n_quarantined(rig: Rig) -> int:
    with closing(open_reader(settings_of(rig.store_url, "channels"))) as store:
        return store.quarantined(limit=1)[0]


def quarantined_keys(rig: Rig) -> list[bytes]:
    with closing(open_reader(settings_of(rig.store_url, "channels"))) as store:
        return [document.key for document in store.quarantined()[1]]


def test_a_bucket_that_is_dropped_ends_the_node_and_leaves_the_index(tmp_path: Path, redis_url: str) -> None:
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, coordination__ttl_s=1.0, index__partitions=8).start() as node,
    ):
        with connect(bucket) as client:
            Loader(client, InlineLayout()).load(Revision(f"doc-{n}", "1-a", ("a",)) for n in range(50))
        await_stable(redis_url, bucket)
        before = indexed_channels(redis_url)
        bucket.drop_bucket()
        until(lambda: "feed.connection_lost" in node.log.read_text(), "the node to notice")
        assert node.running
        bucket.create_bucket()
        assert node.wait() == exits.MISMATCH
        assert node.start().wait() == exits.MISMATCH
        assert indexed_channels(redis_url) == before


# -- maintenance


def test_rolling_restart_of_three_nodes_under_load_leaves_the_index_exact(tmp_path: Path, redis_url: str) -> None:
    with (
        DevBucket(DevBucketConfig(n_nodes=3)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, coordination__ttl_s=1.0).start() as node,
    ):
        rig = Rig(bucket, node, redis_url)
        with SteadyLoad(bucket, "doc", XattrLayout(), n_documents=1000) as load:
            for number in range(3):
                rig.until_streaming()
                log = rig.log()
                bucket.stop_node(number)
                rig.until_logged("feed.connection_lost", since=log)
                load.until_interrupted()
                bucket.start_node(number)
                load.more(200)
            rig.until_streaming()
        await_stable(redis_url, bucket)
        assert indexed_channels(redis_url) == load.expected()
        assert_verified(node.config)
        assert "feed.rolled_back" not in rig.log()
        assert node.drain() == exits.OK
