"""The compactor's half in memory. An index in memory that forgets by number and age is not compacted."""

from collections.abc import Mapping, Sequence

from channelindex import epochs
from channelindex.epochs import EpochStart
from channelindex.errors import ConfigInvalid
from channelindex.stores.base import BlockRef, Compacted
from channelindex.stores.compacting import STRAY_S, ChannelSizes, GroupSize, Switch
from channelindex.stores.memory import MemoryIndex
from channelindex.stores.memory_limits import MemoryLimits


class MemoryCompaction:
    """`CompactionStore` in memory.

    Raises:
        ConfigInvalid: the index forgets by itself: which blocks it has, only its limits decide.
    """

    ends_with_header = False

    def __init__(self, index: MemoryIndex) -> None:
        if index.limits != MemoryLimits():
            raise ConfigInvalid(
                "index.store = memory:// forgets by index.memory_max_entries and index.memory_max_age_s, and is not "
                "compacted"
            )
        self._index = index

    def sizes(self, channels: Sequence[str]) -> Sequence[ChannelSizes | None]:
        """See `CompactionStore.sizes`."""
        with self._index.changed:
            self._index.expire()
            return [self._sizes(channel) for channel in channels]

    def _sizes(self, channel: str) -> ChannelSizes | None:
        directories = self._index.directories.get(channel)
        if directories is None:
            return None
        groups = {
            group: GroupSize(directory, len(self._index.blocks[BlockRef(channel, group, directory.number)]))
            for group, directory in directories.items()
        }
        return ChannelSizes(self._index.compacted_of(channel), groups)

    def raise_compacted(self, through: Mapping[int, Sequence[int]], epoch_by_partition: Mapping[int, int]) -> None:
        """See `CompactionStore.raise_compacted`."""
        with self._index.changed:
            for partition, seqnos in through.items():
                record = self._index.records[partition]
                epoch = epoch_by_partition[partition]
                self._index.records[partition] = epochs.compact(record, epoch, seqnos, partition)

    def servers(self) -> int:
        """See `CompactionStore.servers`: an index in memory loses nothing by itself."""
        return 0

    def write_blocks(self, channel: str, group: str, first: int, blocks: Sequence[bytes]) -> None:
        """See `CompactionStore.write_blocks`."""
        with self._index.changed:
            deadline = self._index.monotonic() + STRAY_S
            for number, block in enumerate(blocks, first):
                ref = BlockRef(channel, group, number)
                if ref not in self._index.blocks:
                    self._index.blocks[ref] = bytearray(block)
                    self._index.deadlines[ref] = deadline

    def switch(self, switch: Switch) -> bool:
        """See `CompactionStore.switch`."""
        channel, output = switch.channel, switch.output
        with self._index.changed:
            before = self._index.compacted_of(channel)
            if before.generation != switch.generation:
                return False
            written = [BlockRef(channel, output.group, at) for at in range(len(output.sizes))] if output else []
            if any(ref not in self._index.blocks for ref in written):
                return False
            for ref in written:
                self._index.deadlines.pop(ref, None)
            self._leave(switch, before)
            if output:
                self._index.directories[channel][output.group] = output.directory
                self._index.clocks[channel, output.group] = output.clock
            if switch.floor:
                self._index.floors[channel] = switch.floor
            self._index.expire()
            return True

    def _leave(self, switch: Switch, before: Compacted) -> None:
        """Take what was read out of the directory, and give its blocks their time."""
        channel, gone, next_number = switch.channel, before.gone, before.next_number
        directories = self._index.directories[channel]
        deadline = self._index.monotonic() + switch.grace_s
        for change in switch.changes:
            group, known, removed, active_bytes = change
            present = directories.get(group)
            if present is None:
                continue
            last = known.number - 1
            active = BlockRef(channel, group, known.number)
            if removed and present == known and active_bytes in (None, len(self._index.blocks[active])):
                last = known.number
                if not change.is_output:
                    gone += known.before + len(self._index.blocks[active])
                    next_number = max(next_number, known.number + 1)
                del directories[group]
                self._index.clocks.pop((channel, group), None)
                if active_bytes is not None:
                    del self._index.blocks[active]
                    last = known.number - 1
            else:
                directories[group] = present._replace(first=known.number, dropped=known.before)
            for number in range(known.first, last + 1):
                self._index.deadlines[BlockRef(channel, group, number)] = deadline
        noted = Compacted(before.generation + 1, switch.live, gone, next_number, switch.at)
        assert noted.next_number >= before.next_number, "no number is given twice"
        assert noted.gone >= before.gone, "a channel's counter never falls"
        self._index.compacted[channel] = noted

    def sweep(self, channel: str, grace_s: int, since: int) -> None:
        """See `CompactionStore.sweep`: a switch leaves nothing to be done."""

    def prune(self, partition: int, before: Sequence[EpochStart], after: Sequence[EpochStart]) -> bool:
        """See `CompactionStore.prune`."""
        assert len(after) <= len(before), "an archive becomes shorter"
        with self._index.changed:
            archive = self._index.archives[partition]
            if archive[: len(before)] != tuple(before):
                return False
            self._index.archives[partition] = (*after, *archive[len(before) :])
            return True

    def give_back(self, sizes: Mapping[str, ChannelSizes]) -> None:
        """See `CompactionStore.give_back`: Python reserves next to nothing."""

    def discard(self, channel: str, group: str, n_blocks: int) -> None:
        """See `CompactionStore.discard`."""
        with self._index.changed:
            for number in range(n_blocks):
                ref = BlockRef(channel, group, number)
                self._index.deadlines.pop(ref, None)
                self._index.blocks.pop(ref, None)

    def close(self) -> None:
        """There is nothing to let go of."""
