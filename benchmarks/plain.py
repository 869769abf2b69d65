"""What one would write first, to compare with: one process, `orjson.loads`, and a Redis pipeline per batch.

It brings the same entries into Redis: per document and channel an RPUSH, an HSET of the channel's clock and an INCR of
its counter. It has no epochs, no rollback, no checkpoints, no removals that were deduplicated, and nobody to take over.
"""

import select
import time

import orjson
import redis

from channelindex.feeds.base import EXPIRATION
from channelindex.feeds.dcp.client import DcpFeed
from channelindex.model import ORIGIN, STAR_CHANNEL

READ_BYTES = 1 << 20


def index_all(feed: DcpFeed, redis_url: str, n_vbuckets: int, n_documents: int) -> float:
    """Index until *n_documents* have come; seconds since the first of them."""
    feed.start(dict.fromkeys(range(n_vbuckets), ORIGIN))
    done, started = 0, 0.0
    with redis.Redis.from_url(redis_url) as client:
        while done < n_documents:
            feed.tick(time.monotonic())
            events = [event for event in feed.read(READ_BYTES) if event[0] <= EXPIRATION]
            if not events:
                select.select([feed], [], [], 0.01)
                continue
            started = started or time.perf_counter()
            pipeline = client.pipeline(transaction=False)
            for _, vb, seqno, key, _, value in events:
                sync = orjson.loads(value)["_sync"]
                entry = orjson.dumps([vb, seqno, key.decode(), sync["rev"]])
                for channel in (*sync["channels"], STAR_CHANNEL):
                    pipeline.rpush(f"plain:e:{channel}", entry)
                    pipeline.hset(f"plain:k:{channel}", str(vb), seqno)
                    pipeline.incr(f"plain:n:{channel}")
            pipeline.execute()
            feed.acknowledge()
            done += len(events)
    return time.perf_counter() - started
