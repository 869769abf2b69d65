"""What docs/worst-ten-minutes.md says of each disaster is what the commands print when it happens."""

import json
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from channelindex import exits
from devbucket.bucket_config import DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis, find_redis_server
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node, until
from tests.support.pages import Session
from tests.support.ports import free_port
from tests.support.running import await_stable, cli, connect

PAGE = Path(__file__).resolve().parents[2] / "docs" / "worst-ten-minutes.md"
SECTIONS = dict(
    re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
)
REHEARSED = [
    "Two nodes have one name",
    "A name or a password is wrong",
    "The store is full",
    "The disk of the store is full",
    "The store cannot be reached",
    "The store lost everything",
    "Its readers afterwards",
    "All nodes are dead",
]


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as opened:
        yield opened


@contextmanager
def full_disk(store: EmbeddedRedis) -> Iterator[None]:
    """Let no file of the server grow beyond the longest that it has.

    Stands for a disk without room: both end in a write that is cut short, then in one that fails, with another number
    (EFBIG instead of ENOSPC), and Redis takes both alike. Needs no rights, and a server that ignores SIGXFSZ.
    """
    longest = max(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
    before = resource.prlimit(store.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(store.pid, resource.RLIMIT_FSIZE, (longest, before[1]))
    try:
        yield
    finally:
        resource.prlimit(store.pid, resource.RLIMIT_FSIZE, before)


def write(bucket: DevBucket, name: str) -> None:
    with connect(bucket) as client:
        Loader(client, InlineLayout()).load(Revision(f"{name}-{n}", f"1-{n:032x}", ("orders",)) for n in range(20))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="the page is for a shell")
def test_each_disaster_is_reported_as_the_page_says(bucket: DevBucket, tmp_path: Path) -> None:
    port = free_port()
    data = tmp_path / "data"
    data.mkdir()
    server = tmp_path / "redis-server"
    server.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec '{find_redis_server().absolute()}' \"$@\"\n")
    server.chmod(0o700)
    store = EmbeddedRedis(data, save=True, port=port, binary=server)
    write(bucket, "first")
    node = Node("n1", tmp_path, store.url, bucket, index__partitions=4)
    config = shutil.copy(node.config, tmp_path / "channelindex.toml")
    try:
        with node.start(), Session(tmp_path) as session:
            await_stable(store.url, bucket)
            session.follow(SECTIONS["Two nodes have one name"])
            session.follow(SECTIONS["A name or a password is wrong"])
            token = cli("changes", "orders", "--json", "--config", config).stdout
            token = json.loads(token.splitlines()[-1])["since"]

            with redis.Redis.from_url(store.url) as client:
                client.config_set("maxmemory", "1mb")
                session.follow(SECTIONS["The store is full"])
                client.config_set("maxmemory", "0")
            write(bucket, "second")
            await_stable(store.url, bucket)

            with full_disk(store):
                write(bucket, "third")
                until(lambda: "DISK" in cli("status", "--config", config).stdout, "a write that fails")
                session.follow(SECTIONS["The disk of the store is full"])
            await_stable(store.url, bucket)

            store.close()
            session.follow(SECTIONS["The store cannot be reached"])
            shutil.rmtree(data)
            data.mkdir()
            store = EmbeddedRedis(data, save=True, port=port)
            assert node.wait() == exits.MISSING
            session.follow(SECTIONS["The store lost everything"])
            node.start()
            await_stable(store.url, bucket)
            session.follow(SECTIONS["Its readers afterwards"].replace("TOKEN", token))

            node.kill()
            write(bucket, "fourth")
            until(lambda: "dead" in cli("nodes", "--config", config).stdout, "the node to count as dead")
            behind = ("status", "--check", "--max-lag", "1", "--config", config)
            until(lambda: "--max-lag" in cli(*behind).stderr, "the index to be a second behind")
            session.follow(SECTIONS["All nodes are dead"])
    finally:
        store.close()


def test_every_disaster_is_rehearsed() -> None:
    """Sections with commands but those of the first, which are in another."""
    with_commands = [name for name, text in SECTIONS.items() if "```sh" in text]
    assert sorted(with_commands) == sorted([*REHEARSED, "Look"])
