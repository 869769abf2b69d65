"""Puts back what Redis has lost of channels: directories, from their blocks, and the place of blocks.

A directory says nothing that the blocks of its group do not say. A block that is missing, or of which frames are
damaged, is put back with what is left of it, behind a header that sums up the blocks before it: so readers and writers
go on. What it held is lost here; whoever repairs has to see that it is indexed again.

Blocks that have a time to live belong to nobody: compaction wrote or left them; nor do those of which the channel says
so, because a compactor has not come to give them one yet. What compaction noted of a channel is
lost with its directory. In its place comes a generation that none had before, and the floor that the caller gives.

Nor does a block without a header that no directory names: a writer appended to one that was compacted away, and ended
before it took that back (`take_back.lua`). It was never told that this is written. Such a stray is removed.

Slow and rare: all blocks are read. Nodes may run meanwhile.
"""

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from channelindex.blocks import ENTRIES, N_SLOTS, slot_of, split_header
from channelindex.errors import IndexCorrupt, Transient
from channelindex.redis.link import Link
from channelindex.stores.base import COMPACT_PREFIX, BlockRef, Compacted, Directory, RepairedChannels
from channelindex.stores.redis.directories import (
    CLOCK,
    DIRECTORY,
    PENDING,
    STRAYS,
    decode_directory,
    decode_unnamed,
    encode_compacted,
    encode_directory,
)
from channelindex.stores.redis.keys import Keys
from channelindex.stores.whole_blocks import newest_epoch, whole_blocks

_ATTEMPTS = 20
"""Lost comparisons before a group is given up: each means that its block grew within a round trip."""

_SCAN_COUNT = 1000

_WITHOUT_HEADER = bytes([ENTRIES])
"""The first byte of a block that begins with entries."""

_FOR_EVER = -1
"""Answer of PTTL for a key without a time to live."""

_Group = tuple[str, str]
"""(channel, group)."""


class _StoredGroup(NamedTuple):
    """A group as it is stored: its directory, and its blocks from number `first` on. None is what is gone.

    `directory` is None as well where `stored`, its bytes, makes no sense.
    """

    stored: bytes
    directory: Directory | None
    clock: bytes
    first: int
    blocks: Sequence[bytes | None]


class _MendedGroup(NamedTuple):
    """The same group as it has to be."""

    directory: Directory
    clock: bytes
    blocks: Sequence[bytes]


_NOTHING_LEFT = _MendedGroup(Directory(0, 0, 0, 0), b"", ())
"""Of a group whose directory makes no sense and of which there are no blocks: it is to be removed."""


def repair_channels(link: Link, keys: Keys, channels: Collection[str] | None, floor: bytes) -> RepairedChannels:
    """See `OwnerStore.repair_channels`."""
    directories: list[str] = []
    blocks: list[str] = []
    groups = _stored_groups(link, keys, channels)
    next_number_by_channel: defaultdict[str, int] = defaultdict(int)
    for (channel, _), numbers in groups.items():
        next_number_by_channel[channel] = max(next_number_by_channel[channel], max(numbers, default=-1) + 1)
    for (channel, group), numbers in sorted(groups.items()):
        note = encode_compacted(Compacted(int(time.time()), next_number=next_number_by_channel[channel]))
        notes = (note, floor) if group.startswith(COMPACT_PREFIX) else ("", b"")
        changed = _mend_group(link, keys, (channel, group), numbers, notes)
        directories += [keys.channel(channel)] if changed and changed.directory is None else []
        blocks += [BlockRef(channel, group, number).key for number in changed.lost] if changed else []
    _remember(link, keys, channels)
    _forget(link, keys, channels)
    return RepairedChannels(tuple(dict.fromkeys(directories)), tuple(blocks))


def _remember(link: Link, keys: Keys, channels: Collection[str] | None) -> None:
    """Note the names of channels that have a directory: they are lost apart from it."""
    found = {keys.channel_of(key) for key in _scan(link, keys.channel_pattern())} - {None}
    for channel in found if channels is None else found & set(channels):
        assert channel is not None
        link.execute("HSET", keys.names(slot_of(channel)), channel, "")


def _forget(link: Link, keys: Keys, channels: Collection[str] | None) -> None:
    """Forget the names of channels of which nothing was left: they may begin again."""
    for slot in range(N_SLOTS) if channels is None else {slot_of(channel) for channel in channels}:
        for name in link.execute("HKEYS", keys.names(slot)):
            channel = name.decode()
            if channels is None or channel in channels:
                link.run("forget", (keys.names(slot), keys.channel(channel)), channel)


class _Changed(NamedTuple):
    """Names what was put back of a group: the directory that was there, and the blocks of which something was lost."""

    directory: Directory | None
    lost: Sequence[int]


def _stored_groups(link: Link, keys: Keys, channels: Collection[str] | None) -> dict[_Group, set[int]]:
    """The numbers of each group's blocks that are there; none where there is a directory alone. Removes strays."""
    numbers: defaultdict[_Group, set[int]] = defaultdict(set)
    for key in _scan(link, keys.blocks_pattern()):
        ref = keys.block_of(key)
        if ref is not None and (channels is None or ref.channel in channels):
            numbers[ref.channel, ref.group].add(ref.number)
    named = {keys.channel_of(key) for key in _scan(link, keys.channel_pattern())} - {None}
    directories: dict[_Group, Directory | None] = {}
    for channel in named if channels is None else named & set(channels):
        assert channel is not None
        flat: Sequence[bytes] = link.execute("HGETALL", keys.channel(channel))
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        directories |= {(channel, group): directory for group, directory in _directories(fields)}
        for group, first, last in decode_unnamed(fields):
            numbers[channel, group].difference_update(range(first, last + 1))
    for ref in _strays(link, keys, numbers, directories):
        link.run("take_back", (keys.block(*ref),))
        numbers[ref[:2]].discard(ref.number)
    return {group: numbers[group] for group in {*numbers, *directories} if numbers[group] or group in directories}


def _strays(
    link: Link, keys: Keys, numbers: Mapping[_Group, Collection[int]], directories: Mapping[_Group, Directory | None]
) -> list[BlockRef]:
    """The blocks that begin with entries, of those that no directory names."""
    unnamed = []
    for group, of_group in numbers.items():
        directory = directories.get(group)
        named = range(directory.first, directory.number + 1) if directory else range(0)
        unnamed += [BlockRef(*group, number) for number in of_group if number not in named]
    begins = link.pipeline([("GETRANGE", keys.block(*ref), 0, 0) for ref in unnamed]) if unnamed else ()
    return [ref for ref, first in zip(unnamed, begins, strict=True) if first == _WITHOUT_HEADER]


def _scan(link: Link, pattern: str) -> Iterator[bytes]:
    for server in link.servers():
        cursor = b"0"
        while True:
            cursor, found = server.execute("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
            yield from found
            if cursor == b"0":
                break


def _directories(fields: Mapping[bytes, bytes]) -> Iterator[tuple[str, Directory | None]]:
    for name, value in fields.items():
        if name.startswith(DIRECTORY.encode()):
            yield name[len(DIRECTORY) :].decode(), _decoded(value)


def _decoded(stored: bytes) -> Directory | None:
    try:
        return decode_directory(stored, "")
    except IndexCorrupt:
        return None


def _mend_group(
    link: Link, keys: Keys, name: _Group, numbers: Collection[int], notes: tuple[str, bytes]
) -> _Changed | None:
    """Put back what is lost of a group, with *notes* of the channel where there are none; None if nothing is."""
    for _ in range(_ATTEMPTS):
        found = _read(link, keys, name, numbers)
        if not found.blocks and not found.stored:
            return None
        whole = _whole(found) if found.blocks else _NOTHING_LEFT
        compared = enumerate(zip(found.blocks, whole.blocks, strict=True), found.first)
        lost = [number for number, (old, new) in compared if old != new]
        if not lost and found.directory is not None:
            return None
        if _write(link, keys, name, found, whole, lost, notes):
            return _Changed(found.directory, lost)
    raise Transient(f"{keys.channel(name[0])}, group {name[1]}: it changed {_ATTEMPTS} times while it was repaired")


def _read(link: Link, keys: Keys, name: _Group, numbers: Collection[int]) -> _StoredGroup:
    """The group; without blocks if it is none, because nothing names those that are there."""
    channel, group = name
    fields = DIRECTORY + group, CLOCK + group, PENDING, STRAYS
    stored, clock, pending, strays = link.execute("HMGET", keys.channel(channel), *fields)
    directory = _decoded(stored or b"")
    if directory is not None:
        numbers = range(directory.first, directory.number + 1)
    else:
        lives = link.pipeline([("PTTL", keys.block(channel, group, number)) for number in numbers])
        unnamed = decode_unnamed({PENDING: pending or b"", STRAYS: strays or b""})  # maybe since we looked
        nobodys = {number for other, first, last in unnamed if other == group for number in range(first, last + 1)}
        kept = [at for at, life in zip(numbers, lives, strict=True) if life == _FOR_EVER and at not in nobodys]
        numbers = range(min(kept), max(kept) + 1) if kept else range(0)
    blocks = link.pipeline([("GET", keys.block(channel, group, number)) for number in numbers]) if numbers else ()
    return _StoredGroup(stored or b"", directory, clock or b"", numbers.start, blocks)


def _whole(found: _StoredGroup) -> _MendedGroup:
    """The group without what is damaged, with a header for each block that has none."""
    known = found.directory.epoch if found.directory is not None else 0
    blocks = whole_blocks(found.blocks, known)
    dropped = found.directory.dropped if found.directory is not None else 0
    before_active = dropped + sum(map(len, blocks[:-1]))
    if found.directory is not None and blocks[-1] == found.blocks[-1]:
        return _MendedGroup(found.directory._replace(before=before_active), found.clock, blocks)
    epoch = known or newest_epoch(found.blocks[-1:]) or newest_epoch(found.blocks)
    header, _ = split_header(blocks[-1])
    clock, upto = (header, len(header)) if len(blocks) > 1 else (b"", 0)
    number = found.first + len(blocks) - 1  # the last block is the active one
    return _MendedGroup(Directory(number, epoch, before_active, upto, found.first, dropped), clock, blocks)


def _write(
    link: Link,
    keys: Keys,
    name: _Group,
    found: _StoredGroup,
    whole: _MendedGroup,
    lost: Sequence[int],
    notes: tuple[str, bytes],
) -> bool:
    """Store the group, if it is as it was *found*."""
    channel, group = name
    arguments: list[bytes | str | int] = [
        group,
        found.stored,
        encode_directory(whole.directory) if whole.blocks else "",
        whole.clock,
        *notes,
    ]
    for number in lost:
        arguments += [len(found.blocks[number - found.first] or b""), whole.blocks[number - found.first]]
    names = [keys.channel(channel), *(keys.block(channel, group, number) for number in lost)]
    return bool(link.run("repair_group", names, *arguments))
