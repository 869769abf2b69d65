"""Feeds the present contents of a bucket into two new indexes, as one feed worker and one batch writer would."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from channelindex.decode.base import Decoder
from channelindex.errors import SourceUnavailable
from channelindex.feeds.bounded import BoundedFeed, read_to_end
from channelindex.hashing import group_of
from channelindex.model import ORIGIN, Checkpoint, IndexMeta
from channelindex.settings import MEMORY_URL, IndexSettings
from channelindex.stores import memory_index, open_owner, open_writer
from channelindex.stores.base import OwnerStore
from workers.pipeline.direct import DirectOutbox
from workers.pipeline.round import Round, RoundBuilder


def feed_both(feed: BoundedFeed, decoder: Decoder, meta: IndexMeta, targets: Sequence[IndexSettings]) -> None:
    """Write all changes of *feed*, up to its end, to the new indexes *targets* of *meta*. The caller closes *feed*.

    Raises:
        SourceUnavailable: the feed sent nothing for bounded.SILENCE_TIMEOUT_S, or the source rolled back meanwhile.
        StoreUnavailable, OutcomeUnknown: a store failed; the indexes are incomplete.
    """
    assert targets, "somebody is fed"
    origins = dict.fromkeys(range(meta.n_vbuckets), ORIGIN)
    builder = RoundBuilder(decoder, 1, origins)
    written = [_IndexTarget(settings, meta) for settings in targets]
    try:
        feed.start(origins)
        for taken in _rounds(feed, builder):
            for target in written:
                target.write(taken)
        for target in written:
            target.advance()
    finally:
        for target in written:
            target.close()


class _IndexTarget:
    """Writes one of the two indexes."""

    def __init__(self, settings: IndexSettings, meta: IndexMeta) -> None:
        self._meta = meta
        self._owner: OwnerStore = open_owner(settings)
        self._store = open_writer(settings)
        part = memory_index(settings).limits.part_entries if settings.store == MEMORY_URL else 0
        self._outbox = DirectOutbox(self._store, part)
        self._owner.create_or_check(meta)
        self._epoch = self._owner.next_epoch()
        self._owner.begin_all({partition: {} for partition in range(meta.n_partitions)}, self._epoch, "compare")
        self._group = group_of(range(meta.n_partitions), meta.n_partitions)

    def write(self, taken: Round) -> None:
        self._outbox.put(taken, self._epoch, self._group)

    def advance(self) -> None:
        by_partition: defaultdict[int, dict[int, Checkpoint]] = defaultdict(dict)
        for vb, checkpoint in self._outbox.pop_committed().items():
            by_partition[vb // self._meta.partition_width][vb] = checkpoint
        self._owner.advance(self._epoch, by_partition)

    def close(self) -> None:
        self._owner.close()
        self._store.close()


def _rounds(feed: BoundedFeed, builder: RoundBuilder) -> Iterator[Round]:
    for events in read_to_end(feed):
        builder.add(events)
        if builder.rollbacks:
            raise SourceUnavailable("the source rolled back while it was read; compare again")
        taken = builder.take()
        if taken is not None:
            yield taken
