"""Packs what stays of a channel into the blocks of a group of its own. Pure."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from channelindex.blocks import ENTRIES, HEADER, pack_frame, pack_pairs
from channelindex.compaction.selection import KeptEntry
from channelindex.stores.base import Directory


class PackedGroup(NamedTuple):
    """The blocks of a group, from number 0 on, its directory and its clock frame."""

    blocks: list[bytes]
    directory: Directory
    clock: bytes


def pack_group(kept: Sequence[KeptEntry], epoch: int, block_bytes: int, *, ends_with_header: bool) -> PackedGroup:
    """Pack *kept*, which is sorted, into blocks of about *block_bytes*. Each entry keeps its own epoch.

    *epoch* is that of the headers: at least that of each entry, so that a clock that is lowered by its bound never
    says too little of a live one. With *ends_with_header*, the last block is a header alone: for a store whose
    readers get the active block whole.
    """
    assert kept, "a group has an entry"
    assert all(entry[2] <= epoch for entry in kept), "the bound of a header is not below that of an entry"
    clock: dict[int, int] = {}
    packed: list[bytes] = []
    for part in _parts(kept, block_bytes):
        packed.append(_header(epoch, clock) + _frames(part))
        for seqno, vb, _, _ in part:
            clock[vb] = max(clock.get(vb, 0), seqno)
    clock_frame = _header(epoch, clock)
    if ends_with_header:
        packed.append(clock_frame)
    before = sum(map(len, packed[:-1]))
    return PackedGroup(packed, Directory(len(packed) - 1, epoch, before, len(packed[-1])), clock_frame)


def _header(epoch: int, clock: dict[int, int]) -> bytes:
    return pack_frame(HEADER, epoch, pack_pairs(clock))


def _parts(kept: Sequence[KeptEntry], block_bytes: int) -> Iterator[Sequence[KeptEntry]]:
    assert block_bytes > 0
    start = size = 0
    for position, entry in enumerate(kept):
        size += len(entry[3])
        if size >= block_bytes:
            yield kept[start : position + 1]
            start, size = position + 1, 0
    if start < len(kept):
        yield kept[start:]


def _frames(part: Sequence[KeptEntry]) -> bytes:
    """A frame for each epoch: it says of which all its entries are."""
    by_epoch: dict[int, list[bytes]] = {}
    for _, _, epoch, raw in part:
        by_epoch.setdefault(epoch, []).append(raw)
    return b"".join(pack_frame(ENTRIES, epoch, b"".join(raws)) for epoch, raws in sorted(by_epoch.items()))
