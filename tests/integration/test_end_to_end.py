"""Real data through real processes: a dev bucket, a node, Redis, and what its readers are told."""

import json

import pytest

from devbucket.process import DevBucket
from tests.support.history import expected_channels, lines_of
from tests.support.node import Node
from tests.support.running import assert_verified, await_stable, cli, indexed_channels
from tests.support.shared import shared_path

pytestmark = [pytest.mark.slow, pytest.mark.real_start]


def test_real_history_through_a_running_node_gives_exactly_the_channels_that_the_file_says(tmp_path, redis_url):
    file = shared_path("data/repo-history.jsonl.gz")
    with DevBucket() as bucket, Node("n1", tmp_path, redis_url, bucket).start() as node:
        loaded = cli(
            "load", file, "--bucket", bucket.url, "--json",
            "--set", f"source.user={bucket.user}", "--set", f"source.password={bucket.password}",
        )  # fmt: skip
        assert loaded.returncode == 0, loaded.stderr
        assert json.loads(loaded.stdout)["saved"] == 28_289
        await_stable(redis_url, bucket)
        assert indexed_channels(redis_url) == expected_channels(lines_of(file))
        assert_verified(node.config)
        assert node.drain() == 0
