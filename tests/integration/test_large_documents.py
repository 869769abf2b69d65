"""A feed worker reads on while the source has more, also where few documents fill what a connection holds."""

import time
from contextlib import closing

import pytest

from channelindex.settings import SourceSettings
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from tests.support.feed_rig import META, FeedRig
from workers.pipeline.feed_worker import ReadPace
from workers.pipeline.source import describe, open_feed

BEAT_S = 4.0
DEADLINE_S = 120.0
"""Thirty beats, in which a worker that waited for each would read 4 MB, a window of 128 KiB at each."""
TOGETHER_KILOBYTES = 16_000


@pytest.mark.parametrize("kilobytes", [20, 200])
def test_who_is_behind_does_not_wait_for_the_next_beat(kilobytes):
    """A window of large documents is few events, so what it brings may look like little."""
    n_documents = TOGETHER_KILOBYTES // kilobytes
    value = b'{"text":"%s"}' % (b"x" * 1024 * kilobytes)

    def load(bucket):
        width = META.n_vbuckets
        bucket.bulk_load(
            (number % width, number // width + 1, b"key%d" % number, value) for number in range(n_documents)
        )

    with DevBucket(DevBucketConfig(n_vbuckets=META.n_vbuckets), load=load) as bucket:
        source = SourceSettings(bucket.url, bucket.user, bucket.password)
        feed = open_feed(source, "large", describe(source).uuid)
        with closing(FeedRig(range(META.n_partitions), feed)) as rig:
            rig.worker._pace = ReadPace(BEAT_S)
            deadline = time.monotonic() + DEADLINE_S
            n_stable = 0
            while n_stable < n_documents and time.monotonic() < deadline:
                rig.turn()
                rig.write()
                n_stable = sum(sum(rig.record(partition).stable) for partition in range(META.n_partitions))
            assert n_stable == n_documents
