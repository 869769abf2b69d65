"""The directory of a channel as the fields of a Redis hash, and the tails of its active blocks."""

from collections.abc import Iterator, Mapping, Sequence

from channelindex.errors import IndexCorrupt
from channelindex.redis.link import Link
from channelindex.stores.base import Directory, GroupState
from channelindex.stores.redis.keys import Keys

DIRECTORY = "g"
CLOCK = "k"
"""Prefix of the fields of a group; its name follows."""


def encode_directory(directory: Directory) -> str:
    """The value of a `g` field, as append_and_locate.lua and move.lua know it."""
    assert 0 <= directory.epoch < 1 << 64, "the scripts compare 16 digits as strings"
    return f"{directory.number}:{directory.epoch:016x}:{directory.before}:{directory.upto}"


def decode_directory(value: bytes, where: str) -> Directory:
    """The directory that `encode_directory` encoded.

    Raises:
        IndexCorrupt: *value* is something else; the message names *where*.
    """
    try:
        number, epoch, before, upto = value.split(b":")
        return Directory(int(number), int(epoch, 16), int(before), int(upto))
    except ValueError as error:
        raise IndexCorrupt(f"{where}: {value[:80]!r} is no directory of a group") from error


def read_groups(link: Link, keys: Keys, names: Sequence[tuple[str, str]]) -> list[GroupState | None]:
    """The state of each (channel, group) of *names*; None for one that the directory does not have."""
    replies = link.pipeline(
        [("HMGET", keys.channel(channel), DIRECTORY + group, CLOCK + group) for channel, group in names]
    )
    fields = [
        {DIRECTORY.encode() + group.encode(): directory, CLOCK.encode() + group.encode(): clock}
        for (_, group), (directory, clock) in zip(names, replies, strict=True)
    ]
    states = iter(_with_tails(link, keys, [channel for channel, _ in names], fields))
    return [state.get(group) for (_, group), state in zip(names, states, strict=True)]


def read_channels(link: Link, keys: Keys, channels: Sequence[str]) -> list[dict[str, GroupState]]:
    """The states of all groups of each of *channels*; none for a channel that nobody wrote.

    Raises:
        IndexCorrupt: a channel has a hash without a group: something was lost.
    """
    hashes = link.pipeline([("HGETALL", keys.channel(channel)) for channel in channels])
    fields_by_channel = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in hashes]
    states = _with_tails(link, keys, channels, fields_by_channel)
    for channel, fields, groups in zip(channels, fields_by_channel, states, strict=True):
        if fields and not groups:
            raise IndexCorrupt(f"{keys.channel(channel)}: it names no group: the store has lost data")
    return states


def _with_tails(
    link: Link, keys: Keys, channels: Sequence[str], fields_of: Sequence[Mapping[bytes, bytes | None]]
) -> list[dict[str, GroupState]]:
    """The groups in *fields_of* each of *channels*, with the tails of their active blocks.

    Of a tail, the byte before it is read too: one that is not there says that the block is missing or too short.
    """
    found = [list(_groups(keys.channel(channel), fields)) for channel, fields in zip(channels, fields_of, strict=True)]
    ranges = [
        ("GETRANGE", keys.block(channel, group, directory.number), max(0, directory.upto - 1), -1)
        for channel, groups in zip(channels, found, strict=True)
        for group, directory, _ in groups
    ]
    tails = iter(link.pipeline(ranges) if ranges else ())
    return [
        {group: GroupState(directory, clock, _tail(directory, next(tails))) for group, directory, clock in groups}
        for groups in found
    ]


def _groups(key: str, fields: Mapping[bytes, bytes | None]) -> Iterator[tuple[str, Directory, bytes]]:
    for name, value in fields.items():
        if name.startswith(DIRECTORY.encode()) and value is not None:
            group = name[1:].decode()
            yield group, decode_directory(value, f"{key}, group {group}"), fields.get(CLOCK.encode() + name[1:]) or b""


def _tail(directory: Directory, found: bytes) -> bytes | None:
    if not found:
        return None
    return found[1:] if directory.upto else found
