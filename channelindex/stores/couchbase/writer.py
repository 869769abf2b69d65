"""The operations of the write half in a bucket, which changes one document at a time.

An append is one request for each block: it moves a channel's block, clock and counter at once. What else
`BlockOperations` wants done at once is done in an order in which it may stop anywhere:

* A directory names a block only after it exists.
* To locate a block is to write the directory, even if that says the same as before: its version changes, and with it
  all that somebody made of the older version, a late rotation among it, comes to nothing.
* A rotation writes the next block, then the directory, if it is as it was read. As long as the directory does not name
  the next block, nobody appends to it: one that a rotation left behind half-way holds a header alone and is replaced.
  It is read *before* the directory: if somebody has made it the active one since, its version has changed.
* A directory that compaction changed is another version: what names a block that has left it comes to nothing.
* What a former owner appends to the full block between our look at it and the change of the directory is dead, or there
  already (docs/design/001-epochs.md). So the header need not count it.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from channelindex.blocks import split_header
from channelindex.errors import IndexCorrupt, Transient
from channelindex.settings import IndexSettings
from channelindex.stores.active import BlindAppend, LocatingAppend, Location
from channelindex.stores.base import GroupState
from channelindex.stores.block_writer import Asked, Move, lost_block
from channelindex.stores.couchbase.directories import (
    ChannelDirectory,
    Directories,
    DirectoryEntry,
    StoredDirectory,
    read_groups,
)
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Link, Stored
from channelindex.stores.couchbase.names import add_names

MAX_ATTEMPTS = 50
"""Lost comparisons before an operation gives up: each means that somebody changed a directory within a round trip."""

_MAX_READ_BYTES = 16 << 20
"""About how much is read at once to learn the sizes of blocks."""

_Item = TypeVar("_Item", LocatingAppend, Move)

_Block = tuple[str, str, int]
"""(channel, group, number)."""


class CouchbaseBlocks:
    """`BlockOperations` in a bucket."""

    tail_bytes = sys.maxsize
    """A bucket gives out whole documents only, so nothing is gained by a clock that counts more of the block."""

    notices_others = False
    """Its answers do not say how large a document is now."""

    def __init__(self, settings: IndexSettings, link: Link | None = None) -> None:
        self._keys = Keys(settings.name)
        self._link = link or Link(settings)
        self._directories = Directories(self._link, self._keys)
        self._blocks_per_read = max(1, _MAX_READ_BYTES // settings.block_bytes)

    def append(self, appends: Sequence[BlindAppend]) -> Sequence[BlindAppend]:
        """See `BlockOperations.append`."""
        frames: dict[_Block, bytes] = {}
        for channel, group, number, _, frame in appends:
            block = channel, group, number
            frames[block] = frames.get(block, b"") + frame
        gone = self._append(frames)
        if gone:
            raise lost_block(self._keys.block(*gone), gone[0])
        return ()

    def append_and_locate(self, appends: Sequence[LocatingAppend]) -> Sequence[Location | None]:
        """See `BlockOperations.append_and_locate`."""
        new_blocks: dict[_Block, int] = {}
        live_by_channel: dict[str, int] = {}
        numbers = self._enter(appends, new_blocks, live_by_channel)
        frames: dict[_Block, bytes] = {}
        for append, number in zip(appends, numbers, strict=True):
            if number is not None:
                block = append.channel, append.group, number
                frames[block] = frames.get(block, b"") + append.frame  # of two epochs of a group
        gone = self._append(frames)
        if gone:
            self._refuse_lost(*gone)
            raise lost_block(self._keys.block(*gone), gone[0])
        sizes = self._sizes(frames, new_blocks)
        return [
            None
            if number is None
            else Location(number, sizes[append.channel, append.group, number], 0, live_by_channel[append.channel])
            for append, number in zip(appends, numbers, strict=True)
        ]

    def groups(self, asked: Sequence[Asked]) -> Sequence[GroupState | None]:
        """See `BlockOperations.groups`; tails are whole, as blocks are got."""
        found = self._directories.read({channel for channel, _, _ in asked})
        states = read_groups(self._link, self._keys, {channel: each.directory for channel, each in found.items()})
        return [states[channel].get(group) for channel, group, _ in asked]

    def is_compacted(self, channel: str) -> bool:
        """See `BlockOperations.is_compacted`."""
        return self._directories.read([channel])[channel].directory.compacted.generation > 0

    def move(self, moves: Sequence[Move]) -> Sequence[bool]:
        """See `BlockOperations.move`. Those that do not rotate are refused: a repair made their block shorter."""
        moved = self._change_directories(self._begin_blocks(moves))
        return [move in moved for move in moves]

    def count_principals(self, keys: Sequence[str]) -> None:
        """See `BlockOperations.count_principals`. The sum rises last."""
        deltas: dict[str, int] = {}
        for key in keys:
            counter = self._keys.principal(key)
            deltas[counter] = deltas.get(counter, 0) + 1
        self._link.increment(deltas)
        self._link.increment({self._keys.all_principals: len(keys)})

    def servers(self) -> int:
        """See `BlockOperations.servers`: a bucket keeps what it was given with durability, whichever node has it."""
        return 0

    def close(self) -> None:
        """See `BlockOperations.close`."""
        self._link.close()

    def _append(self, frames: Mapping[_Block, bytes]) -> _Block | None:
        """Append to blocks; return the first one that does not exist."""
        block_by_key = {self._keys.block(*block): block for block in frames}
        missing = self._link.append({key: frames[block] for key, block in block_by_key.items()})
        return block_by_key[min(missing)] if missing else None

    def _refuse_lost(self, channel: str, group: str, number: int) -> None:
        """Raise IndexCorrupt if the directory names the block, which is gone: compaction did not take it."""
        active = self._directories.read([channel])[channel].directory.active_by_group.get(group)
        if active is not None and active.number == number:
            raise IndexCorrupt(
                f"{self._keys.block(channel, group, number)} is gone and its directory names it: the store has lost "
                "data; channelindex repair puts it back"
            )

    def _enter(
        self, appends: Sequence[LocatingAppend], new_blocks: dict[_Block, int], live_by_channel: dict[str, int]
    ) -> list[int | None]:
        """Note the appends in the directories; the number of each one's block, None where it was refused.

        *new_blocks* gets the blocks that this call began, and their sizes, *live_by_channel* `Compacted.live`.
        """
        numbers: dict[LocatingAppend, int | None] = {}
        pending = _by_channel(appends)
        for _ in range(MAX_ATTEMPTS):
            directories = self._directories.read(pending)
            entered: dict[str, StoredDirectory] = {}
            firsts: dict[LocatingAppend, int] = {}
            for channel, of_channel in pending.items():
                directory = directories[channel].directory
                live_by_channel[channel] = directory.compacted.live
                for append in of_channel:
                    if append.group not in directory.active_by_group:
                        firsts[append] = directory.compacted.next_number
                    numbers[append] = _entered(directory, append)
                if any(numbers[append] is not None for append in of_channel):
                    entered[channel] = directories[channel]
            add_names(self._link, self._keys, [channel for channel in entered if directories[channel].cas is None])
            self._begin_groups(firsts, new_blocks)
            changed = self._directories.write(entered)
            if not changed:
                return [numbers[append] for append in appends]
            pending = {channel: pending[channel] for channel in changed}
        raise Transient(f"{self._keys.directory(min(pending))} changed {MAX_ATTEMPTS} times while it was written")

    def _begin_groups(self, firsts: Mapping[LocatingAppend, int], new_blocks: dict[_Block, int]) -> None:
        """Let there be first blocks, by number; a header alone may be left over from who stopped half-way.

        That of a rotation counts what compaction has taken since: it claims too much, never too little.
        """
        append_by_key = {
            self._keys.block(append.channel, append.group, number): append for append, number in firsts.items()
        }
        existing = self._link.insert({key: append.header for key, append in append_by_key.items()})
        for key, append in append_by_key.items():
            if key not in existing:
                new_blocks[append.channel, append.group, firsts[append]] = len(append.header)
        if existing:
            self._require_no_entries({key: append_by_key[key] for key in existing})

    def _require_no_entries(self, append_by_key: Mapping[str, LocatingAppend]) -> None:
        """Accept first blocks that no directory named when it was read, if they have no entry, or one names them now.

        Entries come after the directory: if they are there and it is not, it was lost, with what it said of later
        blocks.
        """
        found = self._link.get(list(append_by_key))
        full = [
            append
            for append, stored in zip(append_by_key.values(), found, strict=True)
            if stored and split_header(stored.value)[1]
        ]
        directories = self._directories.read({append.channel for append in full}) if full else {}
        for append in full:
            if append.group not in directories[append.channel].directory.active_by_group:
                raise IndexCorrupt(
                    f"{self._keys.directory(append.channel)}: the directory of group {append.group} is gone and its "
                    f"block is not: channelindex repair --channel {append.channel!r} has it begin anew"
                )

    def _sizes(self, frames: Mapping[_Block, bytes], new_blocks: Mapping[_Block, int]) -> dict[_Block, int]:
        """The sizes of the blocks to which *frames* were appended. The SDK gives no document's size otherwise."""
        sizes = {block: new_blocks[block] + len(frame) for block, frame in frames.items() if block in new_blocks}
        unknown = [block for block in frames if block not in sizes]
        for start in range(0, len(unknown), self._blocks_per_read):
            chunk = unknown[start : start + self._blocks_per_read]
            found = self._link.get([self._keys.block(*block) for block in chunk])
            sizes |= {block: len(stored.value) for block, stored in zip(chunk, found, strict=True) if stored}
        return sizes

    def _begin_blocks(self, moves: Sequence[Move]) -> list[Move]:
        """Write the next blocks, where directory and full block are as the rotation was made from them."""
        keys = [self._keys.block(move.channel, move.group, move.new.number) for move in moves]
        next_blocks = self._link.get(keys)
        directories = self._directories.read({move.channel for move in moves})
        full_blocks = self._link.get([self._keys.block(move.channel, move.group, move.known.number) for move in moves])
        begun: dict[str, Move] = {}
        new: dict[str, bytes] = {}
        left_over: dict[str, Stored] = {}
        for key, move, next_block, full in zip(keys, moves, next_blocks, full_blocks, strict=True):
            is_as_known = full is not None and len(full.value) == move.size and _names(directories[move.channel], move)
            if not is_as_known or not move.rotates:
                continue
            begun[key] = move
            assert move.new.number == move.known.number + 1, "a bucket's directory moves with its block alone"
            if next_block is None:
                new[key] = move.clock
            else:
                left_over[key] = Stored(move.clock, next_block.cas)
        lost = self._link.insert(new) | self._link.replace(left_over)
        return [begun[key] for key in begun if key not in lost]

    def _change_directories(self, moves: Sequence[Move]) -> set[Move]:
        """Let the directories name the next blocks; the moves for which that happened."""
        moved: set[Move] = set()
        pending = _by_channel(moves)
        for _ in range(MAX_ATTEMPTS):
            if not pending:
                return moved
            directories = self._directories.read(pending)
            moving = {
                channel: [move for move in of_channel if _names(directories[channel], move)]
                for channel, of_channel in pending.items()
            }
            for channel, of_channel in moving.items():
                active_by_group = directories[channel].directory.active_by_group
                for move in of_channel:
                    number, epoch, before = move.new[:3]
                    active_by_group[move.group] = active_by_group[move.group]._replace(
                        number=number, epoch=epoch, before=before
                    )
            changed = self._directories.write({channel: directories[channel] for channel in moving if moving[channel]})
            moved.update(move for channel in moving if channel not in changed for move in moving[channel])
            pending = {channel: pending[channel] for channel in changed}
        raise Transient(f"{self._keys.directory(min(pending))} changed {MAX_ATTEMPTS} times while a block was rotated")


def _by_channel(items: Collection[_Item]) -> dict[str, list[_Item]]:
    by_channel: dict[str, list[_Item]] = {}
    for item in items:
        by_channel.setdefault(item.channel, []).append(item)
    return by_channel


def _entered(directory: ChannelDirectory, append: LocatingAppend) -> int | None:
    """The group's block, with our epoch noted; None, and nothing noted, if a newer epoch is there."""
    first = directory.compacted.next_number
    active = directory.active_by_group.get(append.group, DirectoryEntry(first, append.epoch, 0, first))
    if active.epoch > append.epoch:
        return None
    directory.active_by_group[append.group] = active._replace(epoch=append.epoch)
    return active.number


def _names(stored: StoredDirectory, move: Move) -> bool:
    active = stored.directory.active_by_group.get(move.group)
    return active is not None and active[:3] == move.known[:3]
