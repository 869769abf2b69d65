"""Puts back what a bucket has lost of channels: directories, and the places of blocks.

A bucket does not list its documents. So the groups of a channel whose directory is gone cannot be found again: it gets
a directory without any, whose groups begin at a block number that none had, and what it held is lost here. So do groups
that begin in a channel that is asked for by name: its directory may be one that a group began after the loss. A block
that is missing or damaged is put back with what is left of it, as in Redis.

Whoever repairs has to see that what is lost is indexed again, and to end the present epochs: their writers may know a
block that no directory names now.

Slow and rare: all blocks are read. Nodes may run meanwhile.
"""

import time
from collections.abc import Collection, Iterator

from channelindex.errors import Transient
from channelindex.stores.base import BlockRef, Compacted, RepairedChannels
from channelindex.stores.couchbase.directories import (
    ChannelDirectory,
    Directories,
    DirectoryEntry,
    StoredDirectory,
)
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Link, Stored
from channelindex.stores.couchbase.names import add_names, iter_names
from channelindex.stores.whole_blocks import whole_blocks

_ATTEMPTS = 20
"""Lost comparisons before a group is given up: each means that its block grew within a round trip."""


def repair_channels(link: Link, keys: Keys, channels: Collection[str] | None, floor: bytes) -> RepairedChannels:
    """See `OwnerStore.repair_channels`."""
    listed = set(iter_names(link, keys))
    directories = Directories(link, keys)
    made: list[str] = []
    blocks: list[str] = []
    for channel in sorted(listed if channels is None else set(channels)):
        directory, cas = directories.read([channel])[channel]
        if cas is not None:
            if channels is not None:
                add_names(link, keys, {channel} - listed)
                _begin_groups_anew(directories, channel)
            blocks += [ref.key for ref in _mend_blocks(link, keys, channel, directory)]
        elif channel in listed and not directories.write({channel: _without_groups(floor)}):
            made.append(keys.directory(channel))
    return RepairedChannels(tuple(made), tuple(blocks))


def _without_groups(floor: bytes) -> StoredDirectory:
    """A directory that is not there yet: generation and block numbers are the time, which none of before had."""
    now = int(time.time())
    return StoredDirectory(ChannelDirectory({}, Compacted(now, next_number=now), floor), None)


def _begin_groups_anew(directories: Directories, channel: str) -> None:
    for _ in range(_ATTEMPTS):
        directory, cas = directories.read([channel])[channel]
        number = max(int(time.time()), directory.compacted.next_number)
        directory.compacted = directory.compacted._replace(next_number=number)
        if not directories.write({channel: StoredDirectory(directory, cas)}):
            return
    raise Transient(f"the directory of {channel!r} changed {_ATTEMPTS} times while it was repaired")


def _mend_blocks(link: Link, keys: Keys, channel: str, directory: ChannelDirectory) -> Iterator[BlockRef]:
    for group, entry in sorted(directory.active_by_group.items()):
        yield from _mend_group(link, keys, (channel, group), entry)


def _mend_group(link: Link, keys: Keys, name: tuple[str, str], entry: DirectoryEntry) -> list[BlockRef]:
    """Put back what is lost of the blocks that *entry* names; return those of which something was."""
    refs = [BlockRef(*name, number) for number in range(entry.first, entry.number + 1)]
    repaired: dict[str, BlockRef] = {}
    for _ in range(_ATTEMPTS):
        found = dict(zip(refs, link.get([keys.block(*ref) for ref in refs]), strict=True))
        whole = whole_blocks([stored and stored.value for stored in found.values()], entry.epoch)
        missing: dict[str, bytes] = {}
        damaged: dict[str, Stored] = {}
        for (ref, stored), block in zip(found.items(), whole, strict=True):
            key = keys.block(*ref)
            if stored is None:
                missing[key], repaired[key] = block, ref
            elif stored.value != block:
                damaged[key], repaired[key] = Stored(block, stored.cas), ref
        if not link.insert(missing) | link.replace(damaged):
            return list(repaired.values())
    raise Transient(f"{keys.directory(name[0])}, group {name[1]}: it changed {_ATTEMPTS} times while it was repaired")
