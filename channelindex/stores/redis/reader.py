"""The read half in Redis. No MGET: it answers nil for an absent key and for one of the wrong type alike."""

import time
from collections.abc import Iterator, Sequence

from channelindex.epochs import EpochStart, PartitionRecord
from channelindex.errors import StoreUnavailable
from channelindex.model import IndexMeta
from channelindex.redis.link import Link, ServerLink
from channelindex.stores import records
from channelindex.stores.base import BlockRef, ChannelState, ChannelWatch, Quarantined, StableView
from channelindex.stores.meta import decode_meta, lost_record
from channelindex.stores.redis import channel_marks
from channelindex.stores.redis.directories import read_channels, whole_block
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.partition_records import RECORD_FIELDS, decode_record, read_meta
from channelindex.stores.redis.store_link import open_link
from channelindex.stores.redis.timelines import read_timelines
from channelindex.stores.redis.watch import begin_watch
from channelindex.timeline import Moment

_SCAN_COUNT = 1000


class RedisReader:
    """`IndexReader` in Redis. Waits on a second connection, made when it is first needed. *link*: what to read by."""

    def __init__(self, url: str, index_name: str, link: Link | None = None) -> None:
        self._url = url
        self._index_name = index_name
        self._keys = Keys(index_name)
        self._link = link or open_link(url, StoreUnavailable)
        self._subscription = open_link(url, StoreUnavailable)

    def meta(self) -> IndexMeta:
        """See `IndexReader.meta`."""
        return read_meta(self._link, self._keys, self._index_name)

    def stable_view(self) -> StableView:
        """See `IndexReader.stable_view`.

        Raises:
            IndexCorrupt: the view is missing or garbled.
        """
        stored, view = self._link.pipeline([("GET", self._keys.meta), ("GET", self._keys.view)])
        meta = decode_meta(stored, self._keys.meta, self._index_name) if stored is not None else self.meta()
        size = records.view_bytes(meta.n_partitions, meta.partition_width)
        if view is None or len(view) != size:
            raise lost_record(self._keys.view, "of all partitions, the stable view, is missing or garbled")
        return records.unpack_view(view, meta)

    def partition_records(self, partitions: Sequence[int] | None = None) -> Sequence[PartitionRecord]:
        """See `IndexReader.partition_records`."""
        meta = self.meta()
        selected = range(meta.n_partitions) if partitions is None else partitions
        keys = [self._keys.partition(partition) for partition in selected]
        found = self._link.pipeline([("HMGET", key, *RECORD_FIELDS) for key in keys])
        return [
            decode_record(fields, meta.vbuckets_of(partition), key)
            for partition, key, fields in zip(selected, keys, found, strict=True)
        ]

    def archived_starts(self, partitions: Sequence[int]) -> Sequence[Sequence[EpochStart]]:
        """See `IndexReader.archived_starts`."""
        width = self.meta().partition_width
        keys = [self._keys.archive(partition) for partition in partitions]
        found = self._link.pipeline([("GET", key) for key in keys])
        return [records.unpack_archive(blob or b"", width, key) for key, blob in zip(keys, found, strict=True)]

    def timelines(self, partitions: Sequence[int]) -> Sequence[Sequence[Moment]]:
        """See `IndexReader.timelines`."""
        return read_timelines(self._link, self._keys, partitions, self.meta().partition_width)

    def channels(self) -> Iterator[str]:
        """See `IndexReader.channels`."""
        seen: set[str] = set()  # SCAN may return a key twice
        for server in self._link.servers():
            for key in self._scan(server):
                channel = self._keys.channel_of(key)
                if channel is not None and channel not in seen:
                    seen.add(channel)
                    yield channel

    def _scan(self, server: ServerLink) -> Iterator[bytes]:
        cursor = b"0"
        while True:
            cursor, keys = server.execute("SCAN", cursor, "MATCH", self._keys.channel_pattern(), "COUNT", _SCAN_COUNT)
            yield from keys
            if cursor == b"0":
                return

    def channel_states(self, channels: Sequence[str]) -> Sequence[ChannelState | None]:
        """See `IndexReader.channel_states`."""
        return read_channels(self._link, self._keys, channels)

    def mark(self, channel: str, state: ChannelState | None) -> bytes | None:
        """See `IndexReader.mark`."""
        return channel_marks.mark_of(self._keys, channel, state)

    def changed(self, marks: Sequence[bytes]) -> Sequence[bool]:
        """See `IndexReader.changed`."""
        return channel_marks.changed(self._link, self._keys, marks)

    def watch(self) -> ChannelWatch | None:
        """See `IndexReader.watch`."""
        link, messages = [open_link(self._url, StoreUnavailable, reconnects=False) for _ in range(2)]
        if not (isinstance(link, ServerLink) and isinstance(messages, ServerLink)):
            return None  # what the nodes of a cluster report, and when, would have to be put together
        return begin_watch(RedisReader(self._url, self._index_name, link), link, messages, self._keys)

    def blocks(self, refs: Sequence[BlockRef]) -> Sequence[bytes | None]:
        """See `IndexReader.blocks`."""
        return [*map(whole_block, self._link.pipeline([("GET", self._keys.block(*ref)) for ref in refs]))]

    def principal_counter(self, key: str) -> int:
        """See `IndexReader.principal_counter`."""
        return int(self._link.execute("HGET", self._keys.principals, key) or 0)

    def stable_counter(self) -> int:
        """See `IndexReader.stable_counter`."""
        return int(self._link.execute("GET", self._keys.stable) or 0)

    def wait_stable(self, counter: int, timeout_s: float) -> int:
        """See `IndexReader.wait_stable`.

        The counter is read again once the subscription stands: what was raised before is seen by that, what is
        raised after comes as a message.
        """
        deadline = time.monotonic() + timeout_s
        try:
            server = self._subscription.server_of(self._keys.stable)
            server.execute("SUBSCRIBE", self._keys.stable)
            current = self.stable_counter()
            while current == counter and server.listen(max(0.0, deadline - time.monotonic())):
                current = self.stable_counter()
            return current
        finally:
            self._subscription.close()  # messages that nobody reads would pile up in Redis

    def quarantined(self, limit: int = 100) -> tuple[int, Sequence[Quarantined]]:
        """See `IndexReader.quarantined`."""
        assert limit > 0
        total, documents = self._link.pipeline(
            [("GET", self._keys.quarantined), ("LRANGE", self._keys.quarantine, 0, limit - 1)]
        )
        key = self._keys.quarantine
        return int(total or 0), [records.unpack_quarantined(document, key) for document in documents]

    def close(self) -> None:
        """See `IndexReader.close`."""
        self._link.close()
        self._subscription.close()
