"""The example of docs/dcp-client.md does what it says."""

import os
import subprocess
import sys
from pathlib import Path

from channelindex.feeds.bounded import events
from channelindex.feeds.dcp import KvClient, parse_source_url
from channelindex.model import ORIGIN
from devbucket import DevBucket, DevBucketConfig
from tests.support.dcp_reading import ADMIN, Reading, fill

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "print_changes.py"


def test_it_prints_what_is_there_and_what_comes() -> None:
    with (
        DevBucket(DevBucketConfig(n_vbuckets=8, n_nodes=2)) as bucket,
        KvClient(parse_source_url(bucket.url), ADMIN) as kv,
    ):
        kv.store(b"old", b'{"a":1}')
        command = [sys.executable, str(EXAMPLE), bucket.url, bucket.user]
        environment = {**os.environ, "BUCKET_PASSWORD": bucket.password}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as printing:
            assert printing.stdout is not None
            try:
                vb = kv.vbucket_of(b"old")
                assert printing.stdout.readline() == f"changed {vb}:1 old 7\n"
                kv.delete(b"old")
                assert printing.stdout.readline() == f"deleted {vb}:2 old 0\n"
            finally:
                printing.kill()


def test_the_loop_ends_when_it_is_told() -> None:
    with DevBucket(DevBucketConfig(n_vbuckets=4)) as bucket:
        with KvClient(parse_source_url(bucket.url), ADMIN) as kv:
            fill(kv, 50)
        ends = dict(enumerate(bucket.high_seqnos()))
        with Reading(bucket, dict.fromkeys(range(4), ORIGIN), end_seqnos=ends) as reading:
            came = list(events(reading.feed, reading.feed.ended))
        assert len([event for event in came if event[0] == 0]) == 50
