"""`channelindex tune` tries the operator's own documents in the operator's own store, and leaves nothing there."""

import json

import redis

from channelindex import exits
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node
from tests.support.running import cli, connect


def test_tune_counts_what_it_tried_recommends_and_removes_its_index(tmp_path, redis_url):
    with DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket, redis.Redis.from_url(redis_url) as client:
        config = Node("n1", tmp_path, redis_url, bucket).config
        empty = cli("tune", "--config", config)
        assert empty.returncode != exits.OK
        assert "no document" in empty.stderr
        with connect(bucket) as kv:
            Loader(kv, InlineLayout()).load([Revision(f"doc{n}", "1-a", ("A", f"B{n}")) for n in range(200)])
        keys = sorted(client.scan_iter())
        done = cli("tune", "--config", config, "--cores", "4", "--json")
        assert (done.returncode, done.stderr) == (exits.OK, "")
        found = json.loads(done.stdout)
        assert found["n_documents"] >= 200  # and what the loader keeps in the bucket for itself
        assert found["channel_updates"] >= 201
        assert min(found["feed_us"], found["writer_us"]) > 0
        assert 1 <= found["feed_workers"] <= 8
        assert 1 <= found["batch_writers"] <= 8
        assert sorted(client.scan_iter()) == keys
        text = cli("tune", "--config", config, "--documents", "50").stdout
        assert "workers.feed_workers = " in text
