"""Writes anew what Redis has lost of an index's own records. Slow and rare: a round trip per partition."""

from collections import Counter
from collections.abc import Collection, Sequence

import msgspec

from channelindex import epochs
from channelindex.errors import IndexCorrupt
from channelindex.model import IndexMeta
from channelindex.redis.link import Link
from channelindex.stores import records
from channelindex.stores.base import Restored
from channelindex.stores.meta import check_meta, check_width, decode_meta, encode_meta
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.partitions import RECORD_FIELDS, decode_record


def restore(link: Link, keys: Keys, index_name: str, wanted: IndexMeta, partitions: Collection[int]) -> Restored:
    """See `OwnerStore.restore`."""
    found = _meta(link, keys, index_name)
    if found is not None:
        check_meta(found, wanted, index_name)
    elif widths := _widths(link, keys, wanted):
        check_width(Counter(widths).most_common(1)[0][0], wanted, index_name)
    meta = found or msgspec.structs.replace(wanted, index_uuid=_known_uuid(link, keys, wanted) or wanted.index_uuid)
    broken = [p for p in range(meta.n_partitions) if p in partitions or not _is_whole(link, keys, meta, p)]
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


def _meta(link: Link, keys: Keys, index_name: str) -> IndexMeta | None:
    """The meta record, None if it is missing or cannot be read."""
    try:
        stored = link.execute("GET", keys.meta)
        return decode_meta(stored, keys.meta, index_name) if stored is not None else None
    except IndexCorrupt:
        return None


def _widths(link: Link, keys: Keys, meta: IndexMeta) -> list[int]:
    """The number of vbuckets in each partition record that is there, if only so far that it tells that."""
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


def _is_whole(link: Link, keys: Keys, meta: IndexMeta, partition: int) -> bool:
    """True if the record of *partition* can be read, and its archive is complete."""
    key = keys.partition(partition)
    try:
        fields: Sequence[bytes | None] = link.execute("HMGET", key, *RECORD_FIELDS)
        record = decode_record(fields, meta.vbuckets_of(partition), key)
        archive = link.execute("GET", keys.archive(partition)) or b""
        epochs.whole_record(record, records.unpack_archive(archive, meta.partition_width, key))
    except IndexCorrupt:
        return False
    return True
