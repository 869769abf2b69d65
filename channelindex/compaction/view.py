"""Takes the view by which a compactor judges, and fences it before anything is done by it."""

from collections.abc import Sequence
from typing import NamedTuple

from channelindex.compaction.judge import Ages, Judge
from channelindex.epochs import PartitionRecord, whole_record
from channelindex.model import IndexMeta
from channelindex.reading.snapshot import Archives, History, IndexSnapshot
from channelindex.settings import CompactionSettings
from channelindex.stores.base import IndexReader
from channelindex.stores.compacting import CompactionStore
from channelindex.timeline import Moment, newest_before

PRUNED_AFTER_S = 7 * 86400.0
"""Age of an epoch's start before it may be pruned. What a process writes that was stopped in the midst of a request for
longer than that is judged without it."""


class CompactionView(NamedTuple):
    """Partition records at one moment, and how old what is in the index was then."""

    meta: IndexMeta
    records: Sequence[PartitionRecord]
    judge: Judge
    prunable: Sequence[int]
    """By partition, the newest epoch whose start is needed for its age no more; 0 for none."""

    def fence(self, store: CompactionStore) -> None:
        """Raise `compacted_through` to all that is settled, before the first switch by this view.

        Raises:
            StaleEpoch: an epoch began since: take another view.
        """
        settled = self.judge.ages.settled
        through = {
            partition: settled[record.first_vb : record.vbuckets.stop]
            for partition, record in enumerate(self.records)
            if any(settled[record.first_vb : record.vbuckets.stop])
        }
        store.raise_compacted(through, {partition: self.records[partition].epoch for partition in through})


def take_view(reader: IndexReader, settings: CompactionSettings, now_s: float) -> CompactionView:
    """The view at *now_s*, Unix time.

    Raises:
        IndexMissing, IndexCorrupt, StoreUnavailable: see `IndexReader`.
    """
    meta, records = reader.meta(), reader.partition_records()
    archives = Archives(reader)
    snapshot = IndexSnapshot(meta, [seqno for record in records for seqno in record.stable], History(records, archives))
    timelines = reader.timelines(range(meta.n_partitions))
    removal_s = settings.removal_retention_s
    ages = Ages(
        settled=snapshot.stable_before(timelines, now_s - settings.min_lag_s),
        removable=(
            snapshot.stable_before(timelines, now_s - max(removal_s, settings.min_lag_s))
            if removal_s
            else [0] * meta.n_vbuckets
        ),
        dead_epochs=[_epoch_before(moments, now_s - settings.dead_retention_s) for moments in timelines],
        forgets_removals=removal_s > 0,
    )
    longest_s = max(PRUNED_AFTER_S, settings.dead_retention_s, removal_s)  # moments of an older epoch say nothing
    prunable = [_epoch_before(moments, now_s - longest_s) for moments in timelines]
    archived = archives.of(records)
    whole = [whole_record(record, archived.get(partition, ())) for partition, record in enumerate(records)]
    assert len(whole) == meta.n_partitions, "a record for each partition"
    return CompactionView(meta, records, Judge(whole, ages), prunable)


def _epoch_before(moments: Sequence[Moment], time_s: float) -> int:
    moment = newest_before(moments, int(time_s * 1000))
    return moment.epoch if moment else 0
