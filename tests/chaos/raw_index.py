"""A whole index, taken apart by docs/format.md and KEYSPACE.md alone: no code of the product is used.

What a reader could not find is not there: blocks behind the active one, channels under another slot than their own.
Read it while nobody writes.
"""

import json
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.raw_layouts import Group, Layout, layout_of

HEADER = 0x48
ENTRIES = 0x45
PACKED = 255
NO_BOUND = (1 << 64) - 1
PairsByEpoch = Iterable[tuple[int, Sequence[tuple[int, int]]]]
"""Epochs, each with the (vbucket, seqno) pairs that it wrote."""

_FRAME = struct.Struct(">BIIQ")
_ENTRY = struct.Struct(">HQHBB")
_PACKED_REV = struct.Struct(">I16s")
_PAIR = struct.Struct(">HQ")
_CHECKPOINT_SEQNO = struct.Struct(">8xQ24x")


class Entry(NamedTuple):
    """One entry as it lies in the store: the `position`-th of its block."""

    channel: str
    group: str
    block: int
    position: int
    epoch: int
    vb: int
    seqno: int
    doc: str
    rev: str
    flags: int


class Partition(NamedTuple):
    """A partition's record: the stable seqnos of its vbuckets, and where each epoch started, its archive included."""

    first_vb: int
    epoch: int
    stable: tuple[int, ...]
    starts: tuple[tuple[int, tuple[int, ...]], ...]


class ChannelClock(NamedTuple):
    """What the index says of a channel in a group: the newest (vbucket, seqno) of all that is before block `before`.

    That is the header of that block; for the block behind the active one, the channel's clock frame and the rest of the
    active block. The clock frame alone is of all before the `position`-th entry of the active block. Each pair is
    lowered to what is live under the epoch that wrote it, as readers do.
    """

    channel: str
    group: str
    before: int
    pairs: tuple[tuple[int, int], ...]
    position: int | None = None


@dataclass
class RawIndex:
    """An index. `entries` are in the order in which they lie in their blocks; `damage` is what could not be read."""

    partitions: list[Partition] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    clocks: list[ChannelClock] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)

    @property
    def n_vbuckets(self) -> int:
        """How many vbuckets the index is of."""
        return sum(len(partition.stable) for partition in self.partitions)

    def is_live(self, entry: Entry) -> bool:
        """Whether no later epoch of its partition started below it."""
        return entry.seqno <= self.bound(entry.epoch, entry.vb)

    def is_visible(self, entry: Entry) -> bool:
        """Whether it is live, and stable, and of no epoch that the partition's record does not know yet."""
        partition, index = self._place(entry.vb)
        return entry.epoch <= partition.epoch and self.is_live(entry) and entry.seqno <= partition.stable[index]

    def bound(self, epoch: int, vb: int) -> int:
        """The lowest start of *vb* in any epoch after *epoch*."""
        partition, index = self._place(vb)
        epochs, minima = self._minima[partition.first_vb]
        return minima[bisect_right(epochs, epoch)][index]

    def _place(self, vb: int) -> tuple[Partition, int]:
        width = len(self.partitions[0].stable)
        return self.partitions[vb // width], vb % width

    @cached_property
    def _minima(self) -> dict[int, tuple[list[int], list[tuple[int, ...]]]]:
        """By a partition's first vbucket its epochs, and the lowest starts from each of them on; last, no bound."""
        found = {}
        for partition in self.partitions:
            minima = [(NO_BOUND,) * len(partition.stable)]
            for _, starts in reversed(partition.starts):
                minima.append(tuple(map(min, minima[-1], starts)))
            found[partition.first_vb] = [epoch for epoch, _ in partition.starts], minima[::-1]
        return found

    def save(self, folder: Path) -> None:
        """Write it below *folder*, a file of JSON lines for each part."""
        for name in self.__dataclass_fields__:
            with (folder / f"index-{name}.jsonl").open("w") as file:
                file.writelines(json.dumps(item) + "\n" for item in getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> "RawIndex":
        """What `save` wrote."""

        def lines(name: str) -> Iterator[Any]:
            with (folder / f"index-{name}.jsonl").open() as file:
                yield from map(json.loads, file)

        return cls(
            [
                Partition(first_vb, epoch, tuple(stable), tuple((e, tuple(seqnos)) for e, seqnos in starts))
                for first_vb, epoch, stable, starts in lines("partitions")
            ],
            [Entry(*item) for item in lines("entries")],
            [
                ChannelClock(channel, group, before, tuple((vb, seqno) for vb, seqno in pairs), position)
                for channel, group, before, pairs, position in lines("clocks")
            ],
            [str(item) for item in lines("damage")],
        )


def read_index(url: str, name: str = "channels") -> RawIndex:
    """The index *name* in the store at *url*: a Redis, a cluster, the Sentinels' master, or a bucket."""
    with closing(layout_of(url, name)) as layout:
        return _Reading(layout).whole()


class Damaged(Exception):
    """Stored bytes are not what the format says."""


class _Reading:
    """Reads one index, in the order of a reader: first the partition records, then all else."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._index = RawIndex()

    def whole(self) -> RawIndex:
        """All that is there."""
        self._index.partitions = self._partitions()
        for channel in self._layout.channels():
            for group in self._layout.groups(channel):
                try:
                    self._read_group(channel, group)
                except (Damaged, struct.error) as error:
                    self._index.damage.append(f"channel {channel!r}, group {group.name}: {error}")
        return self._index

    def _partitions(self) -> list[Partition]:
        meta = self._layout.meta() or {}
        n_partitions: int = meta["n_partitions"]
        width: int = meta["n_vbuckets"] // n_partitions
        return [self._partition(n_partitions, width, number) for number in range(n_partitions)]

    def _partition(self, n_partitions: int, width: int, number: int) -> Partition:
        record = self._layout.record(n_partitions, width, number)
        starts = {epoch: seqnos for epoch, seqnos in _starts(record.archive, width) if epoch <= record.archived}
        starts.update(_starts(record.history, width))
        stable = stable_in(record.checkpoints)
        if len(stable) != width or (record.archived and record.archived not in starts):
            raise Damaged(f"partition {number}: {len(stable)} checkpoints, archived up to {record.archived}")
        return Partition(number * width, record.epoch, stable, tuple(sorted(starts.items())))

    def _read_group(self, channel: str, group: Group) -> None:
        n_bytes = 0
        numbers = range(group.first, group.active + 1)
        for number, block in zip(numbers, self._layout.blocks(channel, group.name, numbers), strict=True):
            if block is None:
                raise Damaged(f"block {number} of {group.active + 1} is missing")
            self._read_block(channel, group.name, number, block)
            if number < group.active:
                n_bytes += len(block)
                continue
            if group.clock is None:
                upto, clock = _header_of(block)
            else:
                upto, clock = group.upto or 0, group.clock
            if len(block) < upto or n_bytes < group.before - group.dropped:
                raise Damaged(f"directory {group}: {n_bytes} bytes before the active block of {len(block)}")
            summed_up = list(map(_said_by, _frames(clock)))
            n_entries = sum(len(list(_entries(body))) for kind, _, body in _frames(block[:upto]) if kind == ENTRIES)
            self._add_clock(channel, group.name, number + 1, [*summed_up, *map(_said_by, _frames(block[upto:]))])
            self._add_clock(channel, group.name, number, summed_up, n_entries)

    def _read_block(self, channel: str, group: str, number: int, block: bytes) -> None:
        position = 0
        for place, (kind, epoch, body) in enumerate(_frames(block)):
            if (kind == HEADER) != (place == 0):
                raise Damaged(f"block {number}: frame {place} is of kind 0x{kind:02x}")
            if kind == HEADER:
                self._add_clock(channel, group, number, [(epoch, list(_PAIR.iter_unpack(body)))])
                continue
            for vb, seqno, doc, rev, flags in _entries(body):
                entry = Entry(channel, group, number, position, epoch, vb, seqno, doc, rev, flags)
                if vb >= self._index.n_vbuckets:
                    raise Damaged(f"block {number}: {entry} is of a vbucket that the index does not have")
                self._index.entries.append(entry)
                position += 1

    def _add_clock(
        self, channel: str, group: str, before: int, records: PairsByEpoch, position: int | None = None
    ) -> None:
        clock: dict[int, int] = {}
        for epoch, pairs in records:
            for vb, seqno in pairs:
                clock[vb] = max(clock.get(vb, 0), min(seqno, self._index.bound(epoch, vb)))
        self._index.clocks.append(ChannelClock(channel, group, before, tuple(sorted(clock.items())), position))


def _starts(history: bytes, width: int) -> list[tuple[int, tuple[int, ...]]]:
    """The epochs of a partition of *width* vbuckets, each with its seqnos; reaches, which concern tokens, are left."""
    starts = []
    numbers = [number for (number,) in struct.iter_unpack(">Q", history)]
    while numbers:
        has_reaches, epoch = divmod(numbers[0], 1 << 63)
        starts.append((epoch, tuple(numbers[1 : 1 + width])))
        del numbers[: 1 + width * (1 + has_reaches)]
    return starts


def stable_in(checkpoints: bytes) -> tuple[int, ...]:
    """The stable seqnos that a partition's checkpoints say."""
    return tuple(seqno for (seqno,) in _CHECKPOINT_SEQNO.iter_unpack(checkpoints))


def _header_of(block: bytes) -> tuple[int, bytes]:
    """The size of a block's header, and the header."""
    if len(block) < _FRAME.size:
        raise Damaged("the block has no header")
    size = _FRAME.size + _FRAME.unpack_from(block)[1]
    return size, block[:size]


def _said_by(frame: tuple[int, int, bytes]) -> tuple[int, list[tuple[int, int]]]:
    """(epoch, pairs) of a frame: what a header says, or of what a frame of entries brings."""
    kind, epoch, body = frame
    if kind == HEADER:
        return epoch, list(_PAIR.iter_unpack(body))
    return epoch, [(vb, seqno) for vb, seqno, *_ in _entries(body)]


def _frames(block: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(kind, epoch, body) of each frame of a block."""
    offset = 0
    while offset < len(block):
        if offset + _FRAME.size > len(block):
            raise Damaged(f"a frame's head at byte {offset} is cut off")
        kind, size, checksum, epoch = _FRAME.unpack_from(block, offset)
        body = block[offset + _FRAME.size : offset + _FRAME.size + size]
        if len(body) != size or zlib.crc32(epoch.to_bytes(8, "big") + body, kind) != checksum:
            raise Damaged(f"the frame at byte {offset} is cut off, or its checksum differs")
        yield kind, epoch, body
        offset += _FRAME.size + size


def _entries(body: bytes) -> Iterator[tuple[int, int, str, str, int]]:
    """(vb, seqno, document, revision, flags) of each entry of a frame."""
    offset = 0
    while offset < len(body):
        vb, seqno, flags, key_size, rev_size = _ENTRY.unpack_from(body, offset)
        key_start = offset + _ENTRY.size
        rev_start = key_start + key_size
        offset = rev_start + (_PACKED_REV.size if rev_size == PACKED else rev_size)
        if offset > len(body):
            raise Damaged(f"an entry ends {offset - len(body)} bytes after its frame")
        raw = body[rev_start:offset]
        rev = "{}-{}".format(*_unpacked(raw)) if rev_size == PACKED else raw.decode()
        yield vb, seqno, body[key_start:rev_start].decode(errors="backslashreplace"), rev, flags


def _unpacked(raw: bytes) -> tuple[int, str]:
    generation, digest = _PACKED_REV.unpack(raw)
    return generation, digest.hex()
