"""The directory of a channel as the fields of a Redis hash, and the tails of its active blocks."""

import re
from collections.abc import Iterator, Mapping, Sequence

from channelindex.blocks import HEADER, slot_of
from channelindex.errors import IndexCorrupt
from channelindex.redis.link import Link
from channelindex.stores.base import NEVER_COMPACTED, ChannelState, Compacted, Directory, GroupState
from channelindex.stores.compacting import ChannelSizes, GroupSize
from channelindex.stores.redis.keys import Keys

DIRECTORY = "g"
CLOCK = "k"
"""Prefix of the fields of a group; its name follows."""
COMPACTED = b"v"
FLOOR = b"f"
"""Fields of the channel itself: `Compacted`, and clock pairs."""
PENDING = b"p"
STRAYS = b"s"
"""Fields of the channel itself, of blocks without a time to live that no directory names: strays.lua."""

_STRAY = re.compile(rb"([^:,]+):(\d+):(\d+)")
_PENDING = re.compile(rb"([^:]+):(\d+):(\d+)")


def encode_directory(directory: Directory) -> str:
    """The value of a `g` field, as append_and_locate.lua and move.lua know it."""
    assert 0 <= directory.epoch < 1 << 64, "the scripts compare 16 digits as strings"
    number, epoch, *sizes = directory
    return ":".join((str(number), f"{epoch:016x}", *map(str, sizes)))


def decode_directory(value: bytes, where: str) -> Directory:
    """The directory that `encode_directory` encoded.

    Raises:
        IndexCorrupt: *value* is something else; the message names *where*.
    """
    try:
        number, epoch, before, upto, first, dropped = value.split(b":")
        directory = Directory(int(number), int(epoch, 16), int(before), int(upto), int(first), int(dropped))
    except ValueError as error:
        raise IndexCorrupt(f"{where}: {value[:80]!r} is no directory of a group") from error
    active, oldest = directory.number, directory.first
    if not 0 <= oldest <= active:
        raise IndexCorrupt(f"{where}: block {active} is active, and {oldest} the first that is there")
    return directory


def decode_compacted(value: bytes | None, where: str) -> Compacted:
    """The value of a `v` field, as switch.lua writes it; what no compaction noted where there is none.

    Raises:
        IndexCorrupt: *value* is something else; the message names *where*.
    """
    try:
        return Compacted(*map(int, value.split(b":"))) if value else NEVER_COMPACTED
    except (ValueError, TypeError) as error:
        raise IndexCorrupt(f"{where}: {value!r} is not what compaction notes") from error


def encode_compacted(compacted: Compacted) -> str:
    """The value of a `v` field."""
    return ":".join(map(str, compacted))


def read_groups(link: Link, keys: Keys, asked: Sequence[tuple[str, str, int]]) -> list[GroupState | None]:
    """The state of each (channel, group, end) that is *asked* for; None for one that the directory does not have.

    Its tail ends at byte `end` of the active block; 0: where the block does.
    """
    replies = link.pipeline(
        [("HMGET", keys.channel(channel), DIRECTORY + group, CLOCK + group, COMPACTED) for channel, group, _ in asked]
    )
    fields = [
        {DIRECTORY.encode() + group.encode(): directory, CLOCK.encode() + group.encode(): clock, COMPACTED: compacted}
        for (_, group, _), (directory, clock, compacted) in zip(asked, replies, strict=True)
    ]
    ends = [end for _, _, end in asked]
    states = _with_tails(link, keys, [channel for channel, _, _ in asked], fields, ends)
    return [state.get(group) for (_, group, _), state in zip(asked, states, strict=True)]


def read_channels(link: Link, keys: Keys, channels: Sequence[str]) -> list[ChannelState | None]:
    """The state of each of *channels*; None for a channel that nobody wrote.

    Raises:
        IndexCorrupt: a channel has a hash that names no group and was not compacted, or none though it was written:
            something was lost.
    """
    hashes = link.pipeline([("HGETALL", keys.channel(channel)) for channel in channels])
    _refuse_lost(link, keys, [channel for channel, flat in zip(channels, hashes, strict=True) if not flat])
    fields_by_channel = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in hashes]
    states: list[ChannelState | None] = []
    for channel, fields, groups in zip(
        channels,
        fields_by_channel,
        _with_tails(link, keys, channels, fields_by_channel, [0] * len(channels)),
        strict=True,
    ):
        compacted = decode_compacted(fields.get(COMPACTED), keys.channel(channel))
        if fields and not groups and not compacted.generation:
            raise IndexCorrupt(f"{keys.channel(channel)}: it names no group: the store has lost data")
        states.append(ChannelState(groups, compacted, fields.get(FLOOR, b"")) if fields else None)
    return states


def _refuse_lost(link: Link, keys: Keys, absent: Sequence[str]) -> None:
    """Raise IndexCorrupt if one of the channels that are *absent* was written once."""
    if not absent:
        return
    named = link.pipeline([("HGET", keys.names(slot_of(channel)), channel) for channel in absent])
    written = [channel for channel, name in zip(absent, named, strict=True) if name is not None]
    # One that began since we looked has a directory now: both came in one script.
    there = link.pipeline([("EXISTS", keys.channel(channel)) for channel in written]) if written else ()
    for channel, is_there in zip(written, there, strict=True):
        if not is_there:
            cure = f"channelindex repair --channel {channel} puts it back"
            raise IndexCorrupt(f"{keys.channel(channel)} is gone: the store has lost data; {cure}")


def read_sizes(link: Link, keys: Keys, channels: Sequence[str]) -> list[ChannelSizes | None]:
    """The directory of each of *channels*, with the sizes of the active blocks; None where there is none."""
    hashes = link.pipeline([("HGETALL", keys.channel(channel)) for channel in channels])
    fields_by_channel = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in hashes]
    found = [
        [(group, directory) for group, directory, _ in _groups(keys.channel(channel), fields)]
        for channel, fields in zip(channels, fields_by_channel, strict=True)
    ]
    asked = [
        ("STRLEN", keys.block(channel, group, directory.number))
        for channel, groups in zip(channels, found, strict=True)
        for group, directory in groups
    ]
    sizes = iter(link.pipeline(asked) if asked else ())
    return [
        ChannelSizes(
            decode_compacted(fields.get(COMPACTED), keys.channel(channel)),
            {group: GroupSize(directory, next(sizes)) for group, directory in groups},
            _unswept_at(fields),
        )
        if fields
        else None
        for channel, fields, groups in zip(channels, fields_by_channel, found, strict=True)
    ]


def decode_unnamed(fields: Mapping[bytes, bytes]) -> list[tuple[str, int, int]]:
    """The (group, first number, last number) of blocks without a time to live that no directory names.

    What makes no sense says nothing, as in strays.lua.
    """
    found = [(group, int(first), int(last)) for group, first, last in _STRAY.findall(fields.get(STRAYS, b""))]
    pending = _PENDING.fullmatch(fields.get(PENDING, b""))
    if pending:
        found.append((pending[1], 0, int(pending[2]) - 1))
    return [(group.decode(), first, last) for group, first, last in found]


def _unswept_at(fields: Mapping[bytes, bytes]) -> int | None:
    """See `ChannelSizes.unswept_at`."""
    pending = _PENDING.fullmatch(fields.get(PENDING, b""))
    if STRAYS in fields or PENDING not in fields:
        return 0 if STRAYS in fields else None
    return int(pending[3]) if pending else 0


def _with_tails(
    link: Link,
    keys: Keys,
    channels: Sequence[str],
    fields_of: Sequence[Mapping[bytes, bytes | None]],
    ends: Sequence[int],
) -> list[dict[str, GroupState]]:
    """The groups in *fields_of* each of *channels*, with the tails of their active blocks up to *ends*; 0: whole.

    Of a tail, the byte before it is read too: one that is not there says that the block is missing or too short.
    """
    found = [list(_groups(keys.channel(channel), fields)) for channel, fields in zip(channels, fields_of, strict=True)]
    ranges = [
        ("GETRANGE", keys.block(channel, group, directory.number), max(0, directory.upto - 1), end - 1)
        for channel, groups, end in zip(channels, found, ends, strict=True)
        for group, directory, _ in groups
    ]
    tails = iter(link.pipeline(ranges) if ranges else ())
    lives = [
        decode_compacted(fields.get(COMPACTED), keys.channel(channel)).live
        for channel, fields in zip(channels, fields_of, strict=True)
    ]
    return [
        {group: GroupState(directory, clock, _tail(directory, next(tails)), live) for group, directory, clock in groups}
        for groups, live in zip(found, lives, strict=True)
    ]


def _groups(key: str, fields: Mapping[bytes, bytes | None]) -> Iterator[tuple[str, Directory, bytes]]:
    for name, value in fields.items():
        if name.startswith(DIRECTORY.encode()) and value is not None:
            group = name[1:].decode()
            yield group, decode_directory(value, f"{key}, group {group}"), fields.get(CLOCK.encode() + name[1:]) or b""


def whole_block(found: bytes | None) -> bytes | None:
    """*found*, which was read of a block's key; None if it does not begin with a header.

    Then the block was lost, or compacted, and what is there is an append that its writer has not taken back yet.
    """
    return found if found and found[0] == HEADER else None


def _tail(directory: Directory, found: bytes) -> bytes | None:
    if not directory.upto:
        return whole_block(found)
    return found[1:] if found else None
