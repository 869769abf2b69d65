"""What the pipeline makes of a bucket as it is now, in this process: feed, decoder, rounds, and an index in memory."""

import itertools
from contextlib import closing

from channelindex import blocks
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.model import IndexMeta
from channelindex.settings import IndexSettings, SourceSettings
from tests.support.history import Membership
from tests.support.running import indexed_channels
from workers.cli.dual_feed import feed_both
from workers.pipeline.source import describe, high_seqnos, open_feed

N_PARTITIONS = 4
_numbers = itertools.count()


def index_once(source: SourceSettings) -> Membership:
    """All channels of the bucket, read from the beginning to where it is now."""
    found = describe(source)
    name = f"one-pass-{next(_numbers)}"
    meta = IndexMeta(blocks.FORMAT_VERSION, found.n_vbuckets, N_PARTITIONS, found.uuid, name)
    decoder = SyncGatewayDecoder()
    with closing(open_feed(source, name, found.uuid, high_seqnos(source), decoder)) as feed:
        feed_both(feed, decoder, meta, [IndexSettings(name, "memory://")])
    return indexed_channels("memory://", name)
