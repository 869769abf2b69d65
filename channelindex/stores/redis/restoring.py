"""Writes anew what Redis has lost of an index's own records. Slow and rare: a round trip per partition."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import msgspec

from channelindex import epochs, timeline
from channelindex.epochs import PartitionRecord
from channelindex.errors import IndexCorrupt
from channelindex.model import IndexMeta
from channelindex.redis.link import Link
from channelindex.stores import records
from channelindex.stores.base import Restored
from channelindex.stores.meta import check_meta, check_width, decode_meta, encode_meta
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.marks import read_marks
from channelindex.stores.redis.partition_records import RECORD_FIELDS, decode_record
from channelindex.stores.redis.timelines import read_timelines


def restore(
    link: Link, keys: Keys, index_name: str, expected: IndexMeta, partitions: Collection[int], servers: int
) -> Restored:
    """See `OwnerStore.restore`. *servers* is the digest of those that are there."""
    found = _meta(link, keys, index_name)
    if found is not None:
        check_meta(found, expected, index_name)
    elif widths := _widths(link, keys, expected):
        check_width(Counter(widths).most_common(1)[0][0], expected, index_name)
    meta = found or msgspec.structs.replace(
        expected, index_uuid=_known_uuid(link, keys, expected) or expected.index_uuid
    )
    is_whole = _PartitionCheck(link, keys, meta, servers).is_whole
    broken = [p for p in range(meta.n_partitions) if p in partitions or not is_whole(p)]
    checkpoints = records.pack_checkpoints(epochs.new_record(0, meta.partition_width).checkpoints)
    names = [
        name
        for partition in broken
        for name in (keys.partition(partition), keys.archive(partition), keys.timeline(partition))
    ]
    replaces = "0" if found else "1"
    stored = link.run("restore", (keys.meta, *names), encode_meta(meta), checkpoints, meta.index_uuid, replaces)
    link.run("view", (keys.view, *map(keys.partition, range(meta.n_partitions))))
    return Restored(decode_meta(stored, keys.meta, index_name), found is None, tuple(broken))


def has_records(link: Link, keys: Keys, expected: IndexMeta) -> bool:
    """True if there is a meta record, or a partition record in whatever number of them, readable or not."""
    names = (keys.meta, *map(keys.partition, range(expected.n_vbuckets)))
    return any(link.pipeline([("EXISTS", name) for name in names]))


def _meta(link: Link, keys: Keys, index_name: str) -> IndexMeta | None:
    """The meta record, None if it is missing or cannot be read."""
    try:
        stored = link.execute("GET", keys.meta)
        return decode_meta(stored, keys.meta, index_name) if stored is not None else None
    except IndexCorrupt:
        return None


def _widths(link: Link, keys: Keys, meta: IndexMeta) -> list[int]:
    """The number of vbuckets in each partition record that is there, if only so far that the number can be read."""
    widths = []
    for partition in range(meta.n_vbuckets):
        try:
            width, rest = divmod(
                len(link.execute("HGET", keys.partition(partition), "ck") or b""), records.CHECKPOINT_BYTES
            )
        except IndexCorrupt:
            continue
        widths += [width] if width and not rest else []
    return widths


def _known_uuid(link: Link, keys: Keys, meta: IndexMeta) -> str:
    """The UUID of the index, from any partition record that is there; "" if none is."""
    for partition in range(meta.n_partitions):
        try:
            found = link.execute("HGET", keys.partition(partition), "index")
        except IndexCorrupt:
            continue
        if found:
            return bytes(found).decode()
    return ""


class _PartitionCheck:
    """Tells partitions that can go on from those that cannot."""

    def __init__(self, link: Link, keys: Keys, meta: IndexMeta, servers: int) -> None:
        self._link = link
        self._keys = keys
        self._meta = meta
        self._servers = servers
        self._marks_by_slot: Sequence[Mapping[int, int]] = () if link.spans_slots else read_marks(link, keys)

    def is_whole(self, partition: int) -> bool:
        """True if its record can be read, its archive is complete, and it is known up to where its blocks are."""
        key = self._keys.partition(partition)
        try:
            servers, *fields = self._link.execute("HMGET", key, "servers", *RECORD_FIELDS)
            record = decode_record(fields, self._meta.vbuckets_of(partition), key)
            archive = self._link.execute("GET", self._keys.archive(partition)) or b""
            epochs.whole_record(record, records.unpack_archive(archive, self._meta.partition_width, key))
            return int(servers or 0) == self._servers or self._is_vouched_for(partition, record)
        except IndexCorrupt:
            return False

    def _is_vouched_for(self, partition: int, record: PartitionRecord) -> bool:
        """True if its next epoch, in servers that its present one did not begin in, has where to begin."""
        if self._link.spans_slots or not epochs.keeps_any(record, {}):
            return True
        (moments,) = read_timelines(self._link, self._keys, [partition], self._meta.partition_width)
        return bool(timeline.surviving(moments, self._marks_by_slot))
