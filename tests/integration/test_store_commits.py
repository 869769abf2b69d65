"""A store that is at another place than it was, or whose index went back: a commit is worth what its servers have."""

import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from channelindex import blocks
from channelindex.errors import OwnershipLost, Transient
from channelindex.logs import get
from channelindex.model import Checkpoint, Entry
from channelindex.stores.redis.keys import Keys
from devbucket.embedded_redis import EmbeddedRedis
from tests.support.redis_cluster import ClusterOfThree
from tests.support.stores import META, Backend, all_entries, append, checkpoints, entry
from workers.pipeline.batch_writer import BatchWriter
from workers.pipeline.outbox import RingOutbox
from workers.pipeline.ring import Bell, CommitBell, Ring
from workers.pipeline.round import Round
from workers.signals import StopFlag
from workers.telemetry.board import Board
from workers.telemetry.hot_channels import HotChannels, SharedNote


class Pair(NamedTuple):
    """A master, a replica that has become one, and the address, which first led to the master."""

    address: Path
    old: "redis.Redis"
    new: "redis.Redis"
    new_path: str

    def move(self) -> None:
        """Let the address lead to the replica, which becomes a master; the old one lives on."""
        self.new.execute_command("REPLICAOF", "NO", "ONE")
        link = self.address.with_suffix(".new")
        link.symlink_to(self.new_path)
        link.replace(self.address)


@pytest.fixture
def pair() -> Iterator[Pair]:
    folder = Path(tempfile.mkdtemp(prefix="channelindex-moves-"))
    with EmbeddedRedis() as first, EmbeddedRedis() as second, ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        old, new = (stack.enter_context(redis.Redis.from_url(server.url)) for server in (first, second))
        address = folder / "redis.sock"
        address.symlink_to(first.url.removeprefix("unix://"))
        yield Pair(address, old, new, second.url.removeprefix("unix://"))


class Node:
    """A ring with a batch writer behind it that lives, and feed workers that come one after the other."""

    def __init__(self, url: str) -> None:
        self.backend = Backend(url)
        self.ring = Ring(1 << 16)
        self.bells = [Bell(), Bell()]
        self.writer = BatchWriter(
            store=self.backend.writer(),
            rings=[self.ring],
            commit_bells=[CommitBell(self.bells[0], [self.ring])],
            data_bell=self.bells[1],
            batch_bytes=1 << 16,
            stats=Board(1).writers[0],
            hot_channels=HotChannels(SharedNote()),
            stop=StopFlag(),
            log=get("test"),
        )

    def new_worker(self) -> "Worker":
        return Worker(self)

    def close(self) -> None:
        self.backend.close()
        for bell in self.bells:
            bell.close()


class Worker:
    """What a feed worker does with the store and the ring, in one epoch that it begins."""

    def __init__(self, node: Node) -> None:
        self.owner: Any = node.backend.owner()
        self.epoch = self.owner.next_epoch()
        self.owner.create_or_check(META)
        self.owner.begin(0, self.epoch, "n1")
        self.outbox = RingOutbox([node.ring], node.bells[1:])
        self.outbox.begin(self.epoch, self.owner.servers())

    def put(self, seqno: int) -> None:
        entry = blocks.pack_entry(Entry(0, seqno, b"doc", "1-a", 0))
        checkpoints = {0: Checkpoint(1, seqno, seqno, seqno)}
        self.outbox.put(Round([{"A": [entry]}], [[]], checkpoints, [], 1, 1), self.epoch, "group")
        assert self.outbox.flush()

    def advance(self) -> None:
        self.owner.advance(self.epoch, {0: self.outbox.pop_committed()})


@pytest.fixture
def node(pair: Pair) -> Iterator[Node]:
    with closing(Node(f"unix://{pair.address}")) as made:
        yield made


def index_of(node: Node) -> tuple[int, list[int]]:
    """The stable seqno, and the seqnos that are stored, as a new reader sees them."""
    reader = node.backend.reader()
    return reader.partition_records()[0].stable[0], [each.seqno for _, each in all_entries(reader, "A")]


def copy(pair: Pair) -> None:
    """What the old master has is on the new one, as by replication."""
    for key in pair.old.keys("*"):
        pair.new.restore(key, 0, pair.old.dump(key) or b"", replace=True)


def test_an_address_that_moves_while_the_old_master_lives_loses_nothing(pair: Pair, node: Node) -> None:
    """The batch writer stays connected to the old master, which takes what it is given; a new feed worker is not."""
    first = node.new_worker()
    first.put(1)
    assert node.writer._write_batch()
    first.advance()
    copy(pair)
    pair.move()
    second = node.new_worker()
    second.put(2)
    assert node.writer._write_batch()
    second.advance()
    assert index_of(node) == (2, [1, 2])


def test_what_the_old_master_took_does_not_become_stable_on_the_new_one(
    pair: Pair, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the writer could not connect anew in time."""
    first = node.new_worker()
    first.put(1)
    assert node.writer._write_batch()
    first.advance()
    copy(pair)
    pair.move()
    second = node.new_worker()
    second.put(2)
    monkeypatch.setattr(node.writer, "_reconnect_at", float("inf"))
    assert node.writer._write_batch()
    with pytest.raises(OwnershipLost, match="other servers"):
        second.advance()
    assert index_of(node) == (1, [1])
    monkeypatch.setattr(node.writer, "_reconnect_at", 0.0)
    third = node.new_worker()
    third.put(2)
    assert node.writer._write_batch()
    third.advance()
    assert index_of(node) == (2, [1, 2])


def test_a_refused_epoch_is_over_and_nothing_of_it_is_committed(pair: Pair, node: Node) -> None:
    """The index's slot of a cluster went back: the next epoch is lower than what a directory names."""
    first = node.new_worker()
    first.put(1)
    assert node.writer._write_batch()
    first.advance()
    keys = Keys(node.backend.index_name)
    (channel,) = pair.old.keys(f"{keys.prefix}*:c:A")
    directory: Any = pair.old.hget(channel, "ggroup")
    present, ahead = (b"%016x" % epoch for epoch in (first.epoch, first.epoch + (1 << 40)))
    assert present in directory
    pair.old.hset(channel, "ggroup", directory.replace(present, ahead))
    second = node.new_worker()
    second.put(2)
    assert node.writer._write_batch()
    assert node.ring.fill > 0
    with pytest.raises(OwnershipLost, match="refuses"):
        second.advance()
    assert index_of(node) == (1, [1])
    assert not node.writer._write_batch(), "nothing of a refused epoch is taken"
    pair.old.hset(channel, "ggroup", directory)
    third = node.new_worker()
    third.put(2)
    assert node.writer._write_batch()
    third.advance()
    assert index_of(node) == (2, [1, 2])


def test_a_writer_finds_the_successor_of_a_master_that_it_never_wrote_to() -> None:
    """That master lives on as a replica, and keeps the writer's connection: nothing but the feed worker tells of it."""
    with ClusterOfThree(replicas=True) as cluster, closing(Node(cluster.url)) as node:
        cluster.allow_no_failover()
        first = node.new_worker()
        first.put(1)
        assert node.writer._write_batch()
        written_to = _master_of(cluster, Keys(node.backend.index_name).channel("A"))
        cluster.hand_over((written_to + 1) % 3)
        cluster.await_layout()
        second = node.new_worker()
        second.put(1)
        assert node.writer._write_batch()
        second.advance()
        assert index_of(node)[0] == 1


def test_a_master_of_blocks_that_hangs_ends_the_epoch_before_anything_of_it_becomes_stable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its replica lacks the newest appends; the owner writes to another master, which goes on.

    Its masters are asked at each move here. Where they were asked just before, what is lost may become stable: then it
    is taken back with what was stable before (tests/integration/test_store_loses.py).
    """
    monkeypatch.setattr("channelindex.stores.redis.owner.HISTORY_INTERVAL_S", 0.0)
    with ClusterOfThree(replicas=True) as cluster, closing(Backend(cluster.url)) as backend:
        owner: Any = backend.owner()
        owner.create_or_check(META)
        epoch = owner.next_epoch()
        owner.begin(0, epoch, "n1")
        owner.advance(epoch, checkpoints({1: 1}))
        keys = Keys(backend.index_name)
        index, victim = (_master_of(cluster, key) for key in (keys.meta, keys.channel("A")))
        assert index != victim
        replica = cluster.process(victim + 3)
        replica.send_signal(signal.SIGSTOP)
        cluster.nodes[victim].execute_command("CLIENT", "KILL", "TYPE", "replica")
        assert backend.writer().write([append("A", epoch, entry(0, 1))]) == set()
        cluster.process(victim).send_signal(signal.SIGSTOP)
        replica.send_signal(signal.SIGCONT)
        outcome = _first_that_is_not_transient(lambda: owner.advance(epoch, checkpoints({0: 1})))
        cluster.process(victim).send_signal(signal.SIGCONT)
        assert isinstance(outcome, OwnershipLost)
        assert cluster.is_master(victim + 3)
        assert backend.reader().partition_records()[0].stable[0] == 0


def _master_of(cluster: ClusterOfThree, key: str) -> int:
    return cluster.owner_of(cluster.nodes[0].execute_command("CLUSTER", "KEYSLOT", key))


def _first_that_is_not_transient(act: Callable[[], object]) -> object:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            return act()
        except Transient:
            time.sleep(0.1)
        except OwnershipLost as error:
            return error
    raise AssertionError("the store did not come back")


def test_a_master_that_was_a_replica_in_between_ends_the_epoch(
    pair: Pair, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lost what only it had, and keeps the connections that it has."""
    monkeypatch.setattr("channelindex.stores.redis.owner.ASK_INTERVAL_S", 0.0)
    first = node.new_worker()
    first.put(1)
    assert node.writer._write_batch()
    pair.old.execute_command("REPLICAOF", "127.0.0.1", "1")
    pair.old.execute_command("REPLICAOF", "NO", "ONE")
    with pytest.raises(OwnershipLost):
        first.advance()
