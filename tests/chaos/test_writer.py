"""A writer knows what the bucket has of it, also of what it put into other channels by a resync."""

import time
from collections.abc import Iterator

import pytest

from devbucket import DevBucket, DevBucketConfig
from devbucket.sync_gateway.layouts import InlineLayout, Layout, XattrLayout
from tests.chaos.record import Record
from tests.chaos.writer import KnownWriter
from tests.support.history import Membership, expected_channels
from tests.support.one_pass import index_once
from tests.support.running import source_of

N_VBUCKETS = 4


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as running:
        yield running


def present(membership: Membership) -> Membership:
    """Who is in which channel. Of who has left, an index that begins later may know less."""
    return {channel: rows for channel in membership if (rows := {row for row in membership[channel] if not row[2]})}


def await_resync(writer: KnownWriter, n: int) -> None:
    before = writer.n_written
    writer.resync_soon(1, n)
    deadline = time.monotonic() + 60
    while writer.n_written < before + n:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("layout", [InlineLayout(), XattrLayout()])
def test_resync_is_part_of_what_was_written(bucket: DevBucket, layout: Layout) -> None:
    writer = KnownWriter(bucket, "doc", layout, 30, per_second=200)
    writer.more(60)
    writer.start()
    await_resync(writer, 10)
    record = Record()
    writer.finish(record)
    moved = [(a["id"], a["rev"]) for a in record.written]
    assert len(moved) > len(set(moved)), "a revision stands there twice"
    assert present(index_once(source_of(bucket))) == present(expected_channels(record.written))


def test_resync_that_the_bucket_lost_is_taken_back(bucket: DevBucket) -> None:
    writer = KnownWriter(bucket, "doc", InlineLayout(), 10, per_second=1)
    writer.more(20)
    highs = bucket.high_seqnos()
    writer.start()
    await_resync(writer, 5)
    record = Record()
    with writer.paused():
        for vb, (before, now) in enumerate(zip(highs, bucket.high_seqnos(), strict=True)):
            bucket.failover(vb, now - before)
        writer.find_what_was_taken_back(range(N_VBUCKETS))
    writer.finish(record)
    assert record.taken_back
    assert present(index_once(source_of(bucket))) == present(expected_channels(record.written))
