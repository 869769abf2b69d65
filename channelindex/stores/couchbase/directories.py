"""The directories of channels: for each vbucket group its active block, and the epoch that located it last.

The groups of a channel share one document, so that a reader finds them with one request. Every change is compared with
the version that it was made from: what a late, repeated or paused writer made from an older one does not happen.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from channelindex.blocks import split_header
from channelindex.errors import IndexCorrupt
from channelindex.stores.base import Directory, GroupState
from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Link, Stored


class DirectoryEntry(NamedTuple):
    """A group's active block, the epoch that located it last, and the bytes of all blocks before it."""

    number: int
    epoch: int
    before: int


class ChannelDirectory(NamedTuple):
    """A channel's directory, to be changed and written back; `cas` is None if it is not stored yet."""

    active_by_group: dict[str, DirectoryEntry]
    cas: int | None


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(dict[str, DirectoryEntry])


def decode_directory(stored: Stored | None, key: str) -> ChannelDirectory:
    """Decode a directory's document.

    Raises:
        IndexCorrupt: it is something else; the message names *key*.
    """
    if stored is None:
        return ChannelDirectory({}, None)
    try:
        return ChannelDirectory(_decoder.decode(stored.value), stored.cas)
    except msgspec.MsgspecError as error:
        raise IndexCorrupt(f"{key}: {error}") from error


class Directories:
    """The directories of an index."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    def read(self, channels: Collection[str]) -> dict[str, ChannelDirectory]:
        """The directory of each channel, an empty one where there is none."""
        keys = [self._keys.directory(channel) for channel in channels]
        stored = self._link.get(keys)
        return {
            channel: decode_directory(found, key) for channel, key, found in zip(channels, keys, stored, strict=True)
        }

    def write(self, directories: Mapping[str, ChannelDirectory]) -> set[str]:
        """Store each directory if nobody has changed it since it was read; the channels of those that were not."""
        channel_by_key = {self._keys.directory(channel): channel for channel in directories}
        new: dict[str, bytes] = {}
        old: dict[str, Stored] = {}
        for key, channel in channel_by_key.items():
            active_by_group, cas = directories[channel]
            if cas is None:
                new[key] = _encode(active_by_group)
            else:
                old[key] = Stored(_encode(active_by_group), cas)
        return {channel_by_key[key] for key in self._link.insert(new) | self._link.replace(old)}


def read_groups(
    link: Link, keys: Keys, active_by_channel: Mapping[str, Mapping[str, DirectoryEntry]]
) -> dict[str, dict[str, GroupState]]:
    """The states of all groups of channels with the directories *active_by_channel*.

    A bucket gives out whole documents only. So the clock frame of a group is the header of its active block, and the
    tail is all that is behind it.
    """
    names = [(channel, group) for channel, groups in active_by_channel.items() for group in groups]
    actives = [active_by_channel[channel][group] for channel, group in names]
    blocks = link.get([keys.block(*name, active.number) for name, active in zip(names, actives, strict=True)])
    states: dict[str, dict[str, GroupState]] = {channel: {} for channel in active_by_channel}
    for (channel, group), active, block in zip(names, actives, blocks, strict=True):
        header, tail = split_header(block.value) if block else (b"", None)
        states[channel][group] = GroupState(Directory(*active, len(header)), header, tail)
    return states
