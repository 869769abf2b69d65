"""The calculator: held against a real Redis, and sane at the ends."""

import random
from contextlib import closing

import pytest
import redis

from channelindex import blocks
from channelindex.model import IndexMeta
from channelindex.settings import IndexSettings, WorkerSettings
from channelindex.stores import open_owner, open_writer
from channelindex.stores.base import ChannelAppend
from tests.support.node import until
from workers.cli.sizing import Load, size_of

KEY = b"document::0000042xyz"


def used_memory(url: str) -> int:
    with closing(redis.Redis.from_url(url)) as client:
        return int(client.info("memory")["used_memory"])


def free_memory(url: str) -> None:
    """Wait until the memory of what was flushed before is free: Valkey and newer Redis take their time for that."""
    with closing(redis.Redis.from_url(url)) as client:
        until(lambda: not client.info("memory")["lazyfree_pending_objects"], "what was flushed to be freed")


def append(channel: str, group: str, epoch: int, n_entries: int, first: int) -> ChannelAppend:
    size, rev = blocks.pack_rev("7-" + "a1" * 16)
    heads = [blocks.pack_entry_head(n % 1024, n, 0, len(KEY), size) for n in range(first, first + n_entries)]
    return ChannelAppend(channel, group, epoch, b"".join(head + KEY + rev for head in heads))


@pytest.mark.parametrize(("channels", "per_append", "n_entries"), [(200, 10, 60_000), (5_000, 2, 60_000)])
def test_the_memory_of_a_real_redis_is_what_was_calculated(redis_url, channels, per_append, n_entries):
    settings = IndexSettings("sizes", redis_url)
    random_source = random.Random(1)
    with closing(open_owner(settings)) as owner, closing(open_writer(settings)) as writer:
        owner.create_or_check(IndexMeta(blocks.FORMAT_VERSION, 1024, 64, "bucket", "index"))
        epoch = owner.next_epoch()
        free_memory(redis_url)
        before = used_memory(redis_url)
        seqno = 1
        while seqno <= n_entries:
            batch = []
            for channel in random_source.sample(range(channels), 100):
                group = f"group-{random_source.randrange(2)}"
                batch.append(append(f"channel-{channel:06}", group, epoch, per_append, seqno))
                seqno += per_append
            writer.write(batch)
        used = used_memory(redis_url) - before
    load = Load(n_entries, 1, channels, 1, len(KEY), per_append, nodes=2)
    assert used == pytest.approx(size_of(load).redis_bytes, rel=0.3)


def test_more_load_never_takes_less():
    rates = [size_of(Load(10**7, rate, 1000)) for rate in (1, 1000, 50_000, 10**6)]
    for name in ("feed_workers", "batch_writers", "ring_memory_bytes", "store_cores"):
        values = [getattr(size, name) for size in rates]
        assert values == sorted(values), name


def test_a_small_load_needs_no_more_than_the_defaults():
    size = size_of(Load(changes=1000, rate=100, channels=10))
    assert (size.feed_workers, size.batch_writers) == (1, 1)
    assert size.ring_bytes <= WorkerSettings().ring_bytes
