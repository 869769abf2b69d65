"""`channelindex tune` tries the operator's own documents in the operator's own store, and leaves nothing there."""

import json
import subprocess
import sys

import redis

from channelindex import exits
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node, until
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
        found = json.loads(done.stdout)
        n_documents = found["n_documents"]
        assert (done.returncode, done.stderr.count("\n")) == (exits.OK, 1)
        assert f"has only {n_documents} documents" in done.stderr
        assert n_documents >= 200  # and what the loader keeps in the bucket for itself
        assert found["channel_updates"] >= 201
        assert min(found["feed_us"], found["writer_us"]) > 0
        assert 1 <= found["feed_workers"] <= 8
        assert 1 <= found["batch_writers"] <= 8
        assert sorted(client.scan_iter()) == keys
        enough = cli("tune", "--config", config, "--documents", "50")
        assert "workers.feed_workers = " in enough.stdout
        assert enough.stderr == ""


def test_tune_that_is_terminated_leaves_nothing_either(tmp_path, redis_url):
    with DevBucket(DevBucketConfig(n_vbuckets=4)) as bucket, redis.Redis.from_url(redis_url) as client:
        with connect(bucket) as kv:
            Loader(kv, InlineLayout()).load([Revision("doc", "1-a", ("A",))])
            bucket.stall_disk(True)  # what comes now is held back, so that the trial waits for it
            Loader(kv, InlineLayout()).load([Revision("later", "1-a", ("A",))])
        settings = {"index__partitions": 4, "source__rollback_mitigation": True}
        config = Node("n1", tmp_path, redis_url, bucket, **settings).config
        command = [sys.executable, "-m", "channelindex", "tune", "--config", str(config)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tune:
            until(lambda: [*client.scan_iter("*:tune-*:meta")], "the trial to begin")
            tune.terminate()
            _, said = tune.communicate(timeout=60)
        assert tune.returncode != exits.OK
        assert "Traceback" not in said
        assert [*client.scan_iter("*tune-*")] == []


def test_tune_says_what_is_wrong_as_a_node_would(tmp_path, redis_url):
    with DevBucket(DevBucketConfig(n_vbuckets=4)) as bucket:
        config = Node("n1", tmp_path, redis_url, bucket).config
        refused = cli("tune", "--config", config)
    assert refused.returncode == exits.CONFIG
    assert "index.partitions = 64 does not divide the 4 vbuckets of the bucket: set it to 4" in refused.stderr
