"""The index in the memory of one process: a cache of the newest changes, and what the other stores are compared with.

`MemoryIndex` is the state; writer, owner and reader are views of it. They may be used from several threads.
Nothing of it is left when the process ends. How much it holds of each channel: `channelindex.stores.memory_limits`.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice

from channelindex import blocks, epochs, timeline
from channelindex.epochs import EpochStart, PartitionRecord, new_record
from channelindex.errors import ChangesForgotten, IndexMissing, StaleEpoch
from channelindex.model import Checkpoint, IndexMeta
from channelindex.stores.active import BlindAppend, LocatingAppend, Location
from channelindex.stores.base import (
    NEVER_COMPACTED,
    BlockRef,
    ChannelState,
    Compacted,
    Directory,
    GroupState,
    OwnerStore,
    Quarantined,
    Restored,
    StableView,
)
from channelindex.stores.block_writer import TAIL_BYTES, Asked, BlockWriter, Move, lost_block
from channelindex.stores.memory_limits import HeldBlocks, MemoryLimits
from channelindex.stores.meta import check_format, check_meta
from channelindex.stores.records import QUARANTINE_DOCUMENTS, view_of
from channelindex.timeline import Moment


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
        self.timelines: dict[int, list[Moment]] = defaultdict(list)
        self.stable_counter = 0
        self.directories: dict[str, dict[str, Directory]] = defaultdict(dict)
        self.blocks: dict[BlockRef, bytearray] = {}
        self.clocks: dict[tuple[str, str], bytes] = {}
        self.compacted: dict[str, Compacted] = {}
        self.floors: dict[str, bytes] = {}
        self.deadlines: dict[BlockRef, float] = {}
        """Times at which blocks go, by `monotonic`: those that compaction has read, and output that nobody names."""
        self.counter_by_principal: dict[str, int] = defaultdict(int)
        self.quarantine: deque[Quarantined] = deque(maxlen=QUARANTINE_DOCUMENTS)
        self.n_quarantined = 0

    def seal(self, channel: str, group: str, number: int) -> None:
        """Block *number* is full and the next one has begun: forget what is too much now."""
        assert self.directories[channel][group].number >= number, "the active block is not sealed"
        if self.limits == MemoryLimits():
            return
        n_entries = blocks.count_entries(bytes(self.blocks[BlockRef(channel, group, number)]))
        for forgotten in self.held.seal((channel, group), number, n_entries, self.monotonic()):
            del self.blocks[BlockRef(channel, group, forgotten)]

    def group_state(self, channel: str, group: str) -> GroupState | None:
        """The state of a (channel, group); None if nobody wrote it."""
        directory = self.directories.get(channel, {}).get(group)
        if directory is None:
            return None
        block = self.blocks[BlockRef(channel, group, directory.number)]
        assert directory.upto <= len(block), "the clock sums up bytes that are there"
        clock, live = self.clocks.get((channel, group), b""), self.compacted_of(channel).live
        return GroupState(directory, clock, bytes(block[directory.upto :]), live)

    def compacted_of(self, channel: str) -> Compacted:
        """The notes of compaction on *channel*."""
        return self.compacted.get(channel, NEVER_COMPACTED)

    def expire(self) -> None:
        """Forget the blocks whose time is over."""
        now = self.monotonic()
        for ref in [ref for ref, deadline in self.deadlines.items() if deadline <= now]:
            del self.deadlines[ref]
            self.blocks.pop(ref, None)

    def forget_old(self) -> None:
        """Forget what has become too old; to be called now and then."""
        with self.changed:
            self.expire()
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

    tail_bytes = TAIL_BYTES
    notices_others = True

    def __init__(self, index: MemoryIndex) -> None:
        self._index = index

    def append(self, appends: Sequence[BlindAppend]) -> Sequence[BlindAppend]:
        """See `BlockOperations.append`. In an index that forgets, what comes for a forgotten block was there before."""
        gone: BlockRef | None = None
        unexpected: list[BlindAppend] = []
        with self._index.changed:
            for append in appends:
                channel, group, number, size, frame = append
                ref = BlockRef(channel, group, number)
                block = self._index.blocks.get(ref)
                if block is not None:
                    block += frame
                    if len(block) != size:
                        unexpected.append(append)
                elif self._index.limits == MemoryLimits():
                    gone = ref
        if gone is not None:
            raise lost_block(gone.key, gone.channel)
        return unexpected

    def append_and_locate(self, appends: Sequence[LocatingAppend]) -> Sequence[Location | None]:
        """See `BlockOperations.append_and_locate`."""
        with self._index.changed:
            return [self._append_and_locate(append) for append in appends]

    def _append_and_locate(self, append: LocatingAppend) -> Location | None:
        channel, group, epoch, header, frame = append
        directory = self._index.directories[channel].get(group)
        if directory is None:
            number = self._index.compacted_of(channel).next_number
            directory = Directory(number, epoch, first=number)
            self._index.blocks[BlockRef(channel, group, number)] = bytearray(header)
        elif directory.epoch > epoch:
            return None
        block = self._index.blocks[BlockRef(channel, group, directory.number)]
        block += frame
        self._index.directories[channel][group] = directory._replace(epoch=epoch)
        return Location(directory.number, len(block), directory.upto, self._index.compacted_of(channel).live)

    def groups(self, asked: Sequence[Asked]) -> Sequence[GroupState | None]:
        """See `BlockOperations.groups`; tails are whole."""
        with self._index.changed:
            return [self._index.group_state(channel, group) for channel, group, _ in asked]

    def is_compacted(self, channel: str) -> bool:
        """See `BlockOperations.is_compacted`."""
        with self._index.changed:
            return self._index.compacted_of(channel).generation > 0

    def move(self, moves: Sequence[Move]) -> Sequence[bool]:
        """See `BlockOperations.move`."""
        with self._index.changed:
            return [self._move(move) for move in moves]

    def _move(self, move: Move) -> bool:
        channel, group, known, new, clock = move
        if self._index.directories[channel].get(group) != known:
            return False
        assert new.number - known.number in (0, 1), "blocks are numbered without gaps"
        if move.rotates:
            if len(self._index.blocks[BlockRef(channel, group, known.number)]) != move.size:
                return False
            self._index.blocks[BlockRef(channel, group, new.number)] = bytearray(clock)
            self._index.seal(channel, group, known.number)
        self._index.clocks[channel, group] = clock
        self._index.directories[channel][group] = new
        return True

    def count_principals(self, keys: Sequence[str]) -> None:
        """See `BlockOperations.count_principals`."""
        with self._index.changed:
            for key in keys:
                self._index.counter_by_principal[key] += 1
            self._index.counter_by_principal[""] += len(keys)

    def servers(self) -> int:
        """See `BlockOperations.servers`: there is none."""
        return 0

    def close(self) -> None:
        """There is nothing to let go of."""


def memory_writer(index: MemoryIndex, block_bytes: int) -> BlockWriter:
    """`IndexWriter` of *index*; a block is full at *block_bytes*, or before where the index holds little."""
    return BlockWriter(MemoryBlocks(index), index.limits.block_bytes(block_bytes))


class MemoryOwner(OwnerStore):
    """`OwnerStore` in memory."""

    def __init__(self, index: MemoryIndex, index_name: str) -> None:
        self._index = index
        self._index_name = index_name

    def servers(self) -> int:
        """See `OwnerStore.servers`: there is none."""
        return 0

    def create_or_check(self, expected: IndexMeta) -> IndexMeta:
        """See `OwnerStore.create_or_check`."""
        with self._index.changed:
            if self._index.meta is None:
                self._index.meta = expected
                self._index.records = [
                    new_record(expected.vbuckets_of(partition).start, expected.partition_width)
                    for partition in range(expected.n_partitions)
                ]
                assert sum(len(record.checkpoints) for record in self._index.records) == expected.n_vbuckets
            meta = self._index.required_meta(self._index_name)
            check_meta(meta, expected, self._index_name)
            return meta

    def restore(self, expected: IndexMeta, partitions: Collection[int] = (), *, from_nothing: bool = False) -> Restored:
        """See `OwnerStore.restore`. Memory loses nothing by itself."""
        with self._index.changed:
            if not from_nothing:
                self._index.required_meta(self._index_name)
            wrote_meta = self._index.meta is None
            meta = self.create_or_check(expected)
            for partition in partitions:
                vbuckets = meta.vbuckets_of(partition)
                self._index.records[partition] = new_record(vbuckets.start, len(vbuckets))
                self._index.archives[partition] = ()
                self._index.timelines[partition] = []
            return Restored(meta, wrote_meta, tuple(sorted(partitions)))

    def next_epoch(self) -> int:
        """See `OwnerStore.next_epoch`."""
        with self._index.changed:
            assert all(record.epoch <= self._index.last_epoch for record in self._index.records), "no epoch comes twice"
            self._index.last_epoch += 1
            return self._index.last_epoch

    def begin_all(
        self,
        rollbacks: Mapping[int, Mapping[int, Checkpoint]],
        epoch: int,
        owner: str,
        only_if: int | None = None,
    ) -> list[PartitionRecord]:
        """See `OwnerStore.begin_all`."""
        begun: list[PartitionRecord] = []
        with self._index.changed:
            self._index.required_meta(self._index_name)
            for partition, rollback in rollbacks.items():
                record = self._index.records[partition]
                if not epochs.has_begun(record, epoch, owner, rollback):
                    before = record
                    record, old = epochs.archive_old(epochs.begin(record, epoch, owner, rollback, only_if, partition))
                    self._index.archives[partition] += old
                    self._index.records[partition] = record
                    if epochs.goes_back(before, record):
                        self._raise_stable_counter()
                begun.append(record)
        return begun

    def advance(self, epoch: int, checkpoints: Mapping[int, Mapping[int, Checkpoint]]) -> None:
        """See `OwnerStore.advance`."""
        refused: list[StaleEpoch] = []
        moved_any = False
        with self._index.changed:
            self._index.required_meta(self._index_name)
            for partition, moved in checkpoints.items():
                try:
                    record = epochs.advance(self._index.records[partition], epoch, moved, partition)
                except StaleEpoch as error:
                    refused.append(error)
                else:
                    self._index.records[partition] = record
                    moved_any = moved_any or bool(moved)
            if moved_any:
                self._raise_stable_counter()
        if refused:
            raise refused[0]

    def _raise_stable_counter(self) -> None:
        self._index.stable_counter += 1
        self._index.changed.notify_all()

    def note_moments(self, epoch: int, partitions: Collection[int], now_s: float) -> None:
        """See `OwnerStore.note_moments`."""
        with self._index.changed:
            for partition in partitions:
                record, moments = self._index.records[partition], self._index.timelines[partition]
                if record.epoch != epoch or (moments and moments[-1].checkpoints == record.checkpoints):
                    continue
                new = Moment(int(now_s * 1000), epoch, 0, record.checkpoints)
                self._index.timelines[partition] = timeline.with_moment(moments, new)

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

    def stable_view(self) -> StableView:
        """See `IndexReader.stable_view`."""
        with self._index.changed:
            return view_of(self._index.required_meta(self._index_name), self._index.records)

    def partition_records(self, partitions: Sequence[int] | None = None) -> Sequence[PartitionRecord]:
        """See `IndexReader.partition_records`."""
        with self._index.changed:
            self._index.required_meta(self._index_name)
            if partitions is None:
                return list(self._index.records)
            return [self._index.records[partition] for partition in partitions]

    def archived_starts(self, partitions: Sequence[int]) -> Sequence[Sequence[EpochStart]]:
        """See `IndexReader.archived_starts`."""
        with self._index.changed:
            return [self._index.archives[partition] for partition in partitions]

    def timelines(self, partitions: Sequence[int]) -> Sequence[Sequence[Moment]]:
        """See `IndexReader.timelines`."""
        with self._index.changed:
            return [list(self._index.timelines[partition]) for partition in partitions]

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
        groups = {group: self._index.group_state(channel, group) for group in self._index.directories.get(channel, ())}
        compacted = self._index.compacted_of(channel)
        if not groups and not compacted.generation:
            return None
        floor = self._index.floors.get(channel, b"")
        return ChannelState({group: state for group, state in groups.items() if state}, compacted, floor)

    def mark(self, _channel: str, _state: ChannelState | None) -> None:
        """See `IndexReader.mark`. It cannot say."""

    def changed(self, marks: Sequence[bytes]) -> Sequence[bool]:
        """See `IndexReader.changed`."""
        return [True] * len(marks)

    def watch(self) -> None:
        """See `IndexReader.watch`. It cannot be watched."""

    def blocks(self, refs: Sequence[BlockRef]) -> Sequence[bytes | None]:
        """See `IndexReader.blocks`."""
        with self._index.changed:
            return [self._block(ref) for ref in refs]

    def _block(self, ref: BlockRef) -> bytes | None:
        block = self._index.blocks.get(ref)
        if block is not None:
            return bytes(block)
        directory = self._index.directories.get(ref.channel, {}).get(ref.group)
        if directory is None or self._index.limits == MemoryLimits():
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
