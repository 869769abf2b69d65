"""Finds out where an index in a Redis Cluster is surely complete, after some of its servers have changed."""

from collections.abc import Mapping, Sequence

from channelindex import epochs, logs, timeline
from channelindex.epochs import PartitionRecord
from channelindex.errors import IndexCorrupt
from channelindex.model import Checkpoint, IndexMeta
from channelindex.redis.link import Link
from channelindex.stores import records
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.timelines import read_timelines

_log = logs.get("index_store")


def fall_back_all(
    link: Link,
    keys: Keys,
    meta: IndexMeta,
    found: Mapping[int, PartitionRecord],
    marks_by_slot: Sequence[Mapping[int, int]],
) -> dict[int, Mapping[int, Checkpoint]]:
    """The checkpoints, by partition and vbucket, up to which the servers that are there now have everything.

    *found* are the records of the partitions that were stable in other servers.

    Raises:
        IndexCorrupt: nothing that is old enough is known of a partition.
    """
    timelines = read_timelines(link, keys, found, meta.partition_width)
    left = [timeline.surviving(moments, marks_by_slot) for moments in timelines]
    lost = [partition for partition, moments in zip(found, left, strict=True) if not moments]
    if lost:
        raise IndexCorrupt(
            f"{keys.partition(lost[0])}: servers of index.store were replaced or restarted, and no time is known of "
            f"which they still have everything of partitions {', '.join(map(str, lost))}: channelindex repair has "
            "these indexed again, channelindex rebuild the whole bucket"
        )
    fallbacks: dict[int, Mapping[int, Checkpoint]] = {}
    for (partition, record), moments in zip(found.items(), left, strict=True):
        fallbacks[partition] = epochs.fall_back(_whole(link, keys, meta, partition, record), moments)
        _report(partition, record, fallbacks[partition], moments[-1].time_ms)
    return fallbacks


def _whole(link: Link, keys: Keys, meta: IndexMeta, partition: int, record: PartitionRecord) -> PartitionRecord:
    assert partition * meta.partition_width == record.first_vb, "it is the record of this partition"
    if not record.archived:
        return record
    key = keys.archive(partition)
    archive = link.execute("GET", key) or b""
    return epochs.whole_record(record, records.unpack_archive(archive, meta.partition_width, key))


def _report(partition: int, record: PartitionRecord, lowered: Mapping[int, Checkpoint], time_ms: int) -> None:
    seqnos = sum(record.stable[vb - record.first_vb] - checkpoint.seqno for vb, checkpoint in lowered.items())
    if seqnos:
        _log.warning(
            "store.went_back",
            partition=partition,
            seqnos=seqnos,
            complete_at=round(time_ms / 1000, 3),
            msg="servers of index.store were replaced or restarted and may have lost the newest writes: indexed again",
        )
