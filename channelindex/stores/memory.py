"""The index in the memory of one process: a cache of the newest changes, and what the other stores are compared with.

`MemoryIndex` is the state; writer, owner and reader are views of it. They may be used from several threads.
Nothing of it is left when the process ends. How much it holds of each channel: `channelindex.stores.memory_limits`.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from channelindex import blocks, epochs
from channelindex.epochs import EpochStart, PartitionRecord, new_record
from channelindex.errors import ChangesForgotten, IndexMissing, StaleEpoch
from channelindex.model import Checkpoint, IndexMeta
from channelindex.stores.base import BlockRef, ChannelState, Quarantined
from channelindex.stores.block_writer import BlindAppend, BlockWriter, Rotation, Touch
from channelindex.stores.memory_limits import HeldBlocks, MemoryLimits
from channelindex.stores.meta import check_format, check_meta
from channelindex.stores.records import QUARANTINE_DOCUMENTS


class _Directory(NamedTuple):
    """The active block of a (channel, group), and the epoch that touched it last."""

    number: int
    epoch: int


class MemoryIndex:
    """One index. All that is here is guarded by `changed`, a condition that is notified when the stable clock moves."""

    def __init__(self, limits: MemoryLimits | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.changed = threading.Condition()
        self.limits = limits or MemoryLimits()
        self.monotonic = monotonic
        self.held = HeldBlocks(self.limits)
        self.meta: IndexMeta | None = None
        self.last_epoch = 0
        self.records: list[PartitionRecord] = []
        self.archives: dict[int, tuple[EpochStart, ...]] = defaultdict(tuple)
        self.stable_counter = 0
        self.counter_by_channel: dict[str, int] = defaultdict(int)
        self.directories: dict[str, dict[str, _Directory]] = defaultdict(dict)
        self.blocks: dict[BlockRef, bytearray] = defaultdict(bytearray)
        self.clock_logs: dict[tuple[str, str], bytearray] = defaultdict(bytearray)
        self.counter_by_principal: dict[str, int] = defaultdict(int)
        self.quarantine: deque[Quarantined] = deque(maxlen=QUARANTINE_DOCUMENTS)
        self.n_quarantined = 0

    def seal(self, channel: str, group: str, number: int) -> None:
        """Block *number* is full and the next one has begun: forget what is too much now."""
        if self.limits == MemoryLimits():
            return
        n_entries = blocks.count_entries(bytes(self.blocks[BlockRef(channel, group, number)]))
        for forgotten in self.held.seal((channel, group), number, n_entries, self.monotonic()):
            del self.blocks[BlockRef(channel, group, forgotten)]

    def forget_old(self) -> None:
        """Forget what has become too old; to be called now and then."""
        with self.changed:
            for (channel, group), number in self.held.expire(self.monotonic(), self._count_active):
                del self.blocks[BlockRef(channel, group, number)]

    def _count_active(self, chain: tuple[str, str]) -> int:
        channel, group = chain
        active = BlockRef(channel, group, self.directories[channel][group].number)
        return blocks.count_entries(bytes(self.blocks[active]))

    def required_meta(self, index_name: str) -> IndexMeta:
        """The meta record.

        Raises:
            IndexMissing: the index was not created.
            IndexMismatch: it is of another format version.
        """
        if self.meta is None:
            raise IndexMissing(f"there is no index {index_name!r} in this process's memory")
        check_format(self.meta.format, index_name)
        return self.meta


class MemoryBlocks:
    """`BlockOperations` in memory."""

    def __init__(self, index: MemoryIndex) -> None:
        self._index = index

    def append(self, by_channel: Mapping[str, Sequence[BlindAppend]]) -> None:
        """See `BlockOperations.append`."""
        with self._index.changed:
            for channel, appends in by_channel.items():
                for group, number, frame, _ in appends:
                    ref = BlockRef(channel, group, number)
                    if ref in self._index.blocks:  # else it is forgotten, and what comes late was there before
                        self._index.blocks[ref] += frame
                for group, _, _, record in appends:
                    self._index.clock_logs[channel, group] += record
                self._index.counter_by_channel[channel] += 1

    def touch(self, touches: Sequence[Touch]) -> Sequence[tuple[int, int] | None]:
        """See `BlockOperations.touch`."""
        with self._index.changed:
            return [self._touch(touch) for touch in touches]

    def _touch(self, touch: Touch) -> tuple[int, int] | None:
        directory = self._index.directories[touch.channel].get(touch.group)
        if directory and directory.epoch > touch.epoch:
            return None
        number = directory.number if directory else 0
        block = self._index.blocks[BlockRef(touch.channel, touch.group, number)]
        block += touch.frame if directory else touch.header + touch.frame
        self._index.clock_logs[touch.channel, touch.group] += touch.record
        self._index.directories[touch.channel][touch.group] = _Directory(number, touch.epoch)
        self._index.counter_by_channel[touch.channel] += 1
        return number, len(block)

    def clock_logs(self, keys: Sequence[tuple[str, str]]) -> Sequence[bytes]:
        """See `BlockOperations.clock_logs`."""
        with self._index.changed:
            return [bytes(self._index.clock_logs[key]) for key in keys]

    def rotate(self, rotations: Sequence[Rotation]) -> Sequence[bool]:
        """See `BlockOperations.rotate`."""
        with self._index.changed:
            return [self._rotate(rotation) for rotation in rotations]

    def _rotate(self, rotation: Rotation) -> bool:
        channel, group, epoch, number, header, log_bytes, folded = rotation
        if self._index.directories[channel].get(group) != (number, epoch):
            return False
        if len(self._index.clock_logs[channel, group]) != log_bytes:
            return False
        self._index.blocks[BlockRef(channel, group, number + 1)] = bytearray(header)
        self._index.clock_logs[channel, group] = bytearray(folded)
        self._index.directories[channel][group] = _Directory(number + 1, epoch)
        self._index.seal(channel, group, number)
        return True

    def count_principals(self, keys: Sequence[str]) -> None:
        """See `BlockOperations.count_principals`."""
        with self._index.changed:
            for key in keys:
                self._index.counter_by_principal[key] += 1
            self._index.counter_by_principal[""] += len(keys)

    def close(self) -> None:
        """There is nothing to let go of."""


def memory_writer(index: MemoryIndex, block_bytes: int) -> BlockWriter:
    """`IndexWriter` of *index*; a block is full at *block_bytes*, or before where the index holds little."""
    return BlockWriter(MemoryBlocks(index), index.limits.block_bytes(block_bytes))


class MemoryOwner:
    """`OwnerStore` in memory."""

    def __init__(self, index: MemoryIndex, index_name: str) -> None:
        self._index = index
        self._index_name = index_name

    def create_or_check(self, wanted: IndexMeta) -> IndexMeta:
        """See `OwnerStore.create_or_check`."""
        with self._index.changed:
            if self._index.meta is None:
                self._index.meta = wanted
                self._index.records = [
                    new_record(wanted.vbuckets_of(partition).start, wanted.partition_width)
                    for partition in range(wanted.n_partitions)
                ]
            meta = self._index.required_meta(self._index_name)
            check_meta(meta, wanted, self._index_name)
            return meta

    def next_epoch(self) -> int:
        """See `OwnerStore.next_epoch`."""
        with self._index.changed:
            self._index.last_epoch += 1
            return self._index.last_epoch

    def begin(
        self,
        partition: int,
        epoch: int,
        owner: str,
        rollback: Mapping[int, Checkpoint] | None = None,
        only_if: int | None = None,
    ) -> PartitionRecord:
        """See `OwnerStore.begin`."""
        with self._index.changed:
            self._index.required_meta(self._index_name)
            record = self._index.records[partition]
            if not epochs.has_begun(record, epoch, owner, rollback):
                record, old = epochs.archive_old(epochs.begin(record, epoch, owner, rollback, only_if, partition))
                self._index.archives[partition] += old
                self._index.records[partition] = record
            return record

    def begin_all(
        self,
        rollbacks: Mapping[int, Mapping[int, Checkpoint]],
        epoch: int,
        owner: str,
        only_if: int | None = None,
    ) -> list[PartitionRecord]:
        """See `OwnerStore.begin_all`."""
        return [self.begin(partition, epoch, owner, rollback, only_if) for partition, rollback in rollbacks.items()]

    def advance(self, epoch: int, checkpoints: Mapping[int, Mapping[int, Checkpoint]]) -> None:
        """See `OwnerStore.advance`."""
        refused: list[StaleEpoch] = []
        with self._index.changed:
            self._index.required_meta(self._index_name)
            for partition, moved in checkpoints.items():
                try:
                    record = epochs.advance(self._index.records[partition], epoch, moved, partition)
                except StaleEpoch as error:
                    refused.append(error)
                else:
                    self._index.records[partition] = record
            if any(checkpoints.values()):
                self._index.stable_counter += 1
                self._index.changed.notify_all()
        if refused:
            raise refused[0]

    def quarantine(self, documents: Sequence[Quarantined]) -> None:
        """See `OwnerStore.quarantine`."""
        with self._index.changed:
            self._index.quarantine.extendleft(documents)
            self._index.n_quarantined += len(documents)

    def forget_quarantined(self, documents: Sequence[Quarantined]) -> None:
        """See `OwnerStore.forget_quarantined`."""
        forgotten = set(documents)
        with self._index.changed:
            kept = [document for document in self._index.quarantine if document not in forgotten]
            self._index.quarantine.clear()
            self._index.quarantine.extend(kept)

    def close(self) -> None:
        """There is nothing to let go of."""


class MemoryReader:
    """`IndexReader` in memory."""

    def __init__(self, index: MemoryIndex, index_name: str) -> None:
        self._index = index
        self._index_name = index_name

    def meta(self) -> IndexMeta:
        """See `IndexReader.meta`."""
        with self._index.changed:
            return self._index.required_meta(self._index_name)

    def partition_records(self) -> Sequence[PartitionRecord]:
        """See `IndexReader.partition_records`."""
        with self._index.changed:
            self._index.required_meta(self._index_name)
            return list(self._index.records)

    def archived_starts(self, partitions: Sequence[int]) -> Sequence[Sequence[EpochStart]]:
        """See `IndexReader.archived_starts`."""
        with self._index.changed:
            return [self._index.archives[partition] for partition in partitions]

    def channels(self) -> Iterator[str]:
        """See `IndexReader.channels`."""
        with self._index.changed:
            names = list(self._index.directories)
        return iter(names)

    def channel_page(self, start: int, limit: int) -> Sequence[str]:
        """At most *limit* channels from number *start* on, in the order in which they came; none behind the last."""
        with self._index.changed:
            return list(islice(self._index.directories, start, start + limit))

    def channel_states(self, channels: Sequence[str]) -> Sequence[ChannelState | None]:
        """See `IndexReader.channel_states`."""
        with self._index.changed:
            return [self._channel_state(channel) for channel in channels]

    def _channel_state(self, channel: str) -> ChannelState | None:
        directories = self._index.directories.get(channel)
        if not directories:
            return None
        return ChannelState(
            self._index.counter_by_channel[channel],
            {group: directory.number for group, directory in directories.items()},
            {group: bytes(self._index.clock_logs[channel, group]) for group in directories},
        )

    def blocks(self, refs: Sequence[BlockRef]) -> Sequence[bytes | None]:
        """See `IndexReader.blocks`."""
        with self._index.changed:
            return [self._block(ref) for ref in refs]

    def _block(self, ref: BlockRef) -> bytes | None:
        block = self._index.blocks.get(ref)
        if block is not None:
            return bytes(block)
        directory = self._index.directories.get(ref.channel, {}).get(ref.group)
        if directory is None:
            return None
        oldest = ref._replace(number=self._index.held.oldest((ref.channel, ref.group), directory.number))
        if ref.number >= oldest.number:
            return None
        _, _, pairs = next(blocks.iter_frames(bytes(self._index.blocks[oldest])))
        raise ChangesForgotten(ref.channel, blocks.unpack_pairs(pairs))

    def principal_counter(self, key: str) -> int:
        """See `IndexReader.principal_counter`."""
        with self._index.changed:
            return self._index.counter_by_principal.get(key, 0)

    def stable_counter(self) -> int:
        """See `IndexReader.stable_counter`."""
        with self._index.changed:
            return self._index.stable_counter

    def wait_stable(self, counter: int, timeout_s: float) -> int:
        """See `IndexReader.wait_stable`."""
        with self._index.changed:
            self._index.changed.wait_for(lambda: self._index.stable_counter != counter, timeout_s)
            return self._index.stable_counter

    def quarantined(self, limit: int = 100) -> tuple[int, Sequence[Quarantined]]:
        """See `IndexReader.quarantined`."""
        with self._index.changed:
            return self._index.n_quarantined, list(self._index.quarantine)[:limit]

    def close(self) -> None:
        """There is nothing to let go of."""
