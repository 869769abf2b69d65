"""A whole index in Redis, taken apart by docs/format.md and KEYSPACE.md alone: no code of the product is used.

What a reader could not find is not there: blocks behind the active one, channels under another slot than their own.
Read it while nobody writes.
"""

import json
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.redis_any import open_any

N_SLOTS = 64
HEADER = 0x48
ENTRIES = 0x45
PACKED = 255
NO_BOUND = (1 << 64) - 1
PairsByEpoch = Iterable[tuple[int, Sequence[tuple[int, int]]]]
"""Epochs, each with the (vbucket, seqno) pairs that it wrote."""
AT_ONCE = 200
"""Keys asked for in one round trip."""

_FRAME = struct.Struct(">BIIQ")
_ENTRY = struct.Struct(">HQHBB")
_PACKED_REV = struct.Struct(">I16s")
_PAIR = struct.Struct(">HQ")
_CHECKPOINT_SEQNO = struct.Struct(">8xQ24x")
_CHANNEL_KEY = re.compile(rb"\{(\d+)\}:c:(.*)", re.DOTALL)


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
    """The index *name* in the Redis at *url*, or in the cluster or the Sentinels' master there."""
    with closing(open_any(url)) as client:
        return _Reading(client, f"ci:{name}:").whole()


class Damaged(Exception):
    """Stored bytes are not what the format says."""


class _Reading:
    """Reads one index, in the order of a reader: first the partition records, then all else."""

    def __init__(self, client: Any, prefix: str) -> None:
        self._client = client
        self._prefix = prefix.encode()
        self._index = RawIndex()

    def whole(self) -> RawIndex:
        """All that is there."""
        self._index.partitions = self._partitions()
        for channel, slot_prefix in self._channels():
            for group, directory, clock in self._directory(channel, slot_prefix):
                try:
                    self._read_group(channel, slot_prefix, group, directory, clock)
                except (Damaged, struct.error) as error:
                    self._index.damage.append(f"channel {channel!r}, group {group}: {error}")
        return self._index

    def _partitions(self) -> list[Partition]:
        meta = json.loads(self._client.get(self._prefix + b"{i}:meta") or b"")
        width = meta["n_vbuckets"] // meta["n_partitions"]
        return [self._partition(number, width) for number in range(meta["n_partitions"])]

    def _partition(self, number: int, width: int) -> Partition:
        record = self._client.hgetall(self._prefix + b"{i}:p:%d" % number)
        archive = self._client.get(self._prefix + b"{i}:h:%d" % number) or b""
        archived = int(record[b"archived"])
        starts = {epoch: seqnos for epoch, seqnos in _starts(archive, width) if epoch <= archived}
        starts.update(_starts(record[b"hist"], width))
        stable = tuple(seqno for (seqno,) in _CHECKPOINT_SEQNO.iter_unpack(record[b"ck"]))
        if len(stable) != width or (archived and archived not in starts):
            raise Damaged(f"partition {number}: {len(stable)} checkpoints, archived up to {archived}")
        return Partition(number * width, int(record[b"epoch"]), stable, tuple(sorted(starts.items())))

    def _channels(self) -> Iterator[tuple[str, bytes]]:
        """Each channel, and what its keys begin with."""
        for key in sorted(set(self._client.scan_iter(match=self._prefix + b"{*}:c:*", count=1000))):
            found = _CHANNEL_KEY.fullmatch(key.removeprefix(self._prefix))
            if found and int(found[1]) == zlib.crc32(found[2]) % N_SLOTS:
                yield found[2].decode(), self._prefix + b"{%s}:" % found[1]

    def _directory(self, channel: str, slot_prefix: bytes) -> Iterator[tuple[str, bytes, bytes]]:
        """Each group that wrote a channel, its directory and its clock frame."""
        fields = self._client.hgetall(slot_prefix + b"c:" + channel.encode())
        for name, value in sorted(fields.items()):
            if name.startswith(b"g"):
                yield name[1:].decode(), value, fields.get(b"k" + name[1:], b"")

    def _read_group(self, channel: str, slot_prefix: bytes, group: str, directory: bytes, clock: bytes) -> None:
        named, _, *sizes = directory.split(b":")
        active, (before, upto) = int(named), map(int, sizes)
        tail = group.encode(), channel.encode()
        n_bytes = 0
        for number, block in enumerate(
            self._values(slot_prefix + b"b:%s:%d:%s" % (tail[0], n, tail[1]) for n in range(active + 1))
        ):
            if block is None:
                raise Damaged(f"block {number} of {active + 1} is missing")
            self._read_block(channel, group, number, block)
            if number < active:
                n_bytes += len(block)
                continue
            if len(block) < upto or n_bytes < before:
                raise Damaged(f"directory {directory!r}: {n_bytes} bytes before the active block of {len(block)}")
            summed_up = list(map(_said_by, _frames(clock)))
            n_entries = sum(len(list(_entries(body))) for kind, _, body in _frames(block[:upto]) if kind == ENTRIES)
            self._add_clock(channel, group, active + 1, [*summed_up, *map(_said_by, _frames(block[upto:]))])
            self._add_clock(channel, group, active, summed_up, n_entries)

    def _values(self, keys: Iterator[bytes]) -> Iterator[bytes | None]:
        while chunk := list(islice(keys, AT_ONCE)):
            yield from getattr(self._client, "mget_nonatomic", self._client.mget)(chunk)

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
    """The epochs of a partition of *width* vbuckets, each with its seqnos."""
    return [(epoch, tuple(seqnos)) for epoch, *seqnos in struct.iter_unpack(f">Q{width}Q", history)]


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
