"""Mutated ring frames and batches into the writer's half of the compiled kernel and into Python, alike.

Nobody hostile reaches this half, whose input other processes of the node wrote. But what its memory holds follows
from channels' names and documents' keys, and a mistake there would be found by nobody else.
"""

import random
from typing import Any

from channelindex import blocks, kernel
from channelindex.errors import IndexCorrupt
from channelindex.model import Entry
from channelindex.stores.active import ActiveBlock, ActiveBlocks, LocatingAppend, Location, learn
from channelindex.stores.base import ChannelAppend
from channelindex.stores.block_writer import full_at, sort
from tests.fuzz.mutation import mutated
from workers.pipeline.frames import Merged, merge_payloads, pack_frames

BATCHES_PER_LIFE = 100
_GROUPS = ("0123456789abcdef", "fedcba9876543210", "")
_CHANNELS = ("", "a", "b", "é" * 20, "c" * 31, "c" * 32, "d" * 255, "e" * 256, *(f"ch_{n}" for n in range(12)))
_NUMBERS = (0, 1, 127, 128, 255, 65_536, 1 << 32, (1 << 64) - 1)
_EPOCHS = (5, 6, 1 << 40)


class KernelWriterTarget:
    """Gives one batch after the other to both, each of which remembers the blocks of those before."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._module: Any = kernel._found().compiled
        self._tables = self._new_tables()
        self.n_rejected = 0

    def _new_tables(self) -> tuple[Any, ActiveBlocks]:
        return self._module.ActiveBlocks(8, ActiveBlock, LocatingAppend, 2000), ActiveBlocks(8, 2000)

    def case(self, number: int) -> list[bytes]:
        """The ring frames of a batch, one of which may be mutated."""
        chance = random.Random(f"{self._seed}:{number}")
        payloads = [payload for _ in range(chance.randrange(1, 4)) for payload in _round(chance)]
        if payloads and chance.random() < 0.3:
            payloads[chance.randrange(len(payloads))] = mutated(chance, payloads)
        return payloads

    def run(self, number: int) -> None:
        """Run a case. Raises where the two differ."""
        payloads, chance = self.case(number), random.Random(f"{self._seed}:{number}:answers")
        python, compiled = (_merged(payloads, module) for module in (None, self._module))
        if python is None or compiled is None:
            assert python is compiled, "one of them refuses what the other takes"
            self.n_rejected += 1
            return
        assert [*compiled.appends] == [*python.appends]
        assert compiled[1:] == python[1:]
        if number % BATCHES_PER_LIFE == 0:
            self._tables = self._new_tables()
        self._write(chance, [*python.appends])
        frames = b"".join(blocks.pack_frame(blocks.ENTRIES, 7, append.entries) for append in python.appends)
        for each in (frames, mutated(chance, [frames]) if frames else b""):
            assert self._module.pack_clock(each) == _clock(each)

    def _write(self, chance: random.Random, appends: list[ChannelAppend]) -> None:
        """What is appended where, and what is learnt of it, as if a store had answered."""
        table, python_table = self._tables
        tail_bytes = chance.choice((0, 1 << 62))  # between these, it is more where pairs have been noted
        known, due, unknown = table.sort(self._module.batch_of(appends, ChannelAppend), tail_bytes)
        by_python = sort(python_table, appends, tail_bytes)
        assert [*known] == by_python.known
        assert [(append, _fields(block)) for append, block in due] == [(a, _fields(b)) for a, b in by_python.due]
        assert [*unknown] == by_python.unknown
        for append, block in due:
            for each in (table, python_table):
                each.drop(append[:2])
            if block.summed is not None:
                assert blocks.pack_pairs(blocks.unpack_pairs(block.summed[3])) == block.summed[3]
                table.put(append[:2], block, append.entries)
                python_table.put(append[:2], block, append.entries)
        for call in known.calls(3, 700):
            ((_, commands, count), *more) = call.commands("ci:x:", True)
            assert count == len(call)
            assert all(frame in commands for *_, frame in call)
            assert not more, "one server takes all of it"
            sizes = b"".join(b":%d\r\n" % (append[3] + chance.randrange(2)) for append in call)
            told = [
                append for append, line in zip(call, sizes.split(b"\r\n"), strict=False) if int(line[1:]) != append[3]
            ]
            assert call.unexpected(sizes) == told
        for call in unknown.calls(3, 700):
            call.arguments(False)
            found = [_location(chance, append) for append in call]
            assert table.learn(call, found, 1 << 16, full_at) == learn(python_table, [*call], found, 1 << 16, full_at)
        assert len(table) == len(python_table)


def _round(chance: random.Random) -> list[bytes]:
    channels = chance.sample(_CHANNELS, chance.randrange(5))
    sections = {channel: [_entry(chance) for _ in range(chance.randrange(1, 4))] for channel in channels}
    principals = [f"_sync:user:{number}" for number in range(chance.choice((0, 0, 1, 20)))]
    return pack_frames(chance.choice(_EPOCHS), chance.choice(_GROUPS), sections, principals, 1 << 16)


def _entry(chance: random.Random) -> bytes:
    rev = chance.choice(("1-a", "7-" + "0a" * 16, "x" * 254))
    key = b"k" * chance.choice((0, 14, 255))
    return blocks.pack_entry(Entry(chance.choice((0, 63, 64, 1023, 65_535)), chance.choice(_NUMBERS), key, rev, 0))


def _location(chance: random.Random, append: LocatingAppend) -> Location | None:
    if chance.random() < 0.1:
        return None
    if chance.random() < 0.5:
        return Location(0, len(append.header) + len(append.frame), 0)
    numbers = chance.choice(_NUMBERS), chance.randrange(1 << 17), chance.randrange(1 << 17)
    return Location(*numbers, chance.choice((0, 0, 100, 5000, 1 << 30)))


def _merged(payloads: list[bytes], module: Any) -> Merged | None:
    try:
        return merge_payloads([(0, [memoryview(payload) for payload in payloads])], {6}, module)
    except ValueError:  # of msgspec, or of what is no UTF-8
        return None


def _fields(block: ActiveBlock) -> list[int]:
    return [getattr(block, name) for name in ActiveBlock.__struct_fields__ if name not in ("summed", "noted", "since")]


def _clock(frames: bytes) -> bytes | None:
    try:
        return blocks.pack_clock(frames)
    except IndexCorrupt:
        return None
