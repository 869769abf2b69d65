"""A Redis that deletes keys when its memory is full is no store for an index, and says so before it does."""

from pathlib import Path

import pytest

from channelindex import exits
from channelindex.errors import ConfigInvalid, StoreUnavailable
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner
from channelindex.stores.redis.owner import RedisOwner
from devbucket.bucket_config import DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket
from tests.support.running import cli
from tests.support.stores import META, Backend, checkpoints

EVICTING = ("allkeys-lru", "allkeys-lfu", "allkeys-random")
KEEPING = ("noeviction", "volatile-lru", "volatile-ttl")


@pytest.fixture
def server(tmp_path):
    with EmbeddedRedis(tmp_path) as server:
        yield server


@pytest.fixture
def bucket():
    with DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket:
        yield bucket


@pytest.fixture
def set_policy(server):
    redis = pytest.importorskip("redis")
    with redis.Redis.from_url(server.url) as client:
        yield lambda policy: client.config_set("maxmemory-policy", policy)


@pytest.mark.parametrize("policy", EVICTING)
def test_a_policy_that_evicts_is_refused_before_anything_is_written(server, set_policy, policy):
    set_policy(policy)
    backend = Backend(server.url)
    with pytest.raises(ConfigInvalid, match=rf"maxmemory-policy {policy}.*index\.allow_eviction"):
        backend.owner().create_or_check(META)
    assert backend.reader().stable_counter() == 0
    backend.close()


@pytest.mark.parametrize("policy", KEEPING)
def test_a_policy_that_keeps_the_index_is_accepted(server, set_policy, policy):
    set_policy(policy)
    backend = Backend(server.url)
    assert backend.owner().create_or_check(META) == META
    backend.close()


def test_an_evicting_policy_can_be_allowed(server, set_policy):
    set_policy("allkeys-lru")
    owner = open_owner(IndexSettings("test", server.url, allow_eviction=True))
    assert owner.create_or_check(META) == META
    owner.close()


def test_the_policy_is_looked_at_again_when_the_server_changes(server, set_policy):
    backend = Backend(server.url)
    owner = backend.owner()
    owner.create_or_check(META)
    epoch = owner.next_epoch()
    owner.begin(0, epoch, "n1")
    set_policy("allkeys-lru")
    assert isinstance(owner, RedisOwner)
    owner._link.close()  # what a failover does
    with pytest.raises((ConfigInvalid, StoreUnavailable)) as raised:
        owner.advance(epoch, checkpoints({0: 1}))
    assert "allkeys-lru" in str(raised.value)
    backend.close()


def test_config_check_connects_and_shows_the_policy(server, set_policy, bucket: DevBucket, tmp_path: Path):
    arguments = ["config", "check", "--connect"]
    settings = {"source.url": bucket.url, "source.user": bucket.user, "index.store": server.url}
    for key, value in {**settings, "source.password": bucket.password, "node.run_dir": tmp_path}.items():
        arguments += ["--set", f"{key}={value}"]
    shown = cli(*arguments)
    assert shown.returncode == exits.OK, shown.stderr
    assert "maxmemory-policy noeviction" in shown.stdout
    set_policy("allkeys-lfu")
    refused = cli(*arguments)
    assert refused.returncode == exits.CONFIG
    assert "allkeys-lfu" in refused.stdout
    nowhere = cli(*arguments, "--set", "coordination.redis=redis://127.0.0.1:1")
    assert "coordination.redis" in nowhere.stdout
    locked_out = cli(*arguments, "--set", "source.password=wrong")
    assert "source.user" in locked_out.stdout
