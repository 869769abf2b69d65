"""The operations of the write half: blind appends as APPENDs that are sent together, all others as scripts.

Arguments go to Lua as one MessagePack blob and one body: thousands of RESP arguments would cost more to pack than the
script costs to run.

Items are grouped by slot. One Redis takes all slots in one call; a cluster takes a call per slot, all of them together.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec

from channelindex.blocks import slot_of
from channelindex.errors import IndexCorrupt, OutcomeUnknown
from channelindex.redis.link import ScriptCall
from channelindex.stores.active import BlindAppend, LocatingAppend, Location
from channelindex.stores.base import GroupState
from channelindex.stores.block_writer import TAIL_BYTES, Asked, Move, lost_block
from channelindex.stores.redis.directories import COMPACTED, decode_compacted, encode_directory, read_groups
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.servers import ask_servers, digest_of
from channelindex.stores.redis.store_link import open_link

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

_Sections = dict[int, tuple[list[Any], list[bytes]]]
"""By slot: the items of its channels, flat, and the bytes whose lengths are among them."""


class RedisBlocks:
    """`BlockOperations` in Redis."""

    tail_bytes = TAIL_BYTES
    notices_others = True

    def __init__(self, url: str, index_name: str) -> None:
        self._keys = Keys(index_name)
        self._link = open_link(url, OutcomeUnknown, reconnects=False)
        self._servers = 0
        self._identified_session = -1

    def append(self, appends: Sequence[BlindAppend]) -> Sequence[BlindAppend]:
        """See `BlockOperations.append`: an APPEND for each, all sent together."""
        is_list = isinstance(appends, list)
        unexpected = self._unexpected_of_list(appends) if is_list else self._unexpected_of_selection(appends)
        if unexpected:
            blocks = [*map(self._block_of, unexpected)]
            are_gone = self._link.run_all("take_back", [((key,), ()) for key in blocks])
            for append, block, is_gone in zip(unexpected, blocks, are_gone, strict=True):
                if is_gone:
                    raise lost_block(block, append[0])
        return unexpected

    def _unexpected_of_list(self, appends: Sequence[BlindAppend]) -> list[BlindAppend]:
        """Append; return those whose block has another size now than it should.

        Somebody else has appended to it, too. Or it was not there: then it has nothing but what was appended since, by
        us and maybe by a former owner, who was first.
        """
        by_slot: dict[int, list[BlindAppend]] = {}
        for append in appends:
            by_slot.setdefault(0 if self._link.spans_slots else slot_of(append[0]), []).append(append)
        prefix = self._keys.prefix
        calls = [
            (f"{prefix}{{{slot}}}:", b"".join([_command(prefix, append) for append in of_slot]), len(of_slot))
            for slot, of_slot in by_slot.items()
        ]
        in_order = [*chain(*by_slot.values())]
        replies = self._link.count_packed(calls, lambda number: self._block_of(in_order[number]))
        sizes = map(int, replies[1:-2].split(b"\r\n:"))
        return [append for append, size in zip(in_order, sizes, strict=True) if size != append[3]]

    def _unexpected_of_selection(self, appends: Any) -> list[BlindAppend]:
        """The same of a selection of the compiled kernel, which is in the order of slots."""
        packed = appends.commands(self._keys.prefix, self._link.spans_slots)
        calls = [(self._keys.slot(slot), commands, count) for slot, commands, count in packed]
        replies = self._link.count_packed(calls, lambda number: self._block_of(appends[number]))
        unexpected: list[BlindAppend] = appends.unexpected(replies)
        return unexpected

    def _block_of(self, append: BlindAppend) -> str:
        channel, group, number, _, _ = append
        return self._keys.block(channel, group, number)

    def append_and_locate(self, appends: Sequence[LocatingAppend]) -> Sequence[Location | None]:
        """See `BlockOperations.append_and_locate`."""
        calls, order = self._locating_calls(appends)
        reply = [answer for packed in self._link.run_all("append_and_locate", calls) for answer in _decode(packed)]
        locations: list[Location | None] = [None] * len(appends)
        for index, answer in zip(order, reply, strict=True):
            if answer == "lost":
                raise IndexCorrupt(
                    f"{self._keys.channel(appends[index].channel)}: the directory of group {appends[index].group} and "
                    "its active block are not both there: the store has lost data; channelindex repair puts it back"
                )
            locations[index] = _location_of(answer)
        return locations

    def _locating_calls(self, appends: Sequence[LocatingAppend]) -> tuple[list[ScriptCall], Iterable[int]]:
        """The calls of the script that locates, and for each of its answers the index of the append."""
        if not isinstance(appends, list):
            compiled: Any = appends  # a selection, as above
            together = self._link.spans_slots
            return [
                (() if together else (self._keys.slot(slot),), (self._keys.prefix, arguments, body))
                for slot, arguments, body in compiled.arguments(together)
            ], range(len(appends))
        sections: _Sections = {}
        indices: dict[int, list[int]] = {}
        for index, (channel, group, epoch, header, frame) in enumerate(appends):
            slot = slot_of(channel)
            if slot not in sections:
                sections[slot], indices[slot] = ([], []), []
            items, parts = sections[slot]
            items += (channel, group, _in_hex(epoch), len(header), len(frame))
            parts += (header, frame)
            indices[slot].append(index)
        return self._calls(sections), [*chain(*indices.values())]

    def groups(self, asked: Sequence[Asked]) -> Sequence[GroupState | None]:
        """See `BlockOperations.groups`."""
        return read_groups(self._link, self._keys, asked)

    def is_compacted(self, channel: str) -> bool:
        """See `BlockOperations.is_compacted`."""
        key = self._keys.channel(channel)
        return decode_compacted(self._link.execute("HGET", key, COMPACTED), key).generation > 0

    def move(self, moves: Sequence[Move]) -> Sequence[bool]:
        """See `BlockOperations.move`."""
        flat = [
            (
                move.channel,
                move.group,
                encode_directory(move.known),
                encode_directory(move.new),
                str(move.known.number),
                str(move.new.number) if move.rotates else "",
                move.size,
                move.clock,
            )
            for move in moves
        ]
        reply, order = self._run_by_slot("move", flat)
        happened = [False] * len(moves)
        for index, result in zip(order, reply, strict=True):
            happened[index] = result == 1
        return happened

    def count_principals(self, keys: Sequence[str]) -> None:
        """See `BlockOperations.count_principals`."""
        self._link.run("principals", (self._keys.principals,), _encode(keys))

    def servers(self) -> int:
        """See `BlockOperations.servers`. The link does not reconnect unasked, and till then they are the same."""
        if self._link.session != self._identified_session:
            self._servers = digest_of(ask_servers(self._link))
            assert 0 < self._servers < 1 << 48, "a digest of 48 bits; 0 stands for none"
            self._identified_session = self._link.session
        return self._servers

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
        assert sum(map(len, indices.values())) == len(items), "each item has an answer"
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


_in_hex = lru_cache(64)("{:016x}".format)
"""(epoch) -> it as scripts compare it."""


def _command(prefix: str, append: BlindAppend) -> bytes:
    """The APPEND to the key that `Keys.block` names, as Redis takes it."""
    channel, group, number, _, frame = append
    key = f"{prefix}{{{slot_of(channel)}}}:b:{group}:{number}:{channel}".encode()
    return b"*3\r\n$6\r\nAPPEND\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(frame), frame)


@lru_cache(4096)  # of first blocks, most of which have one of a few sizes
def _location_of(answer: int | str) -> Location | None:
    """The place to which append_and_locate.lua appended, None where it refused."""
    if isinstance(answer, int):
        return Location(0, answer, 0)
    return Location(*map(int, answer.split(":"))) if answer else None


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
