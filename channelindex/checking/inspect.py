"""Takes stored records apart for people: a block, the clocks of a channel, a partition record."""

from typing import NamedTuple

from channelindex import blocks
from channelindex.epochs import EpochStart
from channelindex.errors import IndexCorrupt, KeyMissing
from channelindex.model import Checkpoint
from channelindex.reading.query import document_id
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores.base import BlockRef, IndexReader


class StoredEntry(NamedTuple):
    """An entry as it is stored in a block. `visibility`: see `IndexSnapshot.visibility`, as of now."""

    epoch: int
    vb: int
    seqno: int
    id: str
    rev: str
    flags: int
    visibility: str


class BlockReport(NamedTuple):
    """One block. `header_epoch` and `header_clock` are None where the header is damaged."""

    key: str
    n_bytes: int
    header_epoch: int | None
    header_clock: dict[int, int] | None
    entries: tuple[StoredEntry, ...]
    damage: tuple[str, ...]


class ClockReport(NamedTuple):
    """A channel's clock in one vbucket group; `active_block` is the newest block's key.

    `n_bytes` were written to the group's blocks in all, the last `n_tail_bytes` of them since its clock was last moved.
    """

    group: str
    active_block: str
    n_bytes: int
    n_tail_bytes: int
    clock: dict[int, int]
    damage: tuple[str, ...]


class ChannelReport(NamedTuple):
    """All clocks of one channel."""

    channel: str
    counter: int
    groups: tuple[ClockReport, ...]


class PartitionReport(NamedTuple):
    """One partition record. `n_archived` epochs were moved out of its history; `history` holds the others."""

    partition: int
    first_vb: int
    epoch: int
    owner: str
    checkpoints: tuple[Checkpoint, ...]
    history: tuple[EpochStart, ...]
    n_archived: int

    @property
    def clock(self) -> dict[int, int]:
        """The partition's stable clock, by vbucket."""
        return {self.first_vb + index: checkpoint.seqno for index, checkpoint in enumerate(self.checkpoints)}


def inspect_block(store: IndexReader, ref: BlockRef) -> BlockReport:
    """The block *ref*, with the damage that is in it.

    Raises:
        KeyMissing: there is no such block.
    """
    snapshot = IndexSnapshot.take(store)
    (block,) = store.blocks([ref])
    if block is None:
        raise KeyMissing(f"there is no block {ref.key}; channelindex inspect clock {ref.channel} names the newest ones")
    damage: list[str] = []
    entries: list[StoredEntry] = []
    header: tuple[int, dict[int, int]] | None = None
    for kind, epoch, body in blocks.iter_frames(block, lambda error: damage.append(str(error))):
        try:
            if kind == blocks.HEADER:
                header = epoch, blocks.unpack_pairs(body)
            else:
                entries += _entries(snapshot, epoch, body)
        except IndexCorrupt as error:
            damage.append(f"epoch {epoch}: {error}")
    header_epoch, header_clock = header or (None, None)
    return BlockReport(ref.key, len(block), header_epoch, header_clock, tuple(entries), tuple(damage))


def _entries(snapshot: IndexSnapshot, epoch: int, body: bytes) -> list[StoredEntry]:
    try:
        return [
            StoredEntry(epoch, vb, seqno, document_id(key), rev, flags, snapshot.visibility(epoch, vb, seqno))
            for vb, seqno, key, rev, flags in blocks.iter_entries(body)
        ]
    except (IndexError, UnicodeDecodeError) as error:
        raise IndexCorrupt("an entry of a vbucket that the index does not have, or with no revision id") from error


def inspect_clock(store: IndexReader, channel: str) -> ChannelReport:
    """The clocks of *channel*, with the damage that is in them.

    Raises:
        KeyMissing: no entry was ever written to this channel.
    """
    (state,) = store.channel_states([channel])
    if state is None:
        raise KeyMissing(f"there is no channel {channel!r} in the index")
    groups = []
    for name, group in sorted(state.groups.items()):
        clock: dict[int, int] = {}
        damage: tuple[str, ...] = () if group.tail is not None else ("the active block is missing or too short",)
        try:
            clock = blocks.fold_clock(group.frames)
        except IndexCorrupt as error:
            damage = (*damage, str(error))
        active = BlockRef(channel, name, group.directory.number).key
        groups.append(ClockReport(name, active, group.n_bytes, len(group.tail or b""), clock, damage))
    return ChannelReport(channel, state.counter, tuple(groups))


def inspect_partition(store: IndexReader, partition: int) -> PartitionReport:
    """The record of *partition*.

    Raises:
        KeyMissing: the index has fewer partitions.
    """
    records = store.partition_records()
    if partition >= len(records):
        raise KeyMissing(f"there is no partition {partition}: the index has 0 to {len(records) - 1}")
    record = records[partition]
    n_archived = 0
    if record.archived:
        (archive,) = store.archived_starts([partition])
        n_archived = len({start.epoch for start in archive if start.epoch <= record.archived})
    return PartitionReport(
        partition, record.first_vb, record.epoch, record.owner, record.checkpoints, record.history, n_archived
    )
