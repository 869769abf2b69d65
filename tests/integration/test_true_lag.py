"""The lag that operators are shown is counted, whatever became of the nodes that would report it."""

import json
from typing import Any

from channelindex import exits
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node, until
from tests.support.running import await_stable, cli, connect


def state(node: Node, *arguments: str) -> dict[str, Any]:
    return dict(json.loads(cli("status", "--json", "--config", node.config, *arguments).stdout))


def load(bucket: DevBucket, revisions: list[Revision]) -> None:
    with connect(bucket) as kv:
        Loader(kv, InlineLayout()).load(revisions)


def test_documents_that_wait_are_counted_when_every_node_is_dead(tmp_path, redis_url):
    with DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket, Node("n1", tmp_path, redis_url, bucket).start() as node:
        load(bucket, [Revision(f"a{n}", "1-a", ("x",)) for n in range(100)])
        await_stable(redis_url, bucket)
        until(lambda: cli("status", "--check", "--config", node.config).returncode == exits.OK, "the node to report")
        healthy = cli("status", "--check", "--config", node.config)
        assert healthy.stderr == ""
        assert "lag 0 changes" in healthy.stdout
        node.kill()
        load(bucket, [Revision(f"b{n}", "1-a", ("x",)) for n in range(500)])
        lag = state(node)["lag"]
        assert lag["changes"] >= 500  # and what the loader keeps in the bucket for itself
        assert (lag["counted_by"], lag["bucket_error"]) == ("bucket", None)
        until(lambda: len(state(node)["lag"]["unheard"]) == 64, "every partition to be without a report")
        assert state(node)["lag"]["seconds"] > 0
        checked = cli("status", "--check", "--config", node.config)
        assert checked.returncode == exits.DIFFERENCES
        assert "no node is running" in checked.stderr
        assert f"lag {lag['changes']} changes" in checked.stdout
        assert "no lag" not in cli("top", "--once", "--interval", "0.1", "--config", node.config).stdout
        node.start()
        await_stable(redis_url, bucket)
        until(lambda: cli("status", "--check", "--config", node.config).returncode == exits.OK, "the check to pass")


def test_without_the_bucket_the_lag_of_a_dead_node_is_unknown_and_never_0(tmp_path, redis_url):
    nowhere = ("--set", "source.url=couchbase://127.0.0.1:1/default")
    with DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket, Node("n1", tmp_path, redis_url, bucket).start() as node:
        load(bucket, [Revision("a", "1-a", ("x",))])
        await_stable(redis_url, bucket)
        until(lambda: state(node, *nowhere)["lag"]["changes"] == 0, "the node to report")
        node.kill()
        until(lambda: len(state(node, *nowhere)["lag"]["unheard"]) == 64, "every partition to be without a report")
        lag = state(node, *nowhere)["lag"]
        assert (lag["changes"], lag["seconds"], lag["counted_by"]) == (None, None, "nodes")
        assert "127.0.0.1:1" in lag["bucket_error"]
        checked = cli("status", "--check", "--config", node.config, *nowhere)
        assert checked.returncode == exits.DIFFERENCES
        assert "lag unknown" in checked.stdout
