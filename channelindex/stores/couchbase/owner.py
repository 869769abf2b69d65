"""The owner's half in a bucket: a record is a document, replaced only if it is still what the new one was made from."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from channelindex import epochs, timeline
from channelindex.epochs import EpochStart, PartitionRecord
from channelindex.errors import IndexCorrupt, IndexMissing, StaleEpoch, Transient
from channelindex.model import Checkpoint, IndexMeta
from channelindex.settings import IndexSettings
from channelindex.stores.base import OwnerStore, Quarantined, RepairedChannels, Restored
from channelindex.stores.couchbase.channel_repair import repair_channels
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Link, Stored, append_or_create
from channelindex.stores.couchbase.partition_records import decode_record, encode_record
from channelindex.stores.couchbase.quarantine_document import Quarantine, decode_quarantine, encode_quarantine
from channelindex.stores.meta import check_meta, check_width, decode_meta, encode_meta, lost_meta, missing_index
from channelindex.stores.records import pack_history, pack_moment, unpack_archive, unpack_moments
from channelindex.timeline import Moment

MAX_ATTEMPTS = 50
"""Lost comparisons before an operation gives up: each means that another owner changed the record in a round trip."""


class CouchbaseOwner(OwnerStore):
    """`OwnerStore` in a bucket."""

    note_interval_s = 10.0

    def __init__(self, settings: IndexSettings, link: Link | None = None) -> None:
        self._index_name = settings.name
        self._keys = Keys(settings.name)
        self._link = link or Link(settings)
        self._known_meta: IndexMeta | None = None

    def servers(self) -> int:
        """See `OwnerStore.servers`, and `CouchbaseBlocks.servers`."""
        return 0

    def create_or_check(self, expected: IndexMeta) -> IndexMeta:
        """See `OwnerStore.create_or_check`. The meta record comes last: where it is, all partition records are.

        Raises:
            IndexCorrupt: it is not there, and a partition had an owner: it was lost.
        """
        self._link.check_durability(self._keys.meta)
        if self._stored(self._keys.meta) is None:
            self._refuse_lost_meta(expected)
            self._link.insert(
                {
                    self._keys.partition(expected, partition): encode_record(
                        epochs.new_record(expected.vbuckets_of(partition).start, expected.partition_width)
                    )
                    for partition in range(expected.n_partitions)
                }
            )
            self._link.insert({self._keys.meta: encode_meta(expected)})
        meta = self._read_meta()
        check_meta(meta, expected, self._index_name)
        self._known_meta = meta
        return meta

    def _refuse_lost_meta(self, expected: IndexMeta) -> None:
        """Raise if a partition had an owner and the meta record is not there even now: another node may have begun."""
        keys = [self._keys.partition(expected, partition) for partition in range(expected.n_partitions)]
        for partition, (key, stored) in enumerate(zip(keys, self._link.get(keys), strict=True)):
            if stored is not None and decode_record(stored, expected.vbuckets_of(partition), key).epoch:
                if self._stored(self._keys.meta) is None:
                    raise lost_meta(self._keys.meta)
                return

    def restore(self, expected: IndexMeta, partitions: Collection[int] = (), *, from_nothing: bool = False) -> Restored:
        """See `OwnerStore.restore`. The UUID is nowhere else: a meta record that is written anew has another one."""
        found = self._meta_if_readable()
        if found is not None:
            check_meta(found, expected, self._index_name)
        elif widths := self._widths(expected):
            check_width(widths[0], expected, self._index_name)
        elif not from_nothing and not self._has_records(expected):
            raise missing_index(self._index_name)
        meta = found or expected
        broken = [p for p in range(meta.n_partitions) if p in partitions or not self._is_whole(meta, p)]
        for partition in broken:
            new = encode_record(epochs.new_record(meta.vbuckets_of(partition).start, meta.partition_width))
            self._overwrite(self._keys.timeline(partition), b"")
            self._overwrite(self._keys.partition(meta, partition), new)
        if found is None:
            self._overwrite(self._keys.meta, encode_meta(meta))
        self._known_meta = meta
        return Restored(meta, found is None, tuple(broken))

    def repair_channels(self, channels: Collection[str] | None = None, floor: bytes = b"") -> RepairedChannels:
        """See `OwnerStore.repair_channels`."""
        return repair_channels(self._link, self._keys, channels, floor)

    def _meta_if_readable(self) -> IndexMeta | None:
        try:
            return self._read_meta()
        except (IndexMissing, IndexCorrupt):
            return None

    def _widths(self, expected: IndexMeta) -> list[int]:
        """The number of vbuckets in partition records that are there; that of *expected* first, if it is among them."""
        n_vbuckets, own = expected.n_vbuckets, expected.partition_width
        shapes = [
            msgspec.structs.replace(expected, n_partitions=n_vbuckets // width)
            for width in range(1, n_vbuckets + 1)
            if n_vbuckets % width == 0
        ]
        there = (shape.partition_width for shape in shapes if self._stored(self._keys.partition(shape, 0)) is not None)
        return sorted(there, key=lambda width: width != own)

    def _has_records(self, expected: IndexMeta) -> bool:
        """True if there is a meta record, or a partition record of the shape of *expected*, readable or not."""
        records = (self._keys.partition(expected, partition) for partition in range(expected.n_partitions))
        return any(self._stored(key) is not None for key in (self._keys.meta, *records))

    def _is_whole(self, meta: IndexMeta, partition: int) -> bool:
        """True if the record of *partition* can be read, and its archive is complete."""
        key, archive = self._keys.partition(meta, partition), self._keys.archive(partition)
        try:
            record = decode_record(self._stored(key), meta.vbuckets_of(partition), key)
            old = self._stored(archive)
            epochs.whole_record(record, unpack_archive(old.value if old else b"", meta.partition_width, archive))
        except IndexCorrupt:
            return False
        return True

    def _overwrite(self, key: str, value: bytes) -> None:
        """Store *value*, whatever is there."""
        for _ in range(MAX_ATTEMPTS):
            stored = self._stored(key)
            if stored is None:
                changed = self._link.insert({key: value})
            else:
                changed = self._link.replace({key: Stored(value, stored.cas)})
            if not changed:
                return
        raise Transient(f"{key} changed {MAX_ATTEMPTS} times while it was to be written anew")

    def next_epoch(self) -> int:
        """See `OwnerStore.next_epoch`. A number whose reply was lost is never used."""
        key = self._keys.epoch
        return self._link.increment({key: 1}, initial=time.time_ns() // 1_000_000)[key]

    def begin_all(
        self,
        rollbacks: Mapping[int, Mapping[int, Checkpoint]],
        epoch: int,
        owner: str,
        only_if: int | None = None,
    ) -> list[PartitionRecord]:
        """See `OwnerStore.begin_all`."""
        begun: dict[int, PartitionRecord] = {}
        for _ in range(MAX_ATTEMPTS):
            waiting = [partition for partition in rollbacks if partition not in begun]
            if not waiting:
                return [begun[partition] for partition in rollbacks]
            successors: dict[int, tuple[PartitionRecord, int]] = {}
            old_by_partition: dict[int, tuple[EpochStart, ...]] = {}
            going_back: set[int] = set()
            for partition, (record, cas) in self._records(waiting).items():
                if epochs.has_begun(record, epoch, owner, rollbacks[partition]):
                    begun[partition] = record
                    continue
                new = epochs.begin(record, epoch, owner, rollbacks[partition], only_if, partition)
                assert new.epoch == epoch, "it has begun"
                kept, old_by_partition[partition] = epochs.archive_old(new)
                successors[partition] = kept, cas
                if epochs.goes_back(record, new):
                    going_back.add(partition)
            self._archive(old_by_partition)
            changed = self._replace(successors)
            if going_back - changed:
                self._raise_stable_counter()
            begun |= {partition: record for partition, (record, _) in successors.items() if partition not in changed}
        raise Transient(f"partitions {waiting}: their records changed {MAX_ATTEMPTS} times while epoch {epoch} began")

    def advance(self, epoch: int, checkpoints: Mapping[int, Mapping[int, Checkpoint]]) -> None:
        """See `OwnerStore.advance`."""
        refused: list[StaleEpoch] = []
        moved_any = False
        pending: Collection[int] = list(checkpoints)
        for _ in range(MAX_ATTEMPTS):
            advanced: dict[int, tuple[PartitionRecord, int]] = {}
            for partition, (record, cas) in self._records(pending).items():
                try:
                    moved = epochs.advance(record, epoch, checkpoints[partition], partition)
                except StaleEpoch as error:
                    refused.append(error)
                else:
                    if checkpoints[partition]:
                        advanced[partition] = moved, cas
            pending = self._replace(advanced)
            moved_any = moved_any or len(advanced) > len(pending)
            if not pending:
                break
        else:
            raise Transient(f"partition {min(pending)}: its record changed {MAX_ATTEMPTS} times while it was advanced")
        if moved_any:
            self._raise_stable_counter()
        if refused:
            raise refused[0]

    def note_moments(self, epoch: int, partitions: Collection[int], now_s: float) -> None:
        """See `OwnerStore.note_moments`.

        Of one who lost its partition since the record was read, a moment may still come: it has its epoch, and is
        judged by it.
        """
        records = {p: record for p, (record, _) in self._records(partitions).items() if record.epoch == epoch}
        keys = {self._keys.timeline(partition): record for partition, record in records.items()}
        added: dict[str, bytes] = {}
        replaced: dict[str, Stored] = {}
        for (key, record), stored in zip(keys.items(), self._link.get(list(keys)), strict=True):
            moments = unpack_moments(stored.value if stored else b"", len(record.checkpoints), key)
            if moments and moments[-1].checkpoints == record.checkpoints:
                continue
            moments = timeline.with_moment(moments, Moment(int(now_s * 1000), epoch, 0, record.checkpoints))
            packed = b"".join(map(pack_moment, moments))
            if stored is None:
                added[key] = packed
            else:
                replaced[key] = Stored(packed, stored.cas)
        self._link.insert(added)
        self._link.replace(replaced)  # where somebody else was faster, there is a moment

    def quarantine(self, documents: Sequence[Quarantined]) -> None:
        """See `OwnerStore.quarantine`. Repeating it counts them twice."""
        if documents:
            self._change_quarantine(lambda quarantine: quarantine.add(documents))

    def forget_quarantined(self, documents: Sequence[Quarantined]) -> None:
        """See `OwnerStore.forget_quarantined`."""
        if documents:
            self._change_quarantine(lambda quarantine: quarantine.remove(documents))

    def _change_quarantine(self, change: Callable[[Quarantine], None]) -> None:
        key = self._keys.quarantine
        for _ in range(MAX_ATTEMPTS):
            stored = self._stored(key)
            quarantine = decode_quarantine(stored, key)
            change(quarantine)
            encoded = encode_quarantine(quarantine)
            if stored is None:
                changed = self._link.insert({key: encoded})
            else:
                changed = self._link.replace({key: Stored(encoded, stored.cas)})
            if not changed:
                return
        raise Transient(f"{key} changed {MAX_ATTEMPTS} times while it was to be changed")

    def close(self) -> None:
        """See `OwnerStore.close`."""
        self._link.close()

    def _raise_stable_counter(self) -> None:
        """Begun at the time in us: one of an index that was lost and made anew comes to no value again."""
        self._link.increment({self._keys.stable: 1}, initial=time.time_ns() // 1_000)

    def _meta(self) -> IndexMeta:
        if self._known_meta is None:
            self._known_meta = self._read_meta()
        return self._known_meta

    def _read_meta(self) -> IndexMeta:
        stored = self._stored(self._keys.meta)
        return decode_meta(stored.value if stored else None, self._keys.meta, self._index_name)

    def _stored(self, key: str) -> Stored | None:
        (stored,) = self._link.get([key])
        return stored

    def _records(self, partitions: Collection[int]) -> dict[int, tuple[PartitionRecord, int]]:
        """The records and their CAS.

        Raises:
            IndexMissing: neither they nor the meta record are there.
            IndexCorrupt: some of them are not.
        """
        meta = self._meta()
        keys = [self._keys.partition(meta, partition) for partition in partitions]
        has_meta, *found = self._link.get([self._keys.meta, *keys])
        if has_meta is None:
            if any(found):
                raise lost_meta(self._keys.meta)
            raise IndexMissing(f"{self._keys.meta} is gone, and with it the index {self._index_name!r}")
        records: dict[int, tuple[PartitionRecord, int]] = {}
        for partition, key, stored in zip(partitions, keys, found, strict=True):
            record = decode_record(stored, meta.vbuckets_of(partition), key)
            records[partition] = record, stored.cas if stored else 0
        return records

    def _archive(self, old_by_partition: Mapping[int, tuple[EpochStart, ...]]) -> None:
        """Put what leaves the records into the archives first; it may be in both, and in an archive twice."""
        values = {self._keys.archive(p): pack_history(old) for p, old in old_by_partition.items() if old}
        if values:
            append_or_create(self._link, values)

    def _replace(self, records: Mapping[int, tuple[PartitionRecord, int]]) -> set[int]:
        """Store records where they still have their CAS; the partitions where they have not."""
        assert all(each.epoch > 0 for each, _ in records.values()), "records are created otherwise"
        partition_by_key = {self._keys.partition(self._meta(), partition): partition for partition in records}
        assert len(partition_by_key) == len(records), "each partition has a document of its own"
        changed = self._link.replace(
            {key: Stored(encode_record(records[p][0]), records[p][1]) for key, p in partition_by_key.items()}
        )
        return {partition_by_key[key] for key in changed}
