"""Operators take partitions back under running nodes: everything is indexed again, and readers are told it again."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from channelindex import exits
from channelindex.checking.rewind import rewind_partitions
from channelindex.errors import OwnershipLost, Transient
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from channelindex.stores.base import IndexReader
from coordinator.lock import job_lock
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.indexing import Row, SmallIndex
from tests.support.node import Node, stable_seqnos
from tests.support.running import assert_verified, await_stable, cli, connect
from tests.support.watchers import Follower, StableWatch

N_VBUCKETS = 16
N_DOCUMENTS = 400


def _revisions(generation: int, digest: str) -> list[Revision]:
    return [Revision(f"doc-{n:03}", f"{generation}-{digest * 32}", ("a",)) for n in range(N_DOCUMENTS)]


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as opened:
        yield opened


@pytest.fixture
def new_node(tmp_path: Path, redis_url: str, bucket: DevBucket) -> Iterator[Node]:
    """A node that has not started yet."""
    with Node("n1", tmp_path, redis_url, bucket, coordination__ttl_s=1.0, index__partitions=8) as opened:
        yield opened


@pytest.fixture
def node(new_node: Node, redis_url: str, bucket: DevBucket) -> Node:
    """A node that has indexed the first revision of every document."""
    _load(bucket, _revisions(1, "a"))
    new_node.start()
    await_stable(redis_url, bucket)
    return new_node


@pytest.fixture
def store(redis_url: str) -> Iterator[IndexReader]:
    with closing(open_reader(IndexSettings("channels", redis_url))) as opened:
        yield opened


def _load(bucket: DevBucket, revisions: list[Revision]) -> None:
    with connect(bucket) as client:
        Loader(client, InlineLayout()).load(revisions)


def test_a_rebuild_under_an_idle_node_brings_everything_back_and_tells_it_again(
    bucket: DevBucket, node: Node, store: IndexReader, redis_url: str
) -> None:
    reader = ChangesReader(store)
    everything = reader.changes(["a"])
    stable = stable_seqnos(redis_url)
    follower = Follower(redis_url, "a")
    done = cli("rebuild", "--yes", "--json", "--config", node.config)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["back"], report["vbuckets_lowered"]) == (True, N_VBUCKETS)
    assert stable_seqnos(redis_url) == stable
    assert all(min(report["epochs"]) <= start.epoch for record in store.partition_records() for start in record.history)
    log = node.log.read_text()
    assert "feed.ownership_lost" not in log, "what an operator ordered is no warning"
    (told,) = {line.partition(" msg=")[2] for line in log.splitlines() if "event=feed.rewound" in line}
    assert told.startswith('"rebuild by '), told
    (shown,) = json.loads(cli("status", "--json", "--config", node.config).stdout)["nodes"]
    assert shown["status"]["restarts"] == 0, log
    again = reader.changes(["a"], everything.since)
    assert sorted(again.entries) == sorted(everything.entries)
    assert reader.changes(["a"], again.since).entries == ()
    _load(bucket, _revisions(2, "b"))
    await_stable(redis_url, bucket)
    assert {entry.rev for entry in reader.changes(["a"], again.since).entries} == {f"2-{'b' * 32}"}
    assert_verified(node.config)
    follower.finish()
    assert node.drain() == 0


def test_one_partition_goes_back_to_a_clock_while_the_node_writes(
    bucket: DevBucket, node: Node, store: IndexReader, redis_url: str, tmp_path: Path
) -> None:
    reader = ChangesReader(store)
    since = reader.changes(["a"]).since
    shown = json.loads(cli("inspect", "partition", 3, "--json", "--config", node.config).stdout)
    half = {vb: seqno // 2 for vb, seqno in shown["clock"].items()}
    assert sorted(half) == ["6", "7"]
    (tmp_path / "clock.json").write_text(json.dumps(half))
    watch = StableWatch(redis_url)
    with connect(bucket) as client:
        loader = Loader(client, InlineLayout())
        loader.load(_revisions(2, "b")[: N_DOCUMENTS // 2])
        done = cli("rewind", "--partition", 3, "--to", f"@{tmp_path}/clock.json", "--yes", "--config", node.config)
        loader.load(_revisions(2, "b")[N_DOCUMENTS // 2 :])
    assert done.returncode == 0, done.stderr
    assert "the stable clock is back" in done.stdout
    await_stable(redis_url, bucket)
    watch.finish()
    assert {vb for vb, _, _ in watch.moved_back} <= {6, 7}
    assert len(reader.changes(["a"], since).entries) == N_DOCUMENTS
    assert {entry.rev for entry in reader.changes(["a"]).entries} == {f"2-{'b' * 32}"}
    assert_verified(node.config)


def test_a_rewind_then_a_failover_loses_nothing(
    bucket: DevBucket, new_node: Node, store: IndexReader, redis_url: str
) -> None:
    """The older versions that the failover brings back were never fed: a snapshot had left them out."""
    node = new_node
    _load(bucket, _revisions(1, "a"))
    _load(bucket, _revisions(2, "b"))
    node.start()
    await_stable(redis_url, bucket)
    node.kill()
    highs = bucket.high_seqnos()
    clock = ",".join(f"{vb}:{high // 2}" for vb, high in enumerate(highs))
    done = cli("rewind", "--all", "--to", clock, "--yes", "--no-wait", "--config", node.config)
    assert done.returncode == 0, done.stderr
    for vb, high in enumerate(highs):
        bucket.failover(vb, lose=high // 4)
    node.start()
    await_stable(redis_url, bucket)
    assert_verified(node.config)
    assert len(ChangesReader(store).changes(["a"]).entries) == N_DOCUMENTS


@pytest.fixture
def small(redis_url: str) -> Iterator[SmallIndex]:
    index = SmallIndex(redis_url)
    epoch = index.begin()
    index.write(epoch, [Row("A", 0, 5, "doc")])
    index.advance(epoch, {0: 5})
    yield index
    index.close()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("rebuild",), exits.INTERRUPTED, "give --yes"),
        (("rewind", "--to", "BEGINNING", "--yes"), exits.USAGE, "--partition"),
        (("rewind", "--all", "--to", "0:x", "--yes"), exits.USAGE, "VBUCKET:SEQNO"),
        (("rewind", "--all", "--to", "7", "--yes"), exits.USAGE, "VBUCKET:SEQNO"),
        (("rewind", "--all", "--to", f"0:{1 << 64}", "--yes"), exits.USAGE, "out of range"),
        (("rewind", "--all", "--to", "@/nowhere", "--yes"), exits.USAGE, "No such file"),
        (("rewind", "--all", "--to", "4:1", "--yes"), exits.INPUT, "no vbucket 4"),
        (("rewind", "--partition", "2", "--to", "BEGINNING", "--yes"), exits.INPUT, "no partition 2"),
        (("rebuild", "--yes", "--set", "index.name=other"), exits.MISSING, "'other'"),
    ],
)
def test_what_makes_no_sense_or_nobody_confirmed_changes_nothing(
    small: SmallIndex, redis_url: str, arguments: tuple[str, ...], code: int, says: str
) -> None:
    before = small.reader.partition_records()
    done = cli(arguments[0], "--set", f"index.store={redis_url}", "--set", f"index.name={small.name}", *arguments[1:])
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert small.reader.partition_records() == before


@pytest.mark.parametrize(("answer", "code", "stable"), [("y", exits.OK, 0), ("no", exits.INTERRUPTED, 5)])
def test_a_person_is_asked_and_shown_what_readers_will_see(
    small: SmallIndex, redis_url: str, answer: str, code: int, stable: int
) -> None:
    ours, its = pty.openpty()
    settings = ("--set", f"index.store={redis_url}", "--set", f"index.name={small.name}")
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "channelindex", "rebuild", "--no-wait", *settings],
        stdin=its,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(ours)
    os.close(its)
    assert done.returncode == code, done.stderr
    assert "readers get less than before" in done.stderr
    assert f"rebuild 2 partitions of index '{small.name}'? [y/N]" in done.stderr
    assert small.reader.partition_records()[0].stable == (stable, 0)


def test_two_rebuilds_at_once_are_kept_apart(small: SmallIndex, redis_url: str) -> None:
    settings = ("--set", f"index.store={redis_url}", "--set", f"index.name={small.name}")
    with job_lock(redis_url, small.name, "rebuild"):
        done = cli("rebuild", "--yes", "--no-wait", *settings)
        assert done.returncode == exits.COORDINATION
        assert "another" in done.stderr
    done = cli("rebuild", "--yes", "--no-wait", *settings)
    assert done.returncode == exits.OK
    assert "2 partitions taken back, 1 vbuckets" in done.stdout
    assert [record.stable for record in small.reader.partition_records()] == [(0, 0), (0, 0)]


def test_a_store_that_moves_meanwhile_is_an_error_that_passes(
    small: SmallIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OwnershipLost("it moved")

    monkeypatch.setattr(small.owner, "begin", refuse)
    with pytest.raises(Transient, match="it moved"):
        list(rewind_partitions(small.owner, small.reader, [0], {0: 0}, "test"))
