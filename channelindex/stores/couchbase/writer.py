"""The operations of the write half in a bucket, which changes one document at a time.

What `BlockOperations` wants done at once is done in an order in which it may stop anywhere:

* A directory names a block and a clock log only after these exist. An entry goes first into its block, then into the
  clock log, then the counter rises.
* A touch writes the directory, even if that says the same as before: its version changes, and with it all that somebody
  made of the older version, a late rotation among it, comes to nothing.
* A rotation writes the next block, then the folded clock log, then the directory; each only if it is as it was read. As
  long as the directory does not name the next block, nobody appends to it: one that a rotation left behind half-way
  holds a header alone and is replaced. It is read *before* the directory: if somebody has made it the active one since,
  its version has changed.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from channelindex.errors import IndexCorrupt, Transient
from channelindex.settings import IndexSettings
from channelindex.stores.block_writer import BlindAppend, Rotation, Touch
from channelindex.stores.couchbase.directories import Active, Directories, Directory
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Link, Stored
from channelindex.stores.couchbase.names import add_names

MAX_ATTEMPTS = 50
"""Lost comparisons before an operation gives up: each means that somebody changed a directory within a round trip."""

_MAX_READ_BYTES = 16 << 20
"""About how much is read at once to learn the sizes of blocks."""

_Item = TypeVar("_Item", Touch, Rotation)


class CouchbaseBlocks:
    """`BlockOperations` in a bucket."""

    def __init__(self, settings: IndexSettings, link: Link | None = None) -> None:
        self._keys = Keys(settings.name)
        self._link = link or Link(settings)
        self._directories = Directories(self._link, self._keys)
        self._blocks_per_read = max(1, _MAX_READ_BYTES // settings.block_bytes)

    def append(self, by_channel: Mapping[str, Sequence[BlindAppend]]) -> None:
        """See `BlockOperations.append`."""
        frames: dict[str, bytes] = {}
        records: dict[str, bytes] = {}
        for channel, appends in by_channel.items():
            for group, number, frame, record in appends:
                frames[self._keys.block(channel, group, number)] = frame
                records[self._keys.clock(channel, group)] = record
        self._append(frames, records, by_channel)

    def touch(self, touches: Sequence[Touch]) -> Sequence[tuple[int, int] | None]:
        """See `BlockOperations.touch`."""
        new_blocks: dict[str, int] = {}
        numbers = self._enter(touches, new_blocks)
        frames: dict[str, bytes] = {}
        records: dict[str, bytes] = {}
        accepted = [(touch, number) for touch, number in zip(touches, numbers, strict=True) if number is not None]
        for touch, number in accepted:  # two epochs of a group may touch the same block
            block, clock = (
                self._keys.block(touch.channel, touch.group, number),
                self._keys.clock(touch.channel, touch.group),
            )
            frames[block] = frames.get(block, b"") + touch.frame
            records[clock] = records.get(clock, b"") + touch.record
        self._append(frames, records, {touch.channel for touch, _ in accepted})
        sizes = self._sizes(frames, new_blocks)
        return [
            None if number is None else (number, sizes[self._keys.block(touch.channel, touch.group, number)])
            for touch, number in zip(touches, numbers, strict=True)
        ]

    def clock_logs(self, keys: Sequence[tuple[str, str]]) -> Sequence[bytes]:
        """See `BlockOperations.clock_logs`."""
        stored = self._link.get([self._keys.clock(channel, group) for channel, group in keys])
        return [log.value if log else b"" for log in stored]

    def rotate(self, rotations: Sequence[Rotation]) -> Sequence[bool]:
        """See `BlockOperations.rotate`."""
        moved = self._move(self._fold_logs(self._begin_blocks(rotations)))
        return [rotation in moved for rotation in rotations]

    def count_principals(self, keys: Sequence[str]) -> None:
        """See `BlockOperations.count_principals`. The sum rises last."""
        deltas: dict[str, int] = {}
        for key in keys:
            counter = self._keys.principal(key)
            deltas[counter] = deltas.get(counter, 0) + 1
        self._link.increment(deltas)
        self._link.increment({self._keys.all_principals: len(keys)})

    def close(self) -> None:
        """See `BlockOperations.close`."""
        self._link.close()

    def _append(self, frames: Mapping[str, bytes], records: Mapping[str, bytes], channels: Iterable[str]) -> None:
        self._append_to_existing(frames)
        self._append_to_existing(records)
        self._link.increment({self._keys.counter(channel): 1 for channel in channels})

    def _append_to_existing(self, values: Mapping[str, bytes]) -> None:
        missing = self._link.append(values)
        if missing:
            raise IndexCorrupt(f"{min(missing)} is gone: the bucket has lost data, the index has to be rebuilt")

    def _enter(self, touches: Sequence[Touch], new_blocks: dict[str, int]) -> list[int | None]:
        """Note the touches in the directories; the number of each one's block, None where it was refused.

        *new_blocks* is told the blocks that this call began, and their sizes.
        """
        numbers: dict[Touch, int | None] = {}
        pending = _by_channel(touches)
        for _ in range(MAX_ATTEMPTS):
            directories = self._directories.read(pending)
            entered: dict[str, Directory] = {}
            firsts: list[Touch] = []
            for channel, of_channel in pending.items():
                active_by_group = directories[channel].active_by_group
                for touch in of_channel:
                    if touch.group not in active_by_group:
                        firsts.append(touch)
                    numbers[touch] = _entered(active_by_group, touch)
                if any(numbers[touch] is not None for touch in of_channel):
                    entered[channel] = directories[channel]
            add_names(self._link, self._keys, [channel for channel in entered if directories[channel].cas is None])
            self._begin_groups(firsts, new_blocks)
            changed = self._directories.write(entered)
            if not changed:
                return [numbers[touch] for touch in touches]
            pending = {channel: pending[channel] for channel in changed}
        raise Transient(f"{self._keys.directory(min(pending))} changed {MAX_ATTEMPTS} times while it was touched")

    def _begin_groups(self, touches: Iterable[Touch], new_blocks: dict[str, int]) -> None:
        """Let there be block 0 and a clock log; they may be left over from somebody who stopped half-way."""
        headers = {self._keys.block(touch.channel, touch.group, 0): touch.header for touch in touches}
        existing = self._link.insert(headers)
        new_blocks |= {key: len(header) for key, header in headers.items() if key not in existing}
        self._link.insert({self._keys.clock(touch.channel, touch.group): b"" for touch in touches})

    def _sizes(self, frames: Mapping[str, bytes], new_blocks: Mapping[str, int]) -> dict[str, int]:
        """The sizes of the blocks to which *frames* were appended. The SDK tells the size of no document but by it."""
        sizes = {key: new_blocks[key] + len(frame) for key, frame in frames.items() if key in new_blocks}
        unknown = [key for key in frames if key not in sizes]
        for start in range(0, len(unknown), self._blocks_per_read):
            keys = unknown[start : start + self._blocks_per_read]
            sizes |= {key: len(stored.value) for key, stored in zip(keys, self._link.get(keys), strict=True) if stored}
        return sizes

    def _begin_blocks(self, rotations: Sequence[Rotation]) -> dict[Rotation, Stored]:
        """Write the next blocks, where directory and clock log are as the rotation was made from them; these logs."""
        keys = [self._keys.block(rotation.channel, rotation.group, rotation.number + 1) for rotation in rotations]
        next_blocks = self._link.get(keys)
        directories = self._directories.read({rotation.channel for rotation in rotations})
        logs = self._link.get([self._keys.clock(rotation.channel, rotation.group) for rotation in rotations])
        begun: dict[str, tuple[Rotation, Stored]] = {}
        new: dict[str, bytes] = {}
        left_over: dict[str, Stored] = {}
        for key, rotation, next_block, log in zip(keys, rotations, next_blocks, logs, strict=True):
            is_active = _names(directories[rotation.channel], rotation)
            if log is None or len(log.value) != rotation.log_bytes or not is_active:
                continue
            begun[key] = rotation, log
            if next_block is None:
                new[key] = rotation.header
            else:
                left_over[key] = Stored(rotation.header, next_block.cas)
        lost = self._link.insert(new) | self._link.replace(left_over)
        return dict(begun[key] for key in begun if key not in lost)

    def _fold_logs(self, logs: Mapping[Rotation, Stored]) -> list[Rotation]:
        """Replace the clock logs by their sums, where nothing was appended since; what is folded says the same."""
        rotation_by_key = {self._keys.clock(rotation.channel, rotation.group): rotation for rotation in logs}
        lost = self._link.replace(
            {key: Stored(rotation.folded, logs[rotation].cas) for key, rotation in rotation_by_key.items()}
        )
        return [rotation for key, rotation in rotation_by_key.items() if key not in lost]

    def _move(self, rotations: Sequence[Rotation]) -> set[Rotation]:
        """Let the directories name the next blocks; the rotations for which that happened."""
        moved: set[Rotation] = set()
        pending = _by_channel(rotations)
        for _ in range(MAX_ATTEMPTS):
            if not pending:
                return moved
            directories = self._directories.read(pending)
            moving = {
                channel: [rotation for rotation in of_channel if _names(directories[channel], rotation)]
                for channel, of_channel in pending.items()
            }
            for channel, of_channel in moving.items():
                for rotation in of_channel:
                    active = Active(rotation.number + 1, rotation.epoch)
                    directories[channel].active_by_group[rotation.group] = active
            changed = self._directories.write({channel: directories[channel] for channel in moving if moving[channel]})
            moved.update(rotation for channel in moving if channel not in changed for rotation in moving[channel])
            pending = {channel: pending[channel] for channel in changed}
        raise Transient(f"{self._keys.directory(min(pending))} changed {MAX_ATTEMPTS} times while a block was rotated")


def _by_channel(items: Collection[_Item]) -> dict[str, list[_Item]]:
    by_channel: dict[str, list[_Item]] = {}
    for item in items:
        by_channel.setdefault(item.channel, []).append(item)
    return by_channel


def _entered(active_by_group: dict[str, Active], touch: Touch) -> int | None:
    """The group's block, with our epoch noted; None, and nothing noted, if a newer epoch is there."""
    active = active_by_group.get(touch.group, Active(0, touch.epoch))
    if active.epoch > touch.epoch:
        return None
    active_by_group[touch.group] = Active(active.number, touch.epoch)
    return active.number


def _names(directory: Directory, rotation: Rotation) -> bool:
    return directory.active_by_group.get(rotation.group) == (rotation.number, rotation.epoch)
