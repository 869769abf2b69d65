"""All index stores behind one handle, entries to write, a plain reader to judge them, and a store that fails."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from channelindex.blocks import ENTRIES, FORMAT_VERSION, HEADER, iter_entries, iter_frames, pack_entry, unpack_pairs
from channelindex.epochs import Bounds, PartitionRecord, whole_record
from channelindex.errors import OutcomeUnknown, StoreUnavailable, Transient
from channelindex.model import Checkpoint, Entry, IndexMeta
from channelindex.settings import IndexSettings
from channelindex.stores import open_compaction, open_owner, open_reader
from channelindex.stores.base import BlockRef, ChannelAppend, IndexReader, OwnerStore
from channelindex.stores.block_writer import REMEMBERED_BLOCKS, BlockOperations, BlockWriter
from channelindex.stores.compacting import CompactionStore
from channelindex.stores.couchbase.link import Link
from channelindex.stores.couchbase.writer import CouchbaseBlocks
from channelindex.stores.memory import MemoryBlocks, MemoryIndex, MemoryOwner, MemoryReader
from channelindex.stores.memory_compaction import MemoryCompaction
from channelindex.stores.redis.writer import RedisBlocks
from devbucket.bucket_config import DevBucketConfig

_T = TypeVar("_T")

GROUP = "00112233aabbccdd"
META = IndexMeta(
    format=FORMAT_VERSION, n_vbuckets=16, n_partitions=4, source_uuid="bucket-uuid", index_uuid="index-uuid"
)


def _told(variable: str, default: str) -> str:
    """What make was told; it exports the variables that it was told nothing of as empty ones."""
    return os.environ.get(variable) or default


def settings_of(url: str, index_name: str) -> IndexSettings:
    """The settings of the store with a URL; a bucket's account is the dev bucket's, or make test-couchbase's."""
    if not url.startswith("couchbase"):
        return IndexSettings(index_name, url)
    return IndexSettings(
        index_name,
        url,
        user=_told("COUCHBASE_USER", DevBucketConfig.user),
        password=_told("COUCHBASE_PASSWORD", DevBucketConfig.password),
        ca_file=_told("COUCHBASE_CA_FILE", ""),
        scope=_told("COUCHBASE_SCOPE", "_default"),
        collection=_told("COUCHBASE_COLLECTION", "_default"),
        durability=_told("COUCHBASE_DURABILITY", "majority"),
    )


class Backend:
    """One index in one store; opens as many writers, owners and readers of it as a test wants."""

    def __init__(self, url: str, index_name: str = "test") -> None:
        self.url = url
        self.index_name = index_name
        self.memory = MemoryIndex() if url == "memory://" else None
        self.settings = settings_of(url, index_name)
        self._opened: list[Any] = []

    def operations(self) -> BlockOperations:
        """The atomic operations of the write half."""
        operations = self._new_operations()
        self._opened.append(operations)
        return operations

    def _new_operations(self) -> BlockOperations:
        if self.memory:
            return MemoryBlocks(self.memory)
        if self.url.startswith("couchbase"):
            return CouchbaseBlocks(self.settings)
        return RedisBlocks(self.url, self.index_name)

    def writer(
        self,
        block_bytes: int = 65536,
        remembered_blocks: int = REMEMBERED_BLOCKS,
        operations: BlockOperations | None = None,
    ) -> BlockWriter:
        """A writer in its first life."""
        return BlockWriter(operations or self.operations(), block_bytes, remembered_blocks)

    def compaction(self) -> CompactionStore:
        """A compactor's half."""
        opened = MemoryCompaction(self.memory) if self.memory else open_compaction(self.settings)
        self._opened.append(opened)
        return opened

    def owner(self) -> OwnerStore:
        """An owner's half."""
        owner = MemoryOwner(self.memory, self.index_name) if self.memory else open_owner(self.settings)
        self._opened.append(owner)
        return owner

    def reader(self) -> IndexReader:
        """A read half."""
        reader = MemoryReader(self.memory, self.index_name) if self.memory else open_reader(self.settings)
        self._opened.append(reader)
        return reader

    def link(self) -> Link:
        """The connection of a bucket's store, to look at its documents and to change them."""
        link = Link(self.settings)
        self._opened.append(link)
        return link

    def close(self) -> None:
        """Close all that was opened."""
        for opened in self._opened:
            opened.close()


def entry(vb: int, seqno: int, key: str = "", rev: str = "1-a", flags: int = 0) -> Entry:
    """An entry whose key says where it is from, unless it is given."""
    return Entry(vb, seqno, (key or f"doc-{vb}-{seqno}").encode(), rev, flags)


def append(channel: str, epoch: int, *entries: Entry, group: str = GROUP) -> ChannelAppend:
    """What a batch adds to *channel*."""
    return ChannelAppend(channel, group, epoch, b"".join(map(pack_entry, entries)))


def checkpoints(seqno_by_vb: Mapping[int, int], vbuuid: int = 1) -> dict[int, dict[int, Checkpoint]]:
    """What `advance` takes, at the end of a snapshot each, for an index like META."""
    moved: dict[int, dict[int, Checkpoint]] = {}
    for vb, seqno in seqno_by_vb.items():
        checkpoint = Checkpoint(vbuuid, seqno, seqno, seqno, 0)
        moved.setdefault(vb // META.partition_width, {})[vb] = checkpoint
    return moved


class StoredBlock(NamedTuple):
    """One block, taken apart: the header's clock, and (epoch, entry) in the order of the block."""

    header: dict[int, int]
    entries: list[tuple[int, Entry]]


def stored_blocks(reader: IndexReader, channel: str) -> dict[str, list[StoredBlock]]:
    """All blocks of a channel by group, from 0 to the active one; fails where one is missing or has no header."""
    (state,) = reader.channel_states([channel])
    if state is None:
        return {}
    blocks_by_group: dict[str, list[StoredBlock]] = {}
    for group, of_group in state.groups.items():
        directory = of_group.directory
        refs = [BlockRef(channel, group, number) for number in range(directory.first, directory.number + 1)]
        blocks_by_group[group] = [
            _taken_apart(ref, block) for ref, block in zip(refs, reader.blocks(refs), strict=True)
        ]
    return blocks_by_group


def _taken_apart(ref: BlockRef, block: bytes | None) -> StoredBlock:
    assert block is not None, f"{ref} is missing"
    frames = list(iter_frames(block))
    assert frames[0][0] == HEADER, f"{ref} has no header"
    assert all(kind == ENTRIES for kind, _, _ in frames[1:]), f"{ref} has a second header"
    entries = [(epoch, each) for _, epoch, body in frames[1:] for each in iter_entries(body)]
    return StoredBlock(unpack_pairs(frames[0][2]), entries)


def all_entries(reader: IndexReader, channel: str) -> list[tuple[int, Entry]]:
    """Every stored (epoch, entry) of a channel, whether live or not."""
    blocks = stored_blocks(reader, channel).values()
    return [stored for in_group in blocks for block in in_group for stored in block.entries]


def whole_records(reader: IndexReader) -> list[PartitionRecord]:
    """The partition records with their whole histories."""
    return [_whole_record(reader, partition, record) for partition, record in enumerate(reader.partition_records())]


def _whole_record(reader: IndexReader, partition: int, record: PartitionRecord) -> PartitionRecord:
    return whole_record(record, reader.archived_starts([partition])[0] if record.archived else ())


def visible_entries(reader: IndexReader, channel: str, partition_width: int = META.partition_width) -> set[Entry]:
    """The entries of a channel that the rule of epochs lets a reader see now."""
    records = whole_records(reader)
    return {
        each
        for epoch, each in all_entries(reader, channel)
        if each.seqno <= visible_limit(records[each.vb // partition_width], epoch, each.vb)
    }


def visible_limit(record: PartitionRecord, epoch: int, vb: int) -> int:
    """The highest seqno of *vb* at which an entry of *epoch* is visible to who has *record*, a whole one.

    Said for one entry; `IndexSnapshot`, which readers use, says it for all vbuckets of an index at once.
    """
    if epoch > record.epoch:
        return 0
    return min(Bounds(record).bound(epoch, vb), record.stable[vb - record.first_vb])


def check_headers(reader: IndexReader, channel: str, records: Sequence[PartitionRecord], partition_width: int) -> None:
    """Fail if a reader that stops at a block whose header its `since` covers could miss a live entry before it."""
    bounds = [Bounds(_whole_record(reader, partition, record)) for partition, record in enumerate(records)]
    for group, blocks in stored_blocks(reader, channel).items():
        last_block: dict[Entry, int] = {}
        for number, block in enumerate(blocks):
            for epoch, each in block.entries:
                if each.seqno <= bounds[each.vb // partition_width].bound(epoch, each.vb):
                    last_block[each] = number
        for each, number in last_block.items():
            for later in range(number + 1, len(blocks)):
                covered = blocks[later].header.get(each.vb, 0)
                assert covered >= each.seqno, (channel, group, each, number, later, blocks[later].header)


class FaultyOperations:
    """A store's atomic operations; chosen calls fail before or after they took effect, are late, or happen twice.

    `next_faults` are used up one per call. A call that is "late" raises `OutcomeUnknown` and is kept in `late`, to be
    executed when the test likes: a request that is still on the wire when its sender has given up on it.
    """

    def __init__(self, operations: BlockOperations) -> None:
        self._operations = operations
        self.tail_bytes = operations.tail_bytes
        self.notices_others = operations.notices_others
        self.next_faults: list[str] = []
        self.late: list[Callable[[], Any]] = []
        self.calls: list[str] = []

    def servers(self) -> int:
        """The servers are always there to be asked."""
        return self._operations.servers()

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._operations, name)

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            fault = self.next_faults.pop(0) if self.next_faults else "none"
            if fault == "before":
                raise StoreUnavailable(f"{name}: injected, before it took effect")
            if fault == "late":
                self.late.append(lambda: operation(*arguments))
                raise OutcomeUnknown(f"{name}: injected, it will take effect later")
            result = operation(*arguments)
            if fault == "after":
                raise OutcomeUnknown(f"{name}: injected, after it took effect")
            return operation(*arguments) if fault == "twice" else result

        return call


def until_done(act: Callable[..., _T]) -> _T:
    """What *act* returns, asked again until the store answers."""
    for _ in range(200):
        try:
            return act()
        except Transient:
            continue
    raise AssertionError("it never succeeded")


def write_until_done(writer: BlockWriter, appends: Sequence[ChannelAppend], principals: Iterable[str] = ()) -> set[int]:
    """What the batch writer does: the same batch again until the store takes it."""
    for _ in range(100):
        try:
            return writer.write(appends, principals)
        except (StoreUnavailable, OutcomeUnknown):
            continue
    raise AssertionError("the store never took the batch")
