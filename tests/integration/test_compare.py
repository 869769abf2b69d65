"""`channelindex compare`: the same input in two stores, and what it finds where they are not the same."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import redis

from channelindex import exits
from channelindex.checking.compare import compare
from channelindex.errors import IndexMismatch
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import read_revisions
from tests.support.indexing import Row, SmallIndex
from tests.support.node import Node, until
from tests.support.running import await_stable, cli, connect
from tests.support.shared import shared_path


@pytest.fixture
def pair(redis_url: str) -> Iterator[tuple[SmallIndex, SmallIndex]]:
    """Two small indexes of one bucket."""
    both = SmallIndex("memory://"), SmallIndex(redis_url)
    yield both
    for index in both:
        index.close()


ROWS = [Row("a", 0, 1, "x"), Row("a", 1, 1, "y"), Row("b", 0, 2, "z"), Row("b", 3, 4, "w")]
STABLE = {0: 2, 1: 1, 3: 4}


def _write(index: SmallIndex, rows: list[Row], stable: dict[int, int]) -> None:
    epoch = index.begin()
    index.write(epoch, rows)
    index.advance(epoch, stable)


def test_equal_indexes_have_no_difference(pair):
    for index in pair:
        _write(index, ROWS, STABLE)
    found = compare(pair[0].reader, pair[1].reader)
    assert found.ok
    assert (found.channels, found.left_entries, found.right_entries, found.in_flux) == (2, 4, 4, 0)


def test_each_difference_is_counted_by_channel(pair):
    _write(pair[0], ROWS, STABLE)
    other = [Row("a", 0, 1, "x", rev="2-bb"), Row("b", 0, 2, "z"), Row("b", 3, 4, "w"), Row("c", 1, 1, "y")]
    _write(pair[1], other, STABLE)
    found = compare(pair[0].reader, pair[1].reader)
    assert not found.ok
    assert found.differences_by_channel == {"a": {"different": 1, "missing": 1}, "c": {"extra": 1}}
    assert {(row.kind, row.channel, row.id) for row in found.details} == {
        ("different", "a", "x"),
        ("missing", "a", "y"),
        ("extra", "c", "y"),
    }
    assert compare(pair[0].reader, pair[1].reader, ["b"]).ok


def test_what_one_has_not_reached_is_in_flux(pair):
    _write(pair[0], ROWS, STABLE)
    _write(pair[1], ROWS, {0: 1, 1: 1, 3: 4})
    found = compare(pair[0].reader, pair[1].reader)
    assert found.ok
    assert found.in_flux == 1


def test_indexes_of_different_buckets_are_refused(pair, redis_url):
    other = SmallIndex(redis_url, n_vbuckets=8)
    with pytest.raises(IndexMismatch, match="one bucket"):
        compare(pair[0].reader, other.reader)
    other.close()


def _compare(config: Path, *arguments: object) -> tuple[int, dict[str, Any]]:
    done = cli("compare", "--json", "--config", config, *arguments)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    revisions = islice(read_revisions(shared_path("data/repo-history.jsonl.gz")), 6000)
    with DevBucket() as started:
        with connect(started) as client:
            Loader(client, InlineLayout()).load(revisions)
        yield started


HOLD_ALL = ("--set", "index.memory_max_entries=0", "--set", "index.memory_max_age_s=0")


def test_real_history_makes_the_same_index_in_memory_in_redis_and_in_a_cluster(
    tmp_path, redis_url, cluster_url, bucket
):
    node = Node("n1", tmp_path, redis_url, bucket)
    code, found = _compare(node.config, "--left", "memory://", "--right", redis_url, *HOLD_ALL)
    assert (code, found["ok"], found["forgotten"], found["in_flux"]) == (exits.OK, True, 0, 0)
    assert found["left_entries"] == found["right_entries"] > 4000
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
    code, found = _compare(node.config, "--left", redis_url, "--right", cluster_url)
    assert (code, found["ok"]) == (exits.OK, True)
    code, found = _compare(node.config, "--left", "memory://", "--right", redis_url)
    assert (code, found["ok"]) == (exits.OK, True)
    assert found["forgotten"] > 0


def test_running_nodes_are_compared_as_they_are_and_a_lost_entry_is_found(tmp_path, redis_url, bucket):
    settings = {"index__memory_max_entries": 0, "index__memory_max_age_s": 0.0}
    with (
        Node("n1", tmp_path, redis_url, bucket).start() as node,
        Node("m1", tmp_path, "memory://", bucket, **settings).start() as held,
    ):
        await_stable(redis_url, bucket)
        sides = ("--left", "memory://", "--right", redis_url, "--existing")
        n_entries = _compare(node.config, *sides)[1]["right_entries"]
        until(
            lambda: _compare(node.config, *sides)[1]["left_entries"] == n_entries, "the node in memory to have them all"
        )
        assert held.running
        code, found = _compare(node.config, *sides)
        assert (code, found["ok"]) == (exits.OK, True)
        assert found["left_entries"] > 4000
        with redis.Redis.from_url(redis_url) as client:
            directory = next(client.scan_iter("ci:channels:{*}:c:*"))
            slot, _, name = directory.partition(b":c:")
            channel = name.decode()
            client.delete(directory)
            done = cli("compare", *sides, "--config", node.config)
            assert done.returncode == exits.CORRUPT
            assert f"repair --channel {channel}" in done.stderr
            client.hdel(slot + b":n", name)
        code, found = _compare(node.config, *sides)
        assert code == exits.DIFFERENCES
        assert set(found["differences_by_channel"]) == {channel}
        assert found["missing"] == found["differences_by_channel"][channel]["missing"] > 0


def test_the_same_store_twice_is_refused(tmp_path, redis_url, bucket):
    node = Node("n1", tmp_path, redis_url, bucket)
    done = cli("compare", "--left", redis_url, "--right", redis_url, "--config", node.config)
    assert done.returncode == exits.CONFIG
    assert cli("compare", "--left", "ftp://x", "--right", redis_url, "--config", node.config).returncode == exits.CONFIG
