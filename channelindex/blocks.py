"""The stored format of entries, blocks and clocks, and the slot of a channel's keys. Pure functions over bytes.

docs/format.md has the tables.

All integers are big-endian and unsigned. A **block** is a string of frames; it is only ever appended to:

    offset  size  field
    0       1     kind: 0x48 'H' header, 0x45 'E' entries
    1       4     length of the body in bytes
    5       4     CRC-32 of the epoch and the body, begun with the kind
    9       8     epoch of the writer
    17      n     body: entries, or for a header the channel's clock (pairs) when the block was started

    entry:  vb u16, seqno u64, flags u16, key length u8, revision length u8, key, revision
            revision length 255: packed, generation u32 and the digest's 16 bytes, for "N-<32 hex digits>"
    pair:   vb u16, seqno u64

The **clock** of a channel is what `fold_clock` makes of such frames: those of all its blocks, or a header that sums up
the first of them and those that follow. A further frame can only raise it, whatever order or epoch it comes in.
"""

import struct
import zlib
from binascii import unhexlify
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache

from channelindex.errors import IndexCorrupt
from channelindex.model import Entry

FORMAT_VERSION = 2
"""Version of everything in this module and of the stores' keys. An index with another one is refused."""

N_SLOTS = 64
"""Hash tags of an index in Redis. Part of the format: a channel's keys carry its slot, so it can never change."""

HEADER = 0x48
ENTRIES = 0x45

PAIR_BYTES = 10
MAX_KEY_BYTES = 255
MAX_REV_BYTES = 254
PACKED = 255
"""The revision length byte of an entry whose revision is packed into PACKED_REV_BYTES bytes."""

_FRAME = struct.Struct(">BIIQ")
FRAME_HEAD_BYTES = _FRAME.size
_EPOCH_OFFSET = 9
_ENTRY = struct.Struct(">HQHBB")
_ENTRY_SIZES = struct.Struct(">HQ2xBB")
"""The same without the flags."""
_SIZES_OFFSET = 12
_PACKED_REV = struct.Struct(">I16s")
PACKED_REV_BYTES = _PACKED_REV.size
_DIGEST_CHARACTERS = 32
_GENERATIONS = {str(generation): generation for generation in range(1000)}
"""By their texts, the generations that most revisions have."""
_WHOLE_ENTRIES = [struct.Struct(f">HQHBB{key_size}sI16s").pack for key_size in range(MAX_KEY_BYTES + 1)]
"""By the length of the key, what packs an entry with a packed revision in one go."""
_PAIR = struct.Struct(">HQ")
_MANY_PAIRS = struct.Struct(">" + 64 * "HQ")
_MANY_ITEMS = 2 * 64

Frame = tuple[int, int, bytes]
"""(kind, epoch, body)."""

OnCorrupt = Callable[[IndexCorrupt], None]
"""Told of damage in what is being read. If it returns, reading goes on with what is whole."""


def slot_of(channel: str) -> int:
    """The hash tag, 0 to N_SLOTS - 1, under which all keys of a channel lie."""
    return zlib.crc32(channel.encode()) % N_SLOTS


def refuse(error: IndexCorrupt) -> None:
    """Raise *error*: the `OnCorrupt` of whoever must not miss anything."""
    raise error


def pack_rev(rev: str) -> tuple[int, bytes]:
    """The stored revision length byte and bytes of a revision id.

    Raises:
        ValueError: the id has no packed form and is longer than MAX_REV_BYTES in UTF-8.
    """
    generation, _, digest = rev.partition("-")
    if len(digest) == _DIGEST_CHARACTERS and generation.isascii() and generation.isdigit():
        try:
            raw = bytes.fromhex(digest)
            if raw.hex() == digest and (generation[0] != "0" or generation == "0"):  # it must come back as it was
                return PACKED, _PACKED_REV.pack(int(generation), raw)
        except (ValueError, struct.error):
            pass  # no digest, or a generation beyond 32 bits
    raw = rev.encode()
    if len(raw) > MAX_REV_BYTES:
        raise ValueError(f"revision id of {len(raw)} bytes, at most {MAX_REV_BYTES} can be indexed")
    return len(raw), raw


def _unpack_rev(packed: bytes) -> str:
    generation, digest = _PACKED_REV.unpack(packed)
    return f"{generation}-{digest.hex()}"


pack_entry_head = _ENTRY.pack
"""(vb, seqno, flags, key length, revision length byte) -> the fixed part of an entry; key and revision follow it.

The first PAIR_BYTES of the result are the entry's clock pair.
"""

unpack_entry_head = _ENTRY.unpack_from
"""(buffer, offset) -> (vb, seqno, flags, key length, revision length byte): for a loop that cannot afford an Entry."""

ENTRY_HEAD_BYTES = _ENTRY.size


def pack_entry(entry: Entry) -> bytes:
    """One entry's stored bytes; errors are those of `pack_fields`."""
    return pack_fields(*entry)


def pack_fields(vb: int, seqno: int, key: bytes, rev: str, flags: int) -> bytes:
    """The stored bytes of an entry with the fields of an `Entry`, in their order: for a loop that makes none.

    Raises:
        ValueError: see `pack_rev`.
        struct.error: the key is longer than MAX_KEY_BYTES, or a number has no room.
    """
    generation, _, digest = rev.partition("-")
    number, key_size = _GENERATIONS.get(generation), len(key)
    if number is not None and len(digest) == _DIGEST_CHARACTERS and key_size <= MAX_KEY_BYTES:
        try:
            raw = unhexlify(digest)
        except ValueError:
            raw = b""
        if raw.hex() == digest:
            return _WHOLE_ENTRIES[key_size](vb, seqno, flags, key_size, PACKED, key, number, raw)
    size, packed_rev = pack_rev(rev)
    return pack_entry_head(vb, seqno, flags, key_size, size) + key + packed_rev


def iter_entries(body: bytes) -> Iterator[Entry]:
    """The entries of one frame's body, in the order in which they were appended.

    Raises:
        IndexCorrupt: the body ends within an entry.
    """
    offset, end = 0, len(body)
    while offset < end:
        try:
            vb, seqno, flags, key_size, rev_size = _ENTRY.unpack_from(body, offset)
        except struct.error as error:
            raise IndexCorrupt(f"entry at byte {offset} of {end} is cut off") from error
        key_start = offset + _ENTRY.size
        rev_start = key_start + key_size
        offset = rev_start + (_PACKED_REV.size if rev_size == PACKED else rev_size)
        if offset > end:
            raise IndexCorrupt(f"entry at byte {key_start - _ENTRY.size} of {end} is cut off")
        raw = body[rev_start:offset]
        rev = _unpack_rev(raw) if rev_size == PACKED else raw.decode()
        yield Entry(vb, seqno, body[key_start:rev_start], rev, flags)


def has_several(body: bytes) -> bool:
    """Return whether there is more than one entry in the *body* of a frame."""
    return len(body) >= ENTRY_HEAD_BYTES and len(body) > _size_of_first(body)


def count_entries(block: bytes) -> int:
    """Count the entries in a block.

    Raises:
        IndexCorrupt: see `iter_frames`.
    """
    count = 0
    for kind, _, body in iter_frames(block):
        offset = 0
        while kind == ENTRIES and offset < len(body):
            *_, key_size, rev_size = _ENTRY.unpack_from(body, offset)
            offset += _ENTRY.size + key_size + (PACKED_REV_BYTES if rev_size == PACKED else rev_size)
            count += 1
    return count


def pack_frame(kind: int, epoch: int, body: bytes) -> bytes:
    """One frame of a block, checksum included."""
    assert kind in (HEADER, ENTRIES)
    checksum = zlib.crc32(body, zlib.crc32(epoch.to_bytes(8, "big"), kind))
    return _FRAME.pack(kind, len(body), checksum, epoch) + body


def iter_frames(block: bytes, on_corrupt: OnCorrupt = refuse) -> Iterator[Frame]:
    """Each frame of a block, in order. A damaged one is passed to *on_corrupt*; the next ones follow.

    Raises:
        IndexCorrupt: if *on_corrupt* does. Frames before the damaged one were yielded.
    """
    offset, end = 0, len(block)
    while offset < end:
        try:
            frame = _frame_at(block, offset)
        except IndexCorrupt as error:
            on_corrupt(error)
            damaged, offset = offset, _next_frame(block, offset)
            assert offset > damaged, "reading goes on behind the damage, or it would go on for ever"
            continue
        yield frame
        offset += _FRAME.size + len(frame[2])


def _frame_at(block: bytes, offset: int) -> Frame:
    """The frame that begins at *offset*.

    Raises:
        IndexCorrupt: it is cut off, of an unknown kind, or fails its checksum.
    """
    if offset + _FRAME.size > len(block):
        raise IndexCorrupt(f"frame head at byte {offset} of {len(block)} is cut off")
    kind, size, checksum, epoch = _FRAME.unpack_from(block, offset)
    body = block[offset + _FRAME.size : offset + _FRAME.size + size]
    if kind not in (HEADER, ENTRIES):
        raise IndexCorrupt(f"frame at byte {offset}: unknown kind 0x{kind:02x}")
    if len(body) != size:
        raise IndexCorrupt(f"frame at byte {offset}: {size} bytes announced, {len(body)} left")
    if zlib.crc32(body, zlib.crc32(block[offset + _EPOCH_OFFSET : offset + _FRAME.size], kind)) != checksum:
        raise IndexCorrupt(f"frame at byte {offset}: checksum differs")
    return kind, epoch, body


def split_header(block: bytes) -> tuple[bytes, bytes]:
    """The header frame with which *block* begins, and the rest; nothing, and all of it, where there is no header."""
    try:
        kind, _, body = _frame_at(block, 0)
    except IndexCorrupt:
        return b"", block
    size = _FRAME.size + len(body)
    return (block[:size], block[size:]) if kind == HEADER else (b"", block)


def _next_frame(block: bytes, damaged: int) -> int:
    """The offset at which to continue after the frame at *damaged*: the next whole frame, or the end of the block.

    First at the end that the frame itself names. Only if its head is damaged too, the next place is searched that
    passes for a frame: a document's key can be made to look like one.
    """
    if damaged + _FRAME.size <= len(block):
        _, size, _, _ = _FRAME.unpack_from(block, damaged)
        stated_end = damaged + _FRAME.size + size
        if stated_end == len(block) or _is_frame(block, stated_end):
            return int(stated_end)
    return next((offset for offset in range(damaged + 1, len(block)) if _is_frame(block, offset)), len(block))


def _is_frame(block: bytes, offset: int) -> bool:
    try:
        _frame_at(block, offset)
    except IndexCorrupt:
        return False
    return True


def pack_pairs(clock: Mapping[int, int]) -> bytes:
    """A clock (vbucket -> seqno) as pairs, ascending by vbucket."""
    vbuckets = sorted(clock)
    flat = [0] * (2 * len(vbuckets))
    flat[::2] = vbuckets
    flat[1::2] = [clock[vb] for vb in vbuckets]
    whole = len(flat) - len(flat) % _MANY_ITEMS
    many = [_MANY_PAIRS.pack(*flat[at : at + _MANY_ITEMS]) for at in range(0, whole, _MANY_ITEMS)]
    return b"".join([*many, *map(_PAIR.pack, flat[whole::2], flat[whole + 1 :: 2])])


def pack_clock(frames: bytes) -> bytes:
    """The clock in *frames*, as pairs. The compiled kernel has a function like it, which leaves damaged ones to this.

    Raises:
        IndexCorrupt: see `fold_clock`.
    """
    return pack_pairs(fold_clock(frames))


def raise_pairs(pairs: bytes, bodies: Iterable[bytes]) -> bytes:
    """The clock in *pairs*, raised to what the entries in *bodies* of frames have, as pairs.

    Raises:
        IndexCorrupt: see `fold_clock`.
    """
    clock = unpack_pairs(pairs)
    for body in bodies:
        _add_entries(clock, body)
    return pack_pairs(clock)


def unpack_pairs(pairs: bytes) -> dict[int, int]:
    """The clock in *pairs*, by maximum where a vbucket occurs twice.

    Raises:
        IndexCorrupt: the length is no multiple of PAIR_BYTES.
    """
    clock: dict[int, int] = {}
    _add_pairs(clock, pairs)
    return clock


def _add_pairs(clock: dict[int, int], pairs: bytes) -> None:
    if len(pairs) % PAIR_BYTES:
        raise IndexCorrupt(f"clock pairs of {len(pairs)} bytes, no multiple of {PAIR_BYTES}")
    if not clock:
        clock.update(_PAIR.iter_unpack(pairs))
        if len(clock) * PAIR_BYTES == len(pairs):  # as in every clock that was packed here
            return
        clock.clear()
    _raise(clock, _PAIR.iter_unpack(pairs))


def fold_clock(frames: bytes, limit: Callable[[int, int], int] | None = None) -> dict[int, int]:
    """The clock in *frames*: per vbucket the highest seqno, each lowered to `limit(epoch, vb)` first.

    *limit* must not say 0 of an epoch that began after the partition record was read (as `EpochLimits.visible` does,
    rightly, of entries): a header has its writer's epoch and sums up all epochs before it.

    Raises:
        IndexCorrupt: a frame is damaged, or ends within an entry or a pair.
    """
    clock: dict[int, int] = {}
    for kind, epoch, body in iter_frames(frames):
        of_frame = clock if limit is None else {}
        _add_pairs(of_frame, body) if kind == HEADER else _add_entries(of_frame, body)
        if limit is not None:
            for vb, seqno in of_frame.items():
                lowered = min(seqno, limit(epoch, vb))
                if lowered > clock.get(vb, -1):
                    clock[vb] = lowered
    return clock


def _raise(clock: dict[int, int], pairs: Iterable[tuple[int, int]]) -> None:
    for vb, seqno in pairs:
        if seqno > clock.get(vb, -1):
            clock[vb] = seqno


def _add_entries(clock: dict[int, int], body: bytes) -> None:
    equal = _pairs_if_equal(body)
    if equal is not None:
        _raise(clock, equal)
        return
    unpack, seqno_of = _ENTRY_SIZES.unpack_from, clock.get
    offset, end = 0, len(body)
    try:
        while offset < end:
            vb, seqno, key_size, rev_size = unpack(body, offset)
            offset += ENTRY_HEAD_BYTES + key_size + (PACKED_REV_BYTES if rev_size == PACKED else rev_size)
            if seqno > seqno_of(vb, -1):
                clock[vb] = seqno
    except struct.error as error:
        raise IndexCorrupt(f"entry at byte {offset} of {end} is cut off") from error
    if offset > end:
        raise IndexCorrupt(f"the last entry ends {offset - end} bytes after its frame")


def _size_of_first(body: bytes) -> int:
    """Bytes of the entry with which *body* begins."""
    assert len(body) >= ENTRY_HEAD_BYTES, "its head is there"
    key_size, rev_size = body[_SIZES_OFFSET:ENTRY_HEAD_BYTES]
    return ENTRY_HEAD_BYTES + key_size + (PACKED_REV_BYTES if rev_size == PACKED else rev_size)


def _pairs_if_equal(body: bytes) -> Iterator[tuple[int, int]] | None:
    """The pairs with which entries begin whose keys and revisions are equally long, as most are; None for others."""
    if len(body) < ENTRY_HEAD_BYTES:
        return None
    key_size, rev_size = body[_SIZES_OFFSET:ENTRY_HEAD_BYTES]
    size = _size_of_first(body)
    count, rest = divmod(len(body), size)
    all_sizes = body[_SIZES_OFFSET::size] + body[_SIZES_OFFSET + 1 :: size]
    if rest or all_sizes != bytes((key_size,)) * count + bytes((rev_size,)) * count:
        return None
    return _pair_every(size)(body)


@lru_cache(64)
def _pair_every(size: int) -> Callable[[bytes], Iterator[tuple[int, int]]]:
    return struct.Struct(f"{_PAIR.format}{size - PAIR_BYTES}x").iter_unpack
