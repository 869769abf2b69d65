"""The directories of channels: for each vbucket group its active block, and the epoch that located it last.

The groups of a channel share one document, so that a reader finds them with one request. Every change is compared with
the version that it was made from: what a late, repeated or paused writer made from an older one does not happen.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from channelindex.blocks import split_header
from channelindex.errors import IndexCorrupt
from channelindex.stores.base import NEVER_COMPACTED, Compacted, Directory, GroupState
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Link, Stored


class DirectoryEntry(NamedTuple):
    """A group as `Directory` has it, without `upto`: that is the end of the active block's header."""

    number: int
    epoch: int
    before: int
    first: int = 0
    dropped: int = 0


Stray = tuple[str, int, int]
"""(group, first number, last number) of blocks that no directory names any more, or not yet."""


class ChannelDirectory(msgspec.Struct, omit_defaults=True):
    """A channel's directory, to be changed and written back.

    `pending` is what a compactor has written or is about to, to be named by the next switch; `strays` are what the last
    switch left. Who compacts next removes both.
    """

    active_by_group: dict[str, DirectoryEntry]
    compacted: Compacted = NEVER_COMPACTED
    floor: bytes = b""
    pending: Stray | None = None
    strays: list[Stray] = []


class StoredDirectory(NamedTuple):
    """A channel's directory, and the CAS of its document; None if it is not stored yet."""

    directory: ChannelDirectory
    cas: int | None


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(ChannelDirectory)


def decode_directory(stored: Stored | None, key: str) -> StoredDirectory:
    """Decode a directory's document.

    Raises:
        IndexCorrupt: it is something else; the message names *key*.
    """
    if stored is None:
        return StoredDirectory(ChannelDirectory({}), None)
    try:
        directory = _decoder.decode(stored.value)
    except msgspec.MsgspecError as error:
        raise IndexCorrupt(f"{key}: {error}") from error
    for number, _, _, first, _ in directory.active_by_group.values():
        if not 0 <= first <= number:
            raise IndexCorrupt(f"{key}: block {number} is active, and {first} the first that is there")
    return StoredDirectory(directory, stored.cas)


class Directories:
    """The directories of an index."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    def read(self, channels: Collection[str]) -> dict[str, StoredDirectory]:
        """The directory of each channel, an empty one where there is none."""
        keys = [self._keys.directory(channel) for channel in channels]
        stored = self._link.get(keys)
        return {
            channel: decode_directory(found, key) for channel, key, found in zip(channels, keys, stored, strict=True)
        }

    def write(self, directories: Mapping[str, StoredDirectory]) -> set[str]:
        """Store each directory if nobody has changed it since it was read; the channels of those that were not."""
        channel_by_key = {self._keys.directory(channel): channel for channel in directories}
        new: dict[str, bytes] = {}
        old: dict[str, Stored] = {}
        for key, channel in channel_by_key.items():
            directory, cas = directories[channel]
            if cas is None:
                new[key] = _encode(directory)
            else:
                old[key] = Stored(_encode(directory), cas)
        return {channel_by_key[key] for key in self._link.insert(new) | self._link.replace(old)}


def read_groups(
    link: Link, keys: Keys, directories: Mapping[str, ChannelDirectory]
) -> dict[str, dict[str, GroupState]]:
    """The states of all groups of channels with these *directories*.

    A bucket gives out whole documents only. So the clock frame of a group is the header of its active block, and the
    tail is all that is behind it.
    """
    names = [(channel, group) for channel, directory in directories.items() for group in directory.active_by_group]
    actives = [directories[channel].active_by_group[group] for channel, group in names]
    blocks = link.get([keys.block(*name, active.number) for name, active in zip(names, actives, strict=True)])
    states: dict[str, dict[str, GroupState]] = {channel: {} for channel in directories}
    for (channel, group), active, block in zip(names, actives, blocks, strict=True):
        header, tail = split_header(block.value) if block else (b"", None)
        number, epoch, before, first, dropped = active
        directory = Directory(number, epoch, before, len(header), first, dropped)
        states[channel][group] = GroupState(directory, header, tail, directories[channel].compacted.live)
    return states
