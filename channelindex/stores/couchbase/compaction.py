"""The compactor's half in a bucket, which changes one document at a time.

A directory is the one document whose change is the switch. What else has to happen goes before or after it, in an order
that may stop anywhere:

* Output blocks are noted as *pending* in the directory before they are written. The switch demands that they still are.
* Whoever compacts the channel next makes a stray of what is pending: from then on no switch can name it.
* What a switch leaves, and what was pending before, is noted as *strays* in the very document that stops naming it, and
  removed afterwards. If that does not happen, who compacts the channel next does it.

The SDK asks again by itself. So a change that happened may be answered as one that lost a comparison, and one that was
given up may happen late: a switch that finds its output named has happened, and blocks are removed only after the
directory has changed so that nothing that is on its way can name them.

An append never brings a removed block back: it changes only a document that exists.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from channelindex import epochs
from channelindex.epochs import EpochStart
from channelindex.errors import Transient
from channelindex.settings import IndexSettings
from channelindex.stores.base import Compacted, Directory
from channelindex.stores.compacting import ChannelSizes, GroupChange, GroupSize, Switch
from channelindex.stores.couchbase.directories import (
    ChannelDirectory,
    Directories,
    DirectoryEntry,
    StoredDirectory,
    Stray,
)
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Link, Stored
from channelindex.stores.couchbase.partition_records import decode_record, encode_record
from channelindex.stores.meta import decode_meta
from channelindex.stores.records import pack_history

_ATTEMPTS = 50
"""Lost comparisons before an operation gives up: each means that somebody changed a document within a round trip."""


class CouchbaseCompaction:
    """`CompactionStore` in a bucket."""

    ends_with_header = True

    def __init__(self, settings: IndexSettings, link: Link | None = None) -> None:
        self._index_name = settings.name
        self._keys = Keys(settings.name)
        self._link = link or Link(settings)
        self._directories = Directories(self._link, self._keys)

    def sizes(self, channels: Sequence[str]) -> Sequence[ChannelSizes | None]:
        """See `CompactionStore.sizes`. The sizes of active blocks are not known: a bucket reports none."""
        found = self._directories.read(channels)
        return [_sizes(found[channel]) for channel in channels]

    def raise_compacted(self, through: Mapping[int, Sequence[int]], epoch_by_partition: Mapping[int, int]) -> None:
        """See `CompactionStore.raise_compacted`."""
        (stored,) = self._link.get([self._keys.meta])
        meta = decode_meta(stored.value if stored else None, self._keys.meta, self._index_name)
        pending = dict(through)
        for _ in range(_ATTEMPTS):
            keys = {self._keys.partition(meta, partition): partition for partition in pending}
            raised: dict[str, Stored] = {}
            for (key, partition), stored in zip(keys.items(), self._link.get(list(keys)), strict=True):
                record = decode_record(stored, meta.vbuckets_of(partition), key)
                new = epochs.compact(record, epoch_by_partition[partition], pending[partition], partition)
                if new != record and stored:
                    raised[key] = Stored(encode_record(new), stored.cas)
            changed = self._link.replace(raised)
            pending = {keys[key]: pending[keys[key]] for key in changed}
            if not pending:
                return
        raise Transient(f"partition {min(pending)}: its record changed {_ATTEMPTS} times while it was to be compacted")

    def servers(self) -> int:
        """See `CompactionStore.servers`: see `CouchbaseBlocks.servers`."""
        return 0

    def write_blocks(self, channel: str, group: str, first: int, blocks: Sequence[bytes]) -> None:
        """See `CompactionStore.write_blocks`. They live until somebody else compacts the channel.

        If somebody does already, nothing is written: what we wrote before is a stray, and our switch is refused.
        """
        assert blocks, "there is something to write"
        last = first + len(blocks) - 1

        def note(directory: ChannelDirectory) -> bool:
            before = directory.pending
            if any(name == group for name, _, _ in directory.strays):
                return False
            if before is not None and before[0] != group:
                directory.strays = [*directory.strays, before]
            elif before is not None:
                directory.pending = group, 0, max(last, before[2])
                return True
            directory.pending = group, 0, last
            return True

        if self._change(channel, note):
            self._link.insert({self._keys.block(channel, group, first + at): block for at, block in enumerate(blocks)})

    def switch(self, switch: Switch) -> bool:
        """See `CompactionStore.switch`. A group that a present epoch writes stays."""
        sizes = self._removed_sizes(switch)
        output = switch.output
        expected = (output.group, 0, len(output.sizes) - 1) if output else None
        old = self._directories.read([switch.channel])[switch.channel].directory.strays
        self._expire(switch.channel, old, 0)
        left: list[Stray] = []
        is_tried = happened = False

        def change(directory: ChannelDirectory) -> bool:
            nonlocal is_tried, happened
            happened = is_tried and output is not None and output.group in directory.active_by_group
            if directory.compacted.generation != switch.generation or (expected and directory.pending != expected):
                return False
            if _went_back(directory, switch):
                return False
            is_tried = True
            left[:] = _leave(directory, switch, sizes)
            directory.strays = [*(stray for stray in directory.strays if stray not in old), *left]
            return True

        if not self._change(switch.channel, change) and not happened:
            return False
        self._expire(switch.channel, left, switch.grace_s)
        return True

    def _removed_sizes(self, switch: Switch) -> dict[str, int]:
        """The sizes of the active blocks of groups that are to be removed."""
        removed = [change for change in switch.changes if change.removed and not change.is_output]
        keys = [self._keys.block(switch.channel, change.group, change.known.number) for change in removed]
        blocks = self._link.get(keys)
        return {change.group: len(block.value) if block else 0 for change, block in zip(removed, blocks, strict=True)}

    def sweep(self, channel: str, grace_s: int, since: int) -> None:
        """See `CompactionStore.sweep`: who compacts the channel next does it."""

    def prune(self, partition: int, before: Sequence[EpochStart], after: Sequence[EpochStart]) -> bool:
        """See `CompactionStore.prune`."""
        assert len(after) <= len(before), "an archive becomes shorter"
        key = self._keys.archive(partition)
        old, new = pack_history(tuple(before)), pack_history(tuple(after))
        for _ in range(_ATTEMPTS):
            (stored,) = self._link.get([key])
            if stored is None or not stored.value.startswith(old):
                return False
            if not self._link.replace({key: Stored(new + stored.value[len(old) :], stored.cas)}):
                return True
        raise Transient(f"{key} changed {_ATTEMPTS} times while it was to be pruned")

    def give_back(self, sizes: Mapping[str, ChannelSizes]) -> None:
        """See `CompactionStore.give_back`: a bucket writes documents anew."""

    def discard(self, channel: str, group: str, n_blocks: int) -> None:
        """See `CompactionStore.discard`. What is named stays."""
        assert n_blocks > 0
        named = False

        def disown(directory: ChannelDirectory) -> bool:
            nonlocal named
            named = group in directory.active_by_group
            if directory.pending is None or directory.pending[0] != group:
                return False
            directory.strays, directory.pending = [*directory.strays, directory.pending], None
            return True

        self._change(channel, disown)
        if not named:
            self._expire(channel, [(group, 0, n_blocks - 1)], 0)

    def close(self) -> None:
        """See `CompactionStore.close`."""
        self._link.close()

    def _change(self, channel: str, change: Callable[[ChannelDirectory], bool]) -> bool:
        """Let *change* change the directory of *channel*; false if it is not to be changed, or not there."""
        for _ in range(_ATTEMPTS):
            stored = self._directories.read([channel])[channel]
            if stored.cas is None or not change(stored.directory):
                return False
            if not self._directories.write({channel: stored}):
                return True
        raise Transient(f"{self._keys.directory(channel)} changed {_ATTEMPTS} times while it was compacted")

    def _expire(self, channel: str, strays: Iterable[Stray], after_s: int) -> None:
        keys = [
            self._keys.block(channel, group, number)
            for group, first, last in strays
            for number in range(first, last + 1)
        ]
        self._link.expire(keys, after_s)


def _sizes(stored: StoredDirectory) -> ChannelSizes | None:
    if stored.cas is None:
        return None
    groups = {
        group: GroupSize(Directory(number, epoch, before, 0, first, dropped), 0)
        for group, (number, epoch, before, first, dropped) in stored.directory.active_by_group.items()
    }
    return ChannelSizes(stored.directory.compacted, groups)


def _went_back(directory: ChannelDirectory, switch: Switch) -> bool:
    """True if a group is not as far any more as it was read: a bucket without durability forgot that."""
    found = {change.group: directory.active_by_group.get(change.group) for change in switch.changes}
    known = {change.group: (change.known.number, change.known.before) for change in switch.changes}
    return any(
        entry.number < known[group][0] or (entry.number == known[group][0] and entry.before != known[group][1])
        for group, entry in found.items()
        if entry is not None
    )


def _leave(directory: ChannelDirectory, switch: Switch, sizes: Mapping[str, int]) -> list[Stray]:
    """Change *directory* as *switch* says; return what it does not name any more."""
    compacted, groups = directory.compacted, directory.active_by_group
    gone, next_number = compacted.gone, compacted.next_number
    strays: list[Stray] = []
    for change in switch.changes:
        group, known = change.group, change.known
        present = groups.get(group)
        if present is None:
            continue
        last = known.number - 1
        if _is_removed(change, present):
            last = known.number
            if not change.is_output:
                gone += known.before + sizes[group]
                next_number = max(next_number, known.number + 1)
            del groups[group]
        else:
            groups[group] = present._replace(first=known.number, dropped=known.before)
        if last >= known.first:
            strays.append((group, known.first, last))
    output = switch.output
    if output:
        number, epoch, before, _, first, dropped = output.directory
        groups[output.group] = DirectoryEntry(number, epoch, before, first, dropped)
        directory.pending = None
    directory.floor = switch.floor or directory.floor
    directory.compacted = Compacted(switch.generation + 1, switch.live, gone, next_number, switch.at)
    assert directory.compacted.next_number >= compacted.next_number, "no number is given twice"
    return strays


def _is_removed(change: GroupChange, present: DirectoryEntry) -> bool:
    """True if the group leaves: its directory is as it was read, and no present epoch writes it."""
    known = change.known
    as_read = DirectoryEntry(known.number, known.epoch, known.before, known.first, known.dropped)
    return change.removed and change.active_bytes is None and present == as_read
