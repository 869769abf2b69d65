"""Notes how channels are, and asks which of them have changed: a request for a thousand instead of two for each."""

import struct
from collections.abc import Sequence

import msgspec

from channelindex.blocks import slot_of
from channelindex.redis.link import Link
from channelindex.stores.base import NEVER_COMPACTED, ChannelState
from channelindex.stores.redis.directories import DIRECTORY, encode_directory
from channelindex.stores.redis.keys import Keys

MARKS_PER_CALL = 500
"""Redis serves nobody else during a call: so many channels take it some two milliseconds."""
MOST_ITEMS = 0xFFFF
_HEAD = struct.Struct(">BH")
_ARRAY_32 = struct.Struct(">BI")
_CHANGED = ord("1")
_encode = msgspec.msgpack.Encoder().encode


def mark_of(keys: Keys, channel: str, state: ChannelState | None) -> bytes | None:
    """The note of a channel in *state*: its slot, the number of items (u16), and the items for changed.lua.

    None if the channel is damaged, or in more groups than a note has room for.
    """
    n_fields, groups = 0, []
    if state is not None:
        n_fields = bool(state.floor) + (state.compacted != NEVER_COMPACTED)
        for group, (directory, clock, tail, _) in state.groups.items():
            if tail is None:
                return None
            n_fields += 1 + bool(clock)
            block = keys.block(channel, group, directory.number)
            groups += [DIRECTORY + group, encode_directory(directory), block, directory.upto + len(tail)]
    items = [keys.channel(channel), n_fields, len(groups) // 4, *groups]
    assert len(groups) % 4 == 0, "four items for each group"
    if len(items) > MOST_ITEMS:
        return None
    return _HEAD.pack(slot_of(channel), len(items)) + b"".join(map(_encode, items))


def changed(link: Link, keys: Keys, marks: Sequence[bytes]) -> list[bool]:
    """Tell of each of *marks* whether its channel has changed since."""
    by_slot: dict[int, list[int]] = {}
    for at, mark in enumerate(marks):
        by_slot.setdefault(0 if link.spans_slots else mark[0], []).append(at)
    parts = [
        (slot, positions[start : start + MARKS_PER_CALL])
        for slot, positions in by_slot.items()
        for start in range(0, len(positions), MARKS_PER_CALL)
    ]
    calls = [
        (() if link.spans_slots else (keys.slot(slot),), (_flat([marks[at] for at in part]),)) for slot, part in parts
    ]
    found = [False] * len(marks)
    for (_, part), reply in zip(parts, link.run_all("changed", calls), strict=True):
        for at, answer in zip(part, reply, strict=True):
            found[at] = answer == _CHANGED
    return found


def _flat(marks: Sequence[bytes]) -> bytes:
    """The items of *marks* as one MessagePack array."""
    n_items = sum(_HEAD.unpack_from(mark)[1] for mark in marks)
    return _ARRAY_32.pack(0xDD, n_items) + b"".join([mark[_HEAD.size :] for mark in marks])
