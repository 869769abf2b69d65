"""The read half in a bucket."""

import time
from collections.abc import Iterator, Mapping, Sequence

from channelindex.epochs import EpochStart, PartitionRecord
from channelindex.errors import IndexCorrupt
from channelindex.model import IndexMeta
from channelindex.settings import IndexSettings
from channelindex.stores.base import BlockRef, ChannelState, GroupState, Quarantined, StableView
from channelindex.stores.couchbase.directories import ChannelDirectory, decode_directory, read_groups
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Link, Stored
from channelindex.stores.couchbase.names import iter_names
from channelindex.stores.couchbase.partition_records import decode_record
from channelindex.stores.couchbase.quarantine_document import decode_quarantine
from channelindex.stores.meta import decode_meta
from channelindex.stores.records import unpack_archive, unpack_moments, view_of
from channelindex.timeline import Moment

POLL_S = 0.02
"""Interval at which a waiting reader reads the stable counter, since a bucket notifies nobody. A fiftieth of a second
is shorter than a change takes through a node, and fifty reads a second are nothing to a bucket."""


class CouchbaseReader:
    """`IndexReader` in a bucket."""

    def __init__(self, settings: IndexSettings, link: Link | None = None) -> None:
        self._index_name = settings.name
        self._keys = Keys(settings.name)
        self._link = link or Link(settings)
        self._meta: IndexMeta | None = None

    def meta(self) -> IndexMeta:
        """See `IndexReader.meta`."""
        (stored,) = self._link.get([self._keys.meta])
        return decode_meta(stored.value if stored else None, self._keys.meta, self._index_name)

    def stable_view(self) -> StableView:
        """See `IndexReader.stable_view`. A bucket changes one document at a time, so it has the records alone.

        One round trip from the second call on: the shape of an index of a name hardly ever changes.
        """
        meta = self._meta or self.meta()
        keys = [self._keys.partition(meta, partition) for partition in range(meta.n_partitions)]
        found, *stored = self._link.get([self._keys.meta, *keys])
        self._meta = decode_meta(found.value if found else None, self._keys.meta, self._index_name)
        if self._meta != meta:
            return self.stable_view()
        return view_of(meta, self._decoded(meta, range(meta.n_partitions), keys, stored))

    def partition_records(self, partitions: Sequence[int] | None = None) -> Sequence[PartitionRecord]:
        """See `IndexReader.partition_records`."""
        meta = self.meta()
        selected = range(meta.n_partitions) if partitions is None else partitions
        keys = [self._keys.partition(meta, partition) for partition in selected]
        return self._decoded(meta, selected, keys, self._link.get(keys))

    def _decoded(
        self, meta: IndexMeta, partitions: Sequence[int], keys: Sequence[str], found: Sequence[Stored | None]
    ) -> list[PartitionRecord]:
        return [
            decode_record(stored, meta.vbuckets_of(partition), key)
            for partition, key, stored in zip(partitions, keys, found, strict=True)
        ]

    def archived_starts(self, partitions: Sequence[int]) -> Sequence[Sequence[EpochStart]]:
        """See `IndexReader.archived_starts`."""
        keys = [self._keys.archive(partition) for partition in partitions]
        archives = self._link.get(keys)
        if not any(archives):
            return [()] * len(archives)
        width = self.meta().partition_width
        return [
            unpack_archive(stored.value, width, key) if stored else ()
            for key, stored in zip(keys, archives, strict=True)
        ]

    def timelines(self, partitions: Sequence[int]) -> Sequence[Sequence[Moment]]:
        """See `IndexReader.timelines`."""
        width = self.meta().partition_width
        keys = [self._keys.timeline(partition) for partition in partitions]
        return [
            unpack_moments(stored.value if stored else b"", width, key)
            for key, stored in zip(keys, self._link.get(keys), strict=True)
        ]

    def channels(self) -> Iterator[str]:
        """See `IndexReader.channels`. A name may be there a moment before the channel's first entry."""
        return iter_names(self._link, self._keys)

    def channel_states(self, channels: Sequence[str]) -> Sequence[ChannelState | None]:
        """See `IndexReader.channel_states`."""
        keys = [self._keys.directory(channel) for channel in channels]
        directories = {
            channel: decode_directory(stored, key).directory
            for channel, key, stored in zip(channels, keys, self._link.get(keys), strict=True)
        }
        states = read_groups(self._link, self._keys, directories)
        return [_channel_state(directories[channel], states[channel]) for channel in channels]

    def mark(self, _channel: str, _state: ChannelState | None) -> None:
        """See `IndexReader.mark`. It cannot say."""

    def changed(self, marks: Sequence[bytes]) -> Sequence[bool]:
        """See `IndexReader.changed`."""
        return [True] * len(marks)

    def watch(self) -> None:
        """See `IndexReader.watch`. It cannot be watched."""

    def blocks(self, refs: Sequence[BlockRef]) -> Sequence[bytes | None]:
        """See `IndexReader.blocks`."""
        return [stored and stored.value for stored in self._link.get([self._keys.block(*ref) for ref in refs])]

    def principal_counter(self, key: str) -> int:
        """See `IndexReader.principal_counter`."""
        return self._counters([self._keys.principal(key)])[0]

    def stable_counter(self) -> int:
        """See `IndexReader.stable_counter`."""
        return self._counters([self._keys.stable])[0]

    def wait_stable(self, counter: int, timeout_s: float) -> int:
        """See `IndexReader.wait_stable`. Reads the counter every `POLL_S` seconds."""
        deadline = time.monotonic() + timeout_s
        while True:
            current = self.stable_counter()
            left_s = deadline - time.monotonic()
            if current != counter or left_s <= 0:
                return current
            time.sleep(min(POLL_S, left_s))

    def quarantined(self, limit: int = 100) -> tuple[int, Sequence[Quarantined]]:
        """See `IndexReader.quarantined`."""
        assert limit > 0
        (stored,) = self._link.get([self._keys.quarantine])
        quarantine = decode_quarantine(stored, self._keys.quarantine)
        return quarantine.total, quarantine.documents[:limit]

    def close(self) -> None:
        """See `IndexReader.close`."""
        self._link.close()

    def _counters(self, keys: Sequence[str]) -> list[int]:
        return [_number(key, stored) for key, stored in zip(keys, self._link.get(keys), strict=True)]


def _channel_state(directory: ChannelDirectory, groups: Mapping[str, GroupState]) -> ChannelState | None:
    if not groups and not directory.compacted.generation:
        return None
    return ChannelState(groups, directory.compacted, directory.floor)


def _number(key: str, stored: Stored | None) -> int:
    if stored is None:
        return 0
    if not stored.value.isdigit():
        raise IndexCorrupt(f"{key}: it is no counter")
    return int(stored.value)
