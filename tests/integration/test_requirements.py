"""What the first channel index got wrong and no other test asks for by itself: docs/failure-modes.md has them all."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from channelindex.errors import ChannelIndexError, OutcomeUnknown, StoreUnavailable
from channelindex.feeds.base import MUTATION, SNAPSHOT
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from channelindex.hashing import vbucket_of
from channelindex.logs import get
from channelindex.model import ORIGIN, Route
from channelindex.stores import open_reader
from devbucket.accounts import Account
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout, XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.node import Node, stable_seqnos, until
from tests.support.running import assert_verified, await_stable, connect, indexed_channels
from tests.support.stores import Backend, all_entries, settings_of
from workers.pipeline.batch_writer import BatchWriter
from workers.pipeline.outbox import RingOutbox
from workers.pipeline.ring import Bell, CommitBell, Ring
from workers.pipeline.round import RoundBuilder
from workers.signals import StopFlag
from workers.telemetry.board import Board
from workers.telemetry.hot_channels import HotChannels, SharedNote

N_VBUCKETS = 16
"""Of which vbucket 0 does not have the counter of sequences."""
REV = "1-" + "a" * 32
SETTINGS = {"index__partitions": 4, "coordination__ttl_s": 1.0}


class Everywhere:
    """A decoder that has each document in some of ten channels."""

    def decode(self, kind: int, key: bytes, datatype: int, value: bytes) -> Route:
        number = int(key)
        return Route(REV, 0, 0, {f"ch-{number % 10}": None, f"ch-{number % 7}": None, "*": None})


class EveryNthFails:
    """A writer's half of a store of which every *n*-th operation fails, in turns before and after it took effect."""

    def __init__(self, operations: Any, n: int) -> None:
        self._operations = operations
        self._n = n
        self.n_calls = 0
        self.tail_bytes = operations.tail_bytes
        self.notices_others = operations.notices_others

    def servers(self) -> int:
        """Who is asked nothing of a batch does not fail."""
        return int(self._operations.servers())

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._operations, name)

        def call(*arguments: Any) -> Any:
            self.n_calls += 1
            turn, place = divmod(self.n_calls, self._n)
            if place == 0 and turn % 2:
                raise StoreUnavailable("every so many writes fail")
            result = operation(*arguments)
            if place == 0:
                raise OutcomeUnknown("the reply is lost every so many writes")
            return result

        return call


@pytest.fixture
def bells() -> Iterator[list[Bell]]:
    made = [Bell() for _ in range(3)]
    yield made
    for bell in made:
        bell.close()


def new_writer(store: Any, rings: list[Ring], bells: list[Bell], batch_bytes: int) -> BatchWriter:
    writer = BatchWriter(
        store=store,
        rings=rings,
        commit_bells=[CommitBell(bell, [ring]) for bell, ring in zip(bells[:-1], rings, strict=True)],
        data_bell=bells[-1],
        batch_bytes=batch_bytes,
        stats=Board(1).writers[0],
        hot_channels=HotChannels(SharedNote()),
        stop=StopFlag(),
        log=get("test"),
    )
    writer._sleep = lambda delay_s: None  # type: ignore[method-assign]
    return writer


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_stable_clock_moves_only_over_writes_that_were_acknowledged_whichever_fail(n, redis_url, bells):
    backend = Backend(redis_url)
    operations = EveryNthFails(backend.operations(), n)
    ring = Ring(1 << 16)
    builder = RoundBuilder(Everywhere(), 1, {0: ORIGIN})
    outbox = RingOutbox([ring], [bells[-1]])
    writer = new_writer(backend.writer(200, operations=operations), [ring], bells[1:], batch_bytes=1_000)
    outbox.begin(1, backend.operations().servers())
    reader = backend.reader()
    for start in range(0, 200, 20):
        seqnos = range(start + 1, start + 21)
        builder.add([(SNAPSHOT, 0, seqnos[0], seqnos[-1])])
        builder.add([(MUTATION, 0, seqno, b"%d" % seqno, 1, b"{}") for seqno in seqnos])
        taken = builder.take()
        assert taken is not None
        outbox.put(taken, 1, "group")
        assert outbox.flush()
        while writer._write_batch():
            stable = max((checkpoint.seqno for checkpoint in outbox.pop_committed().values()), default=0)
            stored = {each.seqno for _, each in all_entries(reader, "*")}
            assert set(range(1, stable + 1)) <= stored
    for channel, divisor in (("ch-3", 10), ("ch-6", 7)):
        stored = {each.seqno for _, each in all_entries(reader, channel)}
        assert {seqno for seqno in range(1, 201) if seqno % divisor == int(channel[-1])} <= stored
    assert operations.n_calls > 4 * n
    backend.close()


def test_only_the_first_batch_of_a_channel_looks_for_its_block(bells):
    backend = Backend("memory://")
    store = backend.writer(block_bytes=500)  # blocks rotate meanwhile
    ring = Ring(1 << 16)
    builder = RoundBuilder(Everywhere(), 1, {0: ORIGIN})
    outbox = RingOutbox([ring], [bells[-1]])
    writer = new_writer(store, [ring], bells[1:], batch_bytes=1 << 16)
    outbox.begin(1)
    for seqno in range(1, 201):
        builder.add([(MUTATION, 0, seqno, b"%d" % seqno, 1, b"{}")])
        taken = builder.take()
        assert taken is not None
        outbox.put(taken, 1, "group")
        assert outbox.flush()
        batch = writer._write_batch()
        assert batch is not None
        writer._count(batch)
    assert store.n_block_lookups == len(list(backend.reader().channels())) == 11
    assert writer._stats.get("block_lookups") == 11
    assert writer._stats.get("channels") > 400


def test_a_full_ring_of_one_group_does_not_delay_the_next_batch_of_another(bells):
    backend = Backend("memory://")
    hot, cold = Ring(1 << 16), Ring(1 << 16)
    for ring, bell, vb, n_events in ((hot, bells[0], 0, 10_000), (cold, bells[1], 1, 1)):
        builder = RoundBuilder(Everywhere(), 1, {vb: ORIGIN})
        builder.add([(MUTATION, vb, seqno, b"%d" % seqno, 1, b"{}") for seqno in range(1, n_events + 1)])
        outbox = RingOutbox([ring], [bell])
        outbox.begin(1)
        taken = builder.take()
        assert taken is not None
        outbox.put(taken, 1, f"group-{vb}")
        assert outbox.flush() is (vb == 1)
    writer = new_writer(backend.writer(), [hot, cold], bells, batch_bytes=4_096)
    writer._write_batch()
    assert cold.fill == 0
    assert hot.fill > 0


def test_other_vbuckets_go_on_while_one_brings_more_than_the_rings_hold(tmp_path, redis_url):
    hot = next(key for key in (b"k%d" % number for number in range(100)) if vbucket_of(key, 4) == 0)
    value = b'{"_sync":{"rev":"1-a","channels":{"hot":null}},"pad":"%s"}' % (b"x" * 500)
    settings = {**SETTINGS, "workers__ring_bytes": 2**18, "workers__batch_writers": 1}
    with DevBucket(DevBucketConfig(n_vbuckets=4)) as bucket, connect(bucket) as client:
        bucket.bulk_load([(0, seqno, b"%s-%d" % (hot, seqno), value) for seqno in range(1, 60_001)])
        Loader(client, InlineLayout()).load([Revision(f"doc-{n}", REV, ("cold",)) for n in range(50)])
        highs = bucket.high_seqnos()
        stable = [0] * 4

        def others_are_stable() -> bool:
            stable[:] = [stable_seqnos(redis_url).get(vb, 0) for vb in range(4)]
            return bool(stable[1:] == highs[1:])

        with Node("n1", tmp_path, redis_url, bucket, **settings).start():
            until(others_are_stable, "the others to be stable")
            assert stable[0] < highs[0]


def test_deletions_of_documents_and_principals_belong_to_their_own_vbucket(tmp_path, redis_url):
    """Vbucket 0 gets nothing, so whatever forgets a vbucket shows there."""
    documents = [f"doc-{number}" for number in range(60) if vbucket_of(b"doc-%d" % number, N_VBUCKETS)]
    principals = [_principal_elsewhere(kind) for kind in ("user", "role")]
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        connect(bucket) as client,
        Node("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as node,
        closing(open_reader(settings_of(redis_url, "channels"))) as reader,
    ):
        Loader(client, XattrLayout()).load(Revision(key, REV, ("a",)) for key in documents)
        for key in principals:
            client.store(key.encode(), b'{"name":"x"}')
        await_stable(redis_url, bucket)
        assert [reader.principal_counter(key) for key in principals] == [1, 1]
        for key in (*principals, *documents[::2]):
            client.delete(key.encode())
        await_stable(redis_url, bucket)
        stable = stable_seqnos(redis_url)
        assert stable == dict(enumerate(bucket.high_seqnos()))
        assert stable[0] == 0
        assert [reader.principal_counter(key) for key in principals] == [2, 2]
        assert {id_ for id_, *_ in indexed_channels(redis_url)["a"]} == set(documents)
        assert_verified(node.config)


def _principal_elsewhere(kind: str) -> str:
    keys = (f"_sync:{kind}:{number}" for number in range(100))
    return next(key for key in keys if vbucket_of(key.encode(), N_VBUCKETS))


def test_a_user_who_may_only_read_is_enough_and_the_bucket_stays_as_it_was(tmp_path, redis_url):
    reader = Account("reader", "only", may_write=False)
    with DevBucket(DevBucketConfig(n_vbuckets=16, more_accounts=(reader,))) as bucket:
        with connect(bucket) as client:
            loader = Loader(client, XattrLayout())
            source = synthetic_revisions(seed=3, n_documents=100)
            loader.load([next(source) for _ in range(500)])
            loader.put_user("alice", ["ch-001"])
            loader.put_role("editor", ["ch-002"])
        before = bucket.high_seqnos()
        with KvClient(parse_source_url(bucket.url), Credentials("reader", "only")) as client:
            assert client.get(b"_sync:user:alice") is not None
            with pytest.raises(ChannelIndexError, match="EACCESS"):
                client.store(b"doc", b"{}")
        settings = {**SETTINGS, "source__user": "reader", "source__password": "only"}
        with Node("n1", tmp_path, redis_url, bucket, **settings).start() as node:
            await_stable(redis_url, bucket)
            assert_verified(node.config)
            assert node.drain() == 0
        assert bucket.high_seqnos() == before
