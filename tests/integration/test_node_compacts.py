"""A node compacts its index while it writes it, and goes on whatever becomes of its compactor."""

import signal
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import pytest

from channelindex import exits
from channelindex.config import load_config
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from channelindex.stores.base import IndexReader
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.history import Membership, expected_channels
from tests.support.node import Node, until
from tests.support.running import await_stable, connect, indexed_channels
from workers.cli.status import StatusReader

SETTINGS = {
    "compaction__min_lag_s": 1.0,
    "compaction__interval_s": 0.2,
    "compaction__grace_s": 1.0,
    "compaction__cpu_share": 1.0,
    "index__block_bytes": 1024,
    "index__partitions": 16,
}


class Writing:
    """Loads revisions, and knows which."""

    def __init__(self, loader: Loader, source: Iterator[Revision]) -> None:
        self._loader = loader
        self._source = source
        self._written: list[Revision] = []

    def write(self, n: int) -> None:
        part = list(islice(self._source, n))
        self._loader.load(part)
        self._written += part

    def expected(self) -> Membership:
        return expected_channels(
            [{"id": r.id, "rev": r.rev, "channels": r.channels, "deleted": r.deleted} for r in self._written]
        )


def generations(reader: IndexReader) -> dict[str, int]:
    """How often each channel was compacted."""
    channels = list(reader.channels())
    states = reader.channel_states(channels)
    return {name: state.compacted.generation for name, state in zip(channels, states, strict=True) if state}


@pytest.fixture
def bucket():
    with DevBucket(DevBucketConfig(n_vbuckets=64)) as opened:
        yield opened


def test_a_node_compacts_what_it_writes_and_readers_receive_the_same(bucket, tmp_path, redis_url):
    source = synthetic_revisions(seed=3, n_documents=20)
    with (
        connect(bucket) as client,
        Node("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as node,
        closing(open_reader(IndexSettings(store=redis_url))) as reader,
    ):
        writing = Writing(Loader(client, InlineLayout()), source)

        def n_compacted() -> int:
            return sum(generations(reader).values())

        until(lambda: node.children("compactor"), "the compactor to run")
        writing.write(400)
        await_stable(redis_url, bucket)
        writing.write(400)  # moments are noted as the clock moves on
        await_stable(redis_url, bucket)

        def is_compacted() -> bool:
            writing.write(1)
            return n_compacted() > 2

        until(is_compacted, "channels to be compacted")
        with closing(StatusReader(load_config(node.config, {}, {}))) as status:

            def is_told() -> bool:
                writing.write(20)
                compaction = status.read()["compaction"]
                return bool(compaction and compaction["compacted"])

            until(is_told, "the node to tell of it")
        (compactor,) = node.children("compactor")
        compactor.send_signal(signal.SIGKILL)
        before = n_compacted()
        until(
            lambda: any(child.pid != compactor.pid for child in node.children("compactor")), "another compactor to run"
        )

        def is_compacted_again() -> bool:
            writing.write(20)
            return n_compacted() > before

        until(is_compacted_again, "the next one to compact")
        await_stable(redis_url, bucket)
        assert indexed_channels(redis_url) == writing.expected()
        assert node.drain() == exits.OK


def test_what_a_node_that_is_killed_compacted_another_one_compacts(bucket, tmp_path, redis_url):
    """Each of two has partitions and a compactor, which one channel has no owner for; one is killed in the midst."""
    source = synthetic_revisions(seed=4, n_documents=20)
    with (
        connect(bucket) as client,
        Node("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as first,
        Node("n2", tmp_path, redis_url, bucket, **SETTINGS).start() as second,
        closing(open_reader(IndexSettings(store=redis_url))) as reader,
    ):
        writing = Writing(Loader(client, InlineLayout()), source)

        def owners() -> set[str]:
            return {record.owner.partition("-")[0] for record in reader.partition_records()}

        def is_compacted_since(before: dict[str, int]) -> bool:
            writing.write(60)
            now = generations(reader)
            return 2 * sum(now[name] > generation for name, generation in before.items()) > len(before)

        until(lambda: first.children("compactor") and second.children("compactor"), "both compactors to run")
        writing.write(200)
        await_stable(redis_url, bucket)
        until(lambda: owners() == {"n1", "n2"}, "each to have a share of the partitions")
        until(lambda: is_compacted_since(dict.fromkeys(reader.channels(), 0)), "most channels to be compacted")
        first.kill()
        before = generations(reader)
        until(lambda: is_compacted_since(before), "most of them to be compacted again")
        until(lambda: owners() == {"n2"}, "the other one to have all partitions")
        await_stable(redis_url, bucket)
        assert indexed_channels(redis_url) == writing.expected()
        assert second.drain() == exits.OK


def test_a_node_with_no_compactor_compacts_nothing(bucket, tmp_path, redis_url):
    with Node("n1", tmp_path, redis_url, bucket, **SETTINGS, workers__compactors=0).start() as node:
        until(lambda: node.children("batch_writer"), "the node to run")
        assert node.children("compactor") == []
        assert node.drain() == exits.OK
