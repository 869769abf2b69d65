"""The stored bytes of partition records and quarantined documents, the same in every store (docs/format.md).

A checkpoint is five unsigned 64-bit integers, big-endian: vbuuid, seqno, snap_start, snap_end, purge_seqno. The
checkpoints of a partition follow each other by vbucket. A history is a string of epoch starts: epoch, then one seqno
per vbucket; where the top bit of the epoch is set, one reach per vbucket follows. A moment of a timeline is time in ms,
epoch, mark, and its checkpoints. A stable view has per partition, in their order, its epoch and the seqno of each of
its vbuckets. Seqnos are one per vbucket, or none, which stands for 0 everywhere.
"""

import struct
import sys
from array import array
from collections.abc import Sequence
from itertools import pairwise
from operator import gt

import msgspec

from channelindex.epochs import EpochStart, PartitionRecord
from channelindex.errors import IndexCorrupt
from channelindex.model import Checkpoint, IndexMeta
from channelindex.stores.base import Quarantined, StableView
from channelindex.timeline import Moment

CHECKPOINT_BYTES = 40

_REACHES = 1 << 63
"""Set in the epoch of a start that is followed by its reaches."""

QUARANTINE_DOCUMENTS = 1000
"""Records in the quarantine of an index: enough to see a pattern, too few to fill a store."""

_CHECKPOINT = struct.Struct(">5Q")
_MOMENT_HEAD = struct.Struct(">3Q")


def pack_checkpoints(checkpoints: tuple[Checkpoint, ...]) -> bytes:
    """All checkpoints of one partition."""
    assert checkpoints, "a partition has a vbucket"
    return b"".join(_CHECKPOINT.pack(*checkpoint) for checkpoint in checkpoints)


def unpack_checkpoints(blob: bytes, n_vbuckets: int, where: str) -> tuple[Checkpoint, ...]:
    """The checkpoints of a partition of *n_vbuckets*.

    Raises:
        IndexCorrupt: *blob* has another length, or one lies outside of its snapshot; the message names *where*.
    """
    assert n_vbuckets > 0, "a partition has a vbucket"
    if len(blob) != n_vbuckets * CHECKPOINT_BYTES:
        raise IndexCorrupt(f"{where}: {len(blob)} bytes of checkpoints, expected {n_vbuckets * CHECKPOINT_BYTES}")
    checkpoints = tuple(map(Checkpoint._make, _CHECKPOINT.iter_unpack(blob)))
    for _, seqno, snap_start, snap_end, _ in checkpoints:
        if not snap_start <= seqno <= snap_end:
            raise IndexCorrupt(f"{where}: a checkpoint at {seqno}, outside of its snapshot {snap_start} to {snap_end}")
    return checkpoints


def pack_history(history: tuple[EpochStart, ...]) -> bytes:
    """The history of one partition."""
    return b"".join(map(_pack_start, history))


def _pack_start(start: EpochStart) -> bytes:
    epoch, starts, reaches = start
    assert epoch < _REACHES, "epochs count milliseconds"
    assert len(reaches) in (0, len(starts)), "a reach for each start, or none"
    return struct.pack(f">{1 + len(starts) + len(reaches)}Q", epoch | (_REACHES if reaches else 0), *starts, *reaches)


def unpack_history(blob: bytes, n_vbuckets: int, where: str) -> tuple[EpochStart, ...]:
    """The history in the record of a partition of *n_vbuckets*.

    Raises:
        IndexCorrupt: see `unpack_archive`, or the epochs do not ascend.
    """
    history = unpack_archive(blob, n_vbuckets, where)
    if any(one.epoch >= after.epoch for one, after in pairwise(history)):
        raise IndexCorrupt(f"{where}: the epochs of its history do not ascend")
    return history


def unpack_archive(blob: bytes, n_vbuckets: int, where: str) -> tuple[EpochStart, ...]:
    """The archive of a partition of *n_vbuckets*: epoch starts in any order, some of them twice.

    Raises:
        IndexCorrupt: *blob* does not consist of whole epoch starts, or one reaches less far than it is; the message
            names *where*.
    """
    assert n_vbuckets > 0, "a partition has a vbucket"
    if len(blob) % 8:
        raise _no_history(blob, where)
    numbers = struct.unpack(f">{len(blob) // 8}Q", blob)
    history: list[EpochStart] = []
    at = 0
    while at < len(numbers):
        epoch, starts_at = numbers[at], at + 1
        reaches_at = at = starts_at + n_vbuckets
        if epoch & _REACHES:
            at += n_vbuckets
        if at > len(numbers):
            raise _no_history(blob, where)
        history.append(EpochStart(epoch & ~_REACHES, numbers[starts_at:reaches_at], numbers[reaches_at:at]))
        if any(map(gt, history[-1].starts, history[-1].reaches)):
            raise IndexCorrupt(f"{where}: the start of epoch {history[-1].epoch} reaches less far than it is")
    return tuple(history)


def _no_history(blob: bytes, where: str) -> IndexCorrupt:
    return IndexCorrupt(f"{where}: {len(blob)} bytes of history, which are no whole epoch starts")


def pack_moment(moment: Moment) -> bytes:
    """One moment of a partition's timeline."""
    assert moment.time_ms >= 0
    return _MOMENT_HEAD.pack(*moment[:3]) + pack_checkpoints(moment.checkpoints)


def unpack_moments(blob: bytes, n_vbuckets: int, where: str) -> list[Moment]:
    """Moments of a partition of *n_vbuckets*, packed one after the other in any order; ascending by time.

    Raises:
        IndexCorrupt: *blob* does not consist of whole moments; the message names *where*.
    """
    size = _MOMENT_HEAD.size + n_vbuckets * CHECKPOINT_BYTES
    if len(blob) % size:
        raise IndexCorrupt(f"{where}: {len(blob)} bytes of moments, no multiple of {size}")
    moments: list[Moment] = []
    for start in range(0, len(blob), size):
        time_ms, epoch, mark = _MOMENT_HEAD.unpack_from(blob, start)
        packed = blob[start + _MOMENT_HEAD.size : start + size]
        moments.append(Moment(time_ms, epoch, mark, unpack_checkpoints(packed, n_vbuckets, where)))
    return sorted(moments)


def pack_view(record: PartitionRecord) -> bytes:
    """The part of a stable view that *record* takes: `view_bytes` of one partition."""
    return struct.pack(f">Q{len(record.checkpoints)}Q", record.epoch, *record.stable)


def view_bytes(n_partitions: int, width: int) -> int:
    """The size of the stable view of so many partitions of *width* vbuckets."""
    assert width > 0
    return 8 * n_partitions * (1 + width)


def unpack_view(blob: bytes, meta: IndexMeta) -> StableView:
    """The stable view of an index, of `view_bytes` bytes."""
    width = meta.partition_width
    assert len(blob) == view_bytes(meta.n_partitions, width), "a store checks what it read"
    numbers = array("Q", blob)
    if sys.byteorder == "little":
        numbers.byteswap()
    epochs = tuple(numbers[:: width + 1])
    del numbers[:: width + 1]
    return StableView(meta, epochs, numbers.tolist())


def view_of(meta: IndexMeta, partitions: Sequence[PartitionRecord]) -> StableView:
    """The stable view of an index with these partition records."""
    stable = [checkpoint.seqno for record in partitions for checkpoint in record.checkpoints]
    assert len(partitions) == meta.n_partitions, "a record for each partition"
    assert len(stable) == meta.n_vbuckets, "a checkpoint for each vbucket"
    return StableView(meta, tuple(record.epoch for record in partitions), stable)


def pack_seqnos(seqnos: tuple[int, ...]) -> bytes:
    """A seqno per vbucket of one partition; nothing for none."""
    return struct.pack(f">{len(seqnos)}Q", *seqnos)


def unpack_seqnos(blob: bytes, n_vbuckets: int, where: str) -> tuple[int, ...]:
    """The seqnos that `pack_seqnos` packed, of a partition of *n_vbuckets*.

    Raises:
        IndexCorrupt: *blob* has another length; the message names *where*.
    """
    if len(blob) not in (0, 8 * n_vbuckets):
        raise IndexCorrupt(f"{where}: {len(blob)} bytes of seqnos, expected none or {8 * n_vbuckets}")
    return struct.unpack(f">{len(blob) // 8}Q", blob)


def pack_quarantined(document: Quarantined) -> bytes:
    """One quarantined document, as MessagePack."""
    return msgspec.msgpack.encode(document)


def unpack_quarantined(blob: bytes, where: str) -> Quarantined:
    """The document that `pack_quarantined` packed.

    Raises:
        IndexCorrupt: *blob* is something else; the message names *where*.
    """
    try:
        return msgspec.msgpack.decode(blob, type=Quarantined)
    except msgspec.MsgspecError as error:
        raise IndexCorrupt(f"{where}: {error}") from error
