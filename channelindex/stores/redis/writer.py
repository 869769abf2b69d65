"""The atomic operations of the write half, as scripts.

Arguments go to Lua as one MessagePack blob and one body: thousands of RESP arguments would cost more to pack than the
script costs to run.

Items are grouped by slot. One Redis takes all slots in one call; a cluster takes a call per slot, all of them together.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from channelindex.errors import OutcomeUnknown
from channelindex.hashing import slot_of
from channelindex.redis.link import ScriptCall
from channelindex.stores.block_writer import BlindAppend, Rotation, Touch
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.opening import open_link

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

_Sections = dict[int, tuple[list[Any], list[bytes]]]
"""By slot: the items of its channels, flat, and the bytes whose lengths are among them."""


class RedisBlocks:
    """`BlockOperations` in Redis."""

    def __init__(self, url: str, index_name: str) -> None:
        self._keys = Keys(index_name)
        self._link = open_link(url, OutcomeUnknown, reconnects=False)

    def append(self, by_channel: Mapping[str, Sequence[BlindAppend]]) -> None:
        """See `BlockOperations.append`."""
        sections: _Sections = {}
        for channel, appends in by_channel.items():
            slot = slot_of(channel)
            if slot not in sections:
                sections[slot] = [], []
            items, parts = sections[slot]
            items += (channel, len(appends))
            for group, number, frame, record in appends:
                items += (group, str(number), len(frame), len(record))
                parts.append(frame)
            parts += [append[3] for append in appends]
        self._link.run_all("append", self._calls(sections))

    def touch(self, touches: Sequence[Touch]) -> Sequence[tuple[int, int] | None]:
        """See `BlockOperations.touch`."""
        flat = [
            (touch.channel, touch.group, f"{touch.epoch:016x}", touch.header, touch.frame, touch.record)
            for touch in touches
        ]
        reply, order = self._run_by_slot("touch", flat)
        blocks: list[tuple[int, int] | None] = [None] * len(touches)
        for index, number, size in zip(order, reply[::2], reply[1::2], strict=True):
            if number:
                blocks[index] = int(number), size
        return blocks

    def clock_logs(self, keys: Sequence[tuple[str, str]]) -> Sequence[bytes]:
        """See `BlockOperations.clock_logs`."""
        logs = self._link.pipeline([("GET", self._keys.clock(channel, group)) for channel, group in keys])
        return [log or b"" for log in logs]

    def rotate(self, rotations: Sequence[Rotation]) -> Sequence[bool]:
        """See `BlockOperations.rotate`."""
        flat = [
            (
                rotation.channel,
                rotation.group,
                f"{rotation.epoch:016x}",
                str(rotation.number),
                str(rotation.number + 1),
                rotation.log_bytes,
                rotation.header,
                rotation.folded,
            )
            for rotation in rotations
        ]
        reply, order = self._run_by_slot("rotate", flat)
        happened = [False] * len(rotations)
        for index, result in zip(order, reply, strict=True):
            happened[index] = result == 1
        return happened

    def count_principals(self, keys: Sequence[str]) -> None:
        """See `BlockOperations.count_principals`."""
        self._link.run("principals", (self._keys.principals,), _encode(keys))

    def close(self) -> None:
        """See `BlockOperations.close`."""
        self._link.close()

    def _run_by_slot(self, name: str, items: Sequence[tuple[Any, ...]]) -> tuple[list[Any], list[int]]:
        """The reply of a script to *items* grouped by slot, and for each of its answers the index of the item."""
        sections: _Sections = {}
        indices: dict[int, list[int]] = {}
        for index, item in enumerate(items):
            slot = slot_of(item[0])
            values, parts = sections.setdefault(slot, ([], []))
            values += [len(value) if isinstance(value, bytes) else value for value in item]
            parts += [value for value in item if isinstance(value, bytes)]
            indices.setdefault(slot, []).append(index)
        replies = self._link.run_all(name, self._calls(sections))
        reply = [answer for packed in replies for answer in _decode(packed)]
        return reply, [index for at in indices.values() for index in at]

    def _calls(self, sections: _Sections) -> list[ScriptCall]:
        """One call for all sections, or one for each where a script must not span slots; in their order."""
        prefix = self._keys.prefix
        if self._link.spans_slots:
            return [((), (prefix, *_arguments(sections)))]
        return [
            ((self._keys.slot(slot),), (prefix, *_arguments({slot: section}))) for slot, section in sections.items()
        ]


def _arguments(sections: _Sections) -> tuple[bytes, bytes]:
    """[slot, items, slot, items, ...] as MessagePack, and all bytes whose lengths are among the items, joined.

    The bytes go apart because the cmsgpack of Redis knows no binary strings, and msgspec writes bytes as nothing else.
    """
    flat: list[Any] = []
    body: list[bytes] = []
    for slot, (items, parts) in sections.items():
        flat += (slot, items)
        body += parts
    return _encode(flat), b"".join(body)
