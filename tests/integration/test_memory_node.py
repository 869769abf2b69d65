"""A node whose index is in its own memory: readers of other processes, verify, bounds, rollback, and one at a time."""

import json
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from channelindex import exits
from channelindex.errors import ChangesForgotten, StoreUnavailable
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from channelindex.stores.base import IndexReader
from channelindex.stores.memory_wire import socket_path
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node, until
from tests.support.running import cli, connect

HOLD_ALL: dict[str, Any] = {"index__memory_max_entries": 0, "index__memory_max_age_s": 0.0}
N_VBUCKETS = 16


def _revisions(generation: int, count: int, channels: tuple[str, ...] = ("a",)) -> list[Revision]:
    return [Revision(f"doc-{n:05}", f"{generation}-{generation:032x}", channels) for n in range(count)]


def _load(bucket: DevBucket, revisions: list[Revision]) -> None:
    with connect(bucket) as client:
        Loader(client, InlineLayout()).load(revisions)


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as started:
        yield started


def _node(folder: Path, bucket: DevBucket, name: str = "n1", **settings: object) -> Node:
    return Node(name, folder, "memory://", bucket, index__partitions=8, **settings)


def _await_stable(folder: Path, bucket: DevBucket) -> None:
    with closing(_reader(folder)) as store:

        def reached() -> bool:
            try:
                records = store.partition_records()
            except StoreUnavailable:
                return False
            stable = [seqno for record in records for seqno in record.stable]
            return all(seqno >= high for seqno, high in zip(stable, bucket.high_seqnos(), strict=True))

        until(reached, "the stable clock to reach the bucket's high seqnos")


def _reader(folder: Path) -> IndexReader:
    return open_reader(IndexSettings("channels", "memory://"), str(folder))


def _verified(node: Node) -> dict[str, int]:
    done = cli("verify", "--json", "--config", node.config)
    assert done.returncode == 0, done.stderr or done.stdout
    report: dict[str, int] = json.loads(done.stdout)
    return report


def test_all_commands_that_read_work_on_a_node_that_holds_all_in_memory(tmp_path, bucket):
    with _node(tmp_path, bucket, **HOLD_ALL).start() as node:
        _load(bucket, _revisions(1, 3000))
        _load(bucket, _revisions(2, 500, ("b",)))
        _await_stable(tmp_path, bucket)
        assert socket_path(str(tmp_path), "channels").stat().st_mode & 0o777 == 0o600
        assert _verified(node)["forgotten"] == 0
        changes = cli("changes", "b", "--json", "--config", node.config)
        assert len(changes.stdout.splitlines()) == 501
        status = json.loads(cli("status", "--json", "--config", node.config).stdout)
        assert [(each["node"], each["n_partitions"]) for each in status["nodes"]] == [("n1", 8)]
        assert status["index"]["stable"] == sum(bucket.high_seqnos())
        assert node.drain() == exits.OK
        assert cli("changes", "b", "--config", node.config).returncode == exits.STORE
        assert not socket_path(str(tmp_path), "channels").exists()


def test_reader_behind_what_is_held_is_refused_and_others_read_on(tmp_path, bucket):
    with _node(tmp_path, bucket, index__memory_max_age_s=0.0).start() as node, closing(_reader(tmp_path)) as store:
        _load(bucket, _revisions(1, 100))
        _await_stable(tmp_path, bucket)
        old = ChangesReader(store).changes(["a"])
        assert len(old.entries) == 100
        _load(bucket, _revisions(2, 3000))
        _await_stable(tmp_path, bucket)
        with pytest.raises(ChangesForgotten) as raised:
            ChangesReader(store).changes(["a"], old.since)
        assert raised.value.channel == "a"
        done = cli("changes", "a", "--since", old.since, "--config", node.config)
        assert done.returncode == exits.FORGOTTEN
        assert "memory_max_entries" in done.stderr
        report = _verified(node)
        assert 2000 < report["forgotten"] < 2 * (3000 - 500)  # of channels a and *


def test_entries_of_a_channel_at_rest_are_forgotten_by_age(tmp_path, bucket):
    settings: dict[str, Any] = {
        "index__memory_max_entries": 2000,
        "index__memory_max_age_s": 0.2,
        "index__memory_min_entries": 10,
    }
    with _node(tmp_path, bucket, **settings).start(), closing(_reader(tmp_path)) as store:
        _load(bucket, _revisions(1, 1000))
        _await_stable(tmp_path, bucket)

        def forgotten() -> bool:
            try:
                ChangesReader(store).changes(["a"])
            except ChangesForgotten:
                return True
            return False

        until(forgotten, "old entries to be forgotten")


def test_failover_that_takes_changes_back_is_a_new_epoch_in_memory_too(tmp_path, bucket):
    with _node(tmp_path, bucket, **HOLD_ALL).start() as node, closing(_reader(tmp_path)) as store:
        _load(bucket, _revisions(1, 160))
        _load(bucket, _revisions(2, 160))
        _await_stable(tmp_path, bucket)
        reader = ChangesReader(store)
        since = reader.changes(["a"]).since
        for vb in range(N_VBUCKETS):
            bucket.failover(vb, lose=3)
        until(lambda: "feed.rolled_back" in node.log.read_text(), "the node to notice the rollback")
        _load(bucket, _revisions(3, 160))
        _await_stable(tmp_path, bucket)
        until(lambda: len(reader.changes(["a"], since).entries) == 160, "what replaced the lost changes")
        _verified(node)
        assert node.drain() == exits.OK


def test_second_node_with_the_same_name_of_index_and_run_directory_is_refused(tmp_path, bucket):
    with _node(tmp_path, bucket).start(), _node(tmp_path, bucket, "n2") as second:
        _await_stable(tmp_path, bucket)
        assert second.start().wait() == exits.CONFIG
        assert "runs in" in second.log.read_text()
        _await_stable(tmp_path, bucket)


def test_node_that_was_killed_leaves_nothing_that_stops_the_next_one(tmp_path, bucket):
    with _node(tmp_path, bucket) as node, closing(_reader(tmp_path)) as store:
        node.start()
        _await_stable(tmp_path, bucket)
        before = store.meta()
        node.kill()
        with pytest.raises(StoreUnavailable):
            store.meta()
        node.start()
        _await_stable(tmp_path, bucket)
        assert store.meta().index_uuid != before.index_uuid
        node.signal(signal.SIGHUP)
        assert store.stable_counter() >= 0
        node.signal(signal.SIGINT)
        assert node.wait() == exits.OK
