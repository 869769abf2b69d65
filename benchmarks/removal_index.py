"""An index for the benchmarks of removal: written as owners and batch writers would, with a clock of its own."""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from channelindex import blocks
from channelindex.compaction.compactor import Compactor
from channelindex.compaction.due import Extent
from channelindex.hashing import group_of
from channelindex.model import Checkpoint, Entry, IndexMeta
from channelindex.settings import CompactionSettings, IndexSettings
from channelindex.stores import open_compaction, open_owner, open_reader, open_writer
from channelindex.stores.base import BlockRef, ChannelAppend
from channelindex.stores.block_writer import full_at
from coordinator.plan import Member, target
from workers.node.spread import spread

N_VBUCKETS = 64
N_PARTITIONS = 16
START_S = 1_800_000_000.0
"""Time at which the index begins, in Unix seconds."""

Row = tuple[str, int, str, str, int]
"""(channel, vbucket, document, revision, flags)."""


class Space(NamedTuple):
    """What an index takes: bytes and number of blocks, groups of all channels, and of the channel with most.

    `active_bytes` is the most that active blocks may hold: a block that is full, for each channel and group.
    """

    n_bytes: int
    n_blocks: int
    n_groups: int
    most_groups: int
    active_bytes: int


class Shares:
    """The partitions of each feed worker of some nodes, of which one after the other goes, and comes back.

    Who gets what is decided as nodes decide it. Of no nodes: two workers, each with half of all, at random each time.
    """

    def __init__(self, n_nodes: int, n_feeds: int) -> None:
        assert n_nodes != 1, "nobody could take over"
        self._nodes = [Member(f"node-{number}") for number in range(n_nodes)]
        self._workers = {node: [frozenset[int]()] * n_feeds for node, _, _ in self._nodes}
        self._leases: dict[int, str] = {}
        self._homes: dict[int, str] = {}
        self._n_hand_overs = 0
        self._random = random.Random(15)

    def hand_over(self) -> list[list[int]]:
        """Who is away comes back, else the next one goes; the partitions of each worker then."""
        if not self._nodes:
            numbers = self._random.sample(range(N_PARTITIONS), N_PARTITIONS)
            return [numbers[: N_PARTITIONS // 2], numbers[N_PARTITIONS // 2 :]]
        turn, is_back = divmod(self._n_hand_overs, 2)
        self._n_hand_overs += 1
        there = list(self._nodes)
        if not is_back:
            away = there.pop(turn % len(there)).node
            self._homes = {partition: node for partition, node in self._leases.items() if node == away}
            self._workers[away] = [frozenset()] * len(self._workers[away])
        held = {member.node for member in there}
        self._leases = {partition: node for partition, node in self._leases.items() if node in held}
        self._leases |= dict(target(there, self._leases, N_PARTITIONS, self._homes).takers())
        for node, workers in self._workers.items():
            self._workers[node] = spread([p for p, owner in self._leases.items() if owner == node], workers)
        return [sorted(worker) for workers in self._workers.values() for worker in workers if worker]


class RemovalIndex:
    """One index whose partitions *shares* gives to workers; to be closed. `now_s` is its time."""

    def __init__(self, url: str, block_bytes: int, settings: CompactionSettings, shares: Shares | None = None) -> None:
        index = IndexSettings(
            "removal", url, block_bytes=block_bytes, memory_max_entries=0, memory_min_entries=0, memory_max_age_s=0.0
        )
        self.now_s = START_S
        self._owner, self._writer, self.reader = open_owner(index), open_writer(index), open_reader(index)
        self._store = open_compaction(index)
        self._block_bytes = block_bytes
        self.meta = IndexMeta(blocks.FORMAT_VERSION, N_VBUCKETS, N_PARTITIONS, "source", "removal")
        self._owner.create_or_check(self.meta)
        self.compactor = Compactor(self._store, self.reader, settings, block_bytes, clock=lambda: self.now_s)
        self._seqnos = [0] * N_VBUCKETS
        self._sharing = shares or Shares(0, 1)
        self._shares: list[tuple[int, str, Sequence[int]]] = []
        self.written = self.rewritten = self.pruned = 0

    def hand_over(self) -> None:
        """Share the partitions out anew: each worker begins an epoch in the group of its share."""
        self._shares = []
        for share in self._sharing.hand_over():
            epoch = self._owner.next_epoch()
            self._owner.begin_all({partition: {} for partition in share}, epoch, "bench")
            self._shares.append((epoch, group_of(share, N_PARTITIONS), share))

    def write(self, rows: Iterable[Row]) -> None:
        """Index *rows*, in one batch of each worker."""
        by_vb: defaultdict[int, list[Row]] = defaultdict(list)
        for row in rows:
            by_vb[row[1]].append(row)
        for epoch, group, share in self._shares:
            packed: defaultdict[str, list[bytes]] = defaultdict(list)
            for partition in share:
                for vb in self.meta.vbuckets_of(partition):
                    self._pack(by_vb.get(vb, ()), packed)
            batch = [ChannelAppend(channel, group, epoch, b"".join(each)) for channel, each in packed.items()]
            self.written += sum(len(append.entries) for append in batch)
            assert not batch or not self._writer.write(batch), "nobody else owns the partitions"

    def _pack(self, rows: Iterable[Row], packed: Mapping[str, list[bytes]]) -> None:
        before = ""
        for channel, vb, document, rev, flags in rows:
            self._seqnos[vb] += document + rev != before
            before = document + rev
            entry = Entry(vb, self._seqnos[vb], document.encode(), rev, flags)
            packed[channel].append(blocks.pack_entry(entry))

    def settle(self, seconds: float) -> None:
        """Make all that was written stable, note the moment, and let *seconds* pass."""
        for epoch, _, share in self._shares:
            moved = {
                partition: {
                    vb: Checkpoint(1, self._seqnos[vb], self._seqnos[vb], self._seqnos[vb])
                    for vb in self.meta.vbuckets_of(partition)
                }
                for partition in share
            }
            self._owner.advance(epoch, moved)
            self._owner.note_moments(epoch, share, self.now_s)
        self.now_s += seconds

    def compact(self, *, all_channels: bool = False) -> None:
        """Do what a node's compactor does at one look; with *all_channels*, to all of them, due or not."""
        channels = list(self.reader.channels())
        self.pruned += self.compactor.prune(lambda: channels)
        due = [(each.channel, each.extent) for each in self.compactor.find_due(channels)]
        for channel, extent in [(channel, Extent.FULL) for channel in channels] if all_channels else due:
            self.rewritten += self.compactor.compact(channel, extent).bytes_written

    def space(self) -> Space:
        """What it takes now."""
        n_bytes = n_blocks = n_groups = most_groups = active_bytes = 0
        for sizes in self._store.sizes(list(self.reader.channels())):
            assert sizes is not None, "a channel that is listed has a directory"
            n_bytes += sizes.n_bytes
            n_groups += len(sizes.groups)
            active_bytes += len(sizes.groups) * full_at(sizes.compacted.live, self._block_bytes)
            most_groups = max(most_groups, len(sizes.groups))
            n_blocks += sum(group.directory.number - group.directory.first + 1 for group in sizes.groups.values())
        return Space(n_bytes, n_blocks, n_groups, most_groups, active_bytes)

    def count_entries(self) -> int:
        """Number of entries in all blocks."""
        channels = list(self.reader.channels())
        n_entries = 0
        for channel, state in zip(channels, self.reader.channel_states(channels), strict=True):
            for name, group in state.groups.items() if state else ():
                numbers = range(group.directory.first, group.directory.number + 1)
                there = self.reader.blocks([BlockRef(channel, name, number) for number in numbers])
                n_entries += sum(blocks.count_entries(block or b"") for block in there)
        return n_entries

    def record_bytes(self) -> int:
        """Size of the histories of all partitions, archives included, at 8 bytes for each number in them."""
        numbers = range(N_PARTITIONS)
        histories = [record.history for record in self.reader.partition_records()]
        starts = [start for history in (*histories, *self.reader.archived_starts(numbers)) for start in history]
        return sum(8 * (1 + len(start.starts)) for start in starts)

    def close(self) -> None:
        """Let go of the store."""
        for store in (self._owner, self._writer, self.reader, self._store):
            store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
