"""Nodes whose store lost records of the index: what they say, and that an operator gets the index back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from channelindex import exits
from channelindex.stores.redis.keys import Keys
from devbucket import DevBucket, DevBucketConfig
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node, until
from tests.support.ports import free_port
from tests.support.running import assert_verified, await_stable, cli, connect
from tests.support.scrape import get

KEYS = Keys("channels")
N_DOCUMENTS = 200


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket:
        yield bucket


@pytest.fixture
def metrics_port() -> int:
    return free_port()


@pytest.fixture
def node(tmp_path: Path, redis_url: str, bucket: DevBucket, metrics_port: int) -> Iterator[Node]:
    """A node that has indexed the bucket, and serves its health."""
    settings = {
        "index__partitions": 4,
        "index__block_bytes": 2048,
        "metrics__listen": f"127.0.0.1:{metrics_port}",
        "coordination__ttl_s": 1.0,
    }
    with Node("n1", tmp_path, redis_url, bucket, **settings).start() as node:
        _save(bucket, 1)
        await_stable(redis_url, bucket)
        yield node


def _save(bucket: DevBucket, generation: int) -> None:
    with connect(bucket) as client:
        Loader(client, InlineLayout()).load(
            Revision(f"doc-{n}", f"{generation}-{n:032x}", ("a", "c", "d", f"b{n % 7}")) for n in range(N_DOCUMENTS)
        )


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.mark.parametrize("key", [KEYS.partition(2), KEYS.meta])
def test_a_lost_record_is_shown_and_repaired_under_a_running_node(node, bucket, store, redis_url, metrics_port, key):
    """Readiness and status tell; `repair` writes what is missing and verifies, and the node goes on by itself."""
    store.delete(key)
    _save(bucket, 2)
    until(lambda: "damaged" in get(metrics_port, "/readyz")[1], "the node to be unready because of the damage")
    assert get(metrics_port, "/readyz")[0] == 503
    status = cli("status", "--config", node.config)
    assert status.returncode == exits.CORRUPT
    assert key in status.stderr
    assert "channelindex repair" in status.stderr
    repaired = cli("repair", "--yes", "--json", "--config", node.config)
    assert repaired.returncode == exits.OK, repaired.stderr + repaired.stdout
    report = json.loads(repaired.stdout)
    assert report["written"] == {"meta": key == KEYS.meta, "partitions": [] if key == KEYS.meta else [2], "entries": 0}
    assert report["verified"]["ok"]
    until(lambda: get(metrics_port, "/readyz")[0] == 200, "the node to be ready again")
    assert node.running


def damage_channels(store: Any) -> None:
    """The directory of "a" goes, and the first and the active block of each group of "c".

    Each block of "d" has a wrong byte: in its header, in a frame, or at its end.
    """
    assert store.delete(*store.scan_iter("ci:channels:{*}:c:a")) == 1
    blocks = _blocks_of(store, "c")
    for group in {group for group, _ in blocks}:
        numbers = sorted(number for of_group, number in blocks if of_group == group)
        assert len(numbers) > 2, "there are blocks between the two that are lost"
        store.delete(blocks[group, numbers[0]], blocks[group, numbers[-1]])
    for place, key in enumerate(_blocks_of(store, "d").values()):
        block = store.get(key)
        offset = (20, len(block) // 2, len(block) - 1)[place % 3]
        store.setrange(key, offset, bytes([block[offset] ^ 0xFF]))


def _blocks_of(store: Any, channel: str) -> dict[tuple[str, int], str]:
    """The keys of a channel's blocks, by group and number."""
    keys = [key.decode() for key in sorted(store.scan_iter(f"ci:channels:{{*}}:b:*:{channel}"))]
    parts = [key.partition(":b:")[2].split(":") for key in keys]
    return {(group, int(number)): key for key, (group, number, _) in zip(keys, parts, strict=True)}


@pytest.mark.parametrize("command", [("repair", *(f"--channel={c}" for c in "acd")), ("repair",), ("rebuild",)])
def test_channels_of_which_something_is_lost_are_put_back_under_a_running_node(node, bucket, store, redis_url, command):
    """The node goes on by itself, though its writers have stopped with the key again and again."""
    for generation in (2, 3, 4, 5):
        _save(bucket, generation)
        await_stable(redis_url, bucket)
    damage_channels(store)
    _save(bucket, 6)
    verified = cli("verify", "--channel", "a", "--timeout", "1", "--config", node.config)
    assert verified.returncode in {exits.CORRUPT, exits.DIFFERENCES}, verified.stdout
    done = cli(*command, "--yes", "--json", "--config", node.config)
    assert done.returncode == exits.OK, done.stderr + done.stdout
    _save(bucket, 7)
    await_stable(redis_url, bucket)
    assert_verified(node.config)
    told = [
        json.loads(line)
        for line in cli("changes", "a", "c", "d", "--json", "--config", node.config).stdout.splitlines()
    ]
    assert {line["rev"].partition("-")[0] for line in told if "rev" in line} == {"7"}
    assert len(told) == N_DOCUMENTS + 1


def test_entries_that_are_gone_without_a_trace_are_written_again(node, bucket, store, redis_url):
    """A channel with all its keys gone, which nobody writes any more: its documents are still in the bucket."""
    keys = [*store.scan_iter("ci:channels:{*}:*:b3")]
    assert store.delete(*keys) > 1
    done = cli("repair", "--channel", "b3", "--yes", "--json", "--config", node.config)
    assert done.returncode == exits.OK, done.stderr + done.stdout
    assert json.loads(done.stdout)["written"]["entries"] == len([n for n in range(N_DOCUMENTS) if n % 7 == 3])
    assert_verified(node.config)


def test_repair_refuses_what_is_not_there_without_a_question(node, store):
    """A mistyped number or name: nobody is asked to confirm what cannot be done, and no index of that name is made."""
    refused = cli("repair", "--partition", "4", "--config", node.config)
    assert refused.returncode == exits.INPUT
    assert "there is no partition 4: the index has 0 to 3" in refused.stderr
    refused = cli("repair", "--yes", "--set", "index.name=chanels", "--config", node.config)
    assert refused.returncode == exits.MISSING
    assert "no index 'chanels'" in refused.stderr
    assert not [*store.scan_iter("ci:chanels:*")]


def test_rebuild_starts_from_an_index_without_some_partition_records(node, bucket, store, redis_url):
    store.delete(KEYS.partition(0), KEYS.partition(3))
    rebuilt = cli("rebuild", "--yes", "--config", node.config)
    assert rebuilt.returncode == exits.OK, rebuilt.stderr
    await_stable(redis_url, bucket)
    assert_verified(node.config)


def test_forced_rebuild_starts_from_nothing_but_blocks(node, bucket, store, redis_url):
    for key in store.scan_iter("ci:channels:{i}:*"):
        store.delete(key)
    assert node.wait() == exits.MISSING
    refused = cli("rebuild", "--yes", "--no-wait", "--config", node.config)
    assert refused.returncode == exits.MISSING
    forced = cli("rebuild", "--force", "--yes", "--no-wait", "--config", node.config)
    assert forced.returncode == exits.OK, forced.stderr
    node.start()
    await_stable(redis_url, bucket)
    assert_verified(node.config)


def test_loss_of_the_whole_store_ends_the_node_and_a_restart_indexes_anew(node, bucket, store, redis_url):
    """Exit code 66, after which systemd restarts; the new index has another UUID, so tokens of the old are refused."""
    since = json.loads(cli("changes", "a", "--json", "--config", node.config).stdout.splitlines()[-1])["since"]
    store.flushall()
    _save(bucket, 2)
    assert node.wait() == exits.MISSING
    node.start()
    await_stable(redis_url, bucket)
    assert_verified(node.config)
    refused = cli("changes", "a", "--since", since, "--config", node.config)
    assert refused.returncode == exits.TOKEN
    assert "another index" in refused.stderr or "of index" in refused.stderr
    told = cli("changes", "a", "--json", "--config", node.config).stdout.splitlines()
    assert len(told) == N_DOCUMENTS + 1


def test_the_unit_restarts_what_a_restart_cures():
    """A store that lost everything is made anew by a restart, a lost record is waited for; a wrong setting is not."""
    unit = (Path(__file__).resolve().parents[2] / "systemd" / "channelindex@.service").read_text()
    (line,) = [line for line in unit.splitlines() if line.startswith("RestartPreventExitStatus=")]
    final = {int(code) for code in line.partition("=")[2].split()}
    assert final == {exits.USAGE, exits.CONFIG, exits.MISMATCH, exits.AUTH}
