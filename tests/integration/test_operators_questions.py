"""The answers of docs/operations.md, section "Questions", about what readers and their tokens meet."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import redis

from channelindex import exits
from devbucket.bucket_config import DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.indexing import Row, SmallIndex
from tests.support.node import Node
from tests.support.running import await_stable, cli, connect


def read(store: str, *more: object) -> tuple[int, list[str], str]:
    """The exit code, the documents and the token (or the error) of `channelindex changes`."""
    done = cli("changes", "*", "--json", "--set", f"index.store={store}", *more)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    token = lines[-1]["since"] if lines else done.stderr
    return done.returncode, sorted(line["id"] for line in lines if "id" in line), token


def test_an_index_that_moves_with_its_data_keeps_tokens_and_one_that_is_made_anew_refuses_them(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    with EmbeddedRedis(old, save=True) as server, closing(SmallIndex(server.url)) as index:
        epoch = index.begin()
        index.write(epoch, [Row("*", 0, 1, "a")])
        index.advance(epoch, {0: 1})
        name = f"index.name={index.name}"
        code, documents, token = read(server.url, "--set", name)
        assert (code, documents) == (exits.OK, ["a"])
    shutil.copytree(old / "appendonlydir", new / "appendonlydir")
    with EmbeddedRedis(new, save=True) as server:
        code, documents, later = read(server.url, "--set", name, "--since", token)
        assert (code, documents) == (exits.OK, []), later
        with redis.Redis.from_url(server.url) as client:
            client.flushall()
        assert read(server.url, "--set", name, "--since", token)[0] == exits.MISSING
        with closing(SmallIndex(server.url)) as other:
            code, _, said = read(server.url, "--set", f"index.name={other.name}", "--since", token)
            assert (code, "another index" in said) == (exits.TOKEN, True), said


@pytest.mark.slow
def test_a_changed_star_channel_reaches_old_documents_by_a_rebuild_and_tokens_stay(
    tmp_path: Path, redis_url: str
) -> None:
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as bucket, connect(bucket) as client:
        settings = {"index__partitions": 4, "coordination__ttl_s": 1.0}
        loader = Loader(client, InlineLayout())
        loader.load([Revision("old", "1-a", ("x",))])
        with Node("n1", tmp_path, redis_url, bucket, source__star_channel=False, **settings).start() as before:
            await_stable(redis_url, bucket)
            code, documents, token = read(redis_url)
            assert (code, documents) == (exits.OK, [])
            assert before.drain() == exits.OK
        with Node("n1", tmp_path, redis_url, bucket, **settings).start() as after:
            loader.load([Revision("new", "1-a", ("x",))])
            await_stable(redis_url, bucket)
            code, documents, token = read(redis_url, "--since", token)
            assert (code, documents) == (exits.OK, ["new"]), "what was indexed before is as it was"
            assert cli("rebuild", "--yes", "--config", after.config).returncode == exits.OK
            code, documents, token = read(redis_url, "--since", token)
            assert (code, documents) == (exits.OK, ["new", "old"])
        refused = Node("n1", tmp_path, redis_url, bucket, **{**settings, "index__partitions": 8})
        with refused.start():
            assert refused.wait() == exits.MISMATCH
