"""A small index of any store, written the way the batch writer and the feed worker do."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from channelindex import blocks, hashing
from channelindex.model import Checkpoint, Entry, IndexMeta
from channelindex.stores import open_compaction, open_owner, open_reader, open_writer
from channelindex.stores.base import ChannelAppend, IndexWriter
from channelindex.stores.compacting import CompactionStore
from tests.support.stores import settings_of

_names = itertools.count()


class Row(NamedTuple):
    """An entry and the channel it goes to."""

    channel: str
    vb: int
    seqno: int
    key: str
    rev: str = "1-aa"
    flags: int = 0


class SmallIndex:
    """Owner, writers and reader of one index of its own. `group` says which worker's blocks a row goes to."""

    def __init__(self, url: str = "memory://", n_vbuckets: int = 4, n_partitions: int = 2, block_bytes: int = 100):
        self.name = f"small{next(_names)}"
        self._settings = replace(
            settings_of(url, self.name),
            block_bytes=block_bytes,
            memory_max_entries=0,
            memory_min_entries=0,
            memory_max_age_s=0.0,
        )
        self.owner = open_owner(self._settings)
        self.meta = IndexMeta(blocks.FORMAT_VERSION, n_vbuckets, n_partitions, "source", f"uuid-{self.name}")
        self.owner.create_or_check(self.meta)
        self.reader = open_reader(self._settings)
        self._open: list[Any] = [self.owner, self.reader]
        self.writer = self.new_writer()

    def new_writer(self) -> IndexWriter:
        writer = open_writer(self._settings)
        self._open.append(writer)
        return writer

    def compaction(self) -> CompactionStore:
        store = open_compaction(self._settings)
        self._open.append(store)
        return store

    def close(self):
        for store in self._open:
            store.close()

    def begin(self, partitions: Iterable[int] = (0, 1), rollback: Mapping[int, int] | None = None) -> int:
        """A new epoch on *partitions*, rolled back to the seqnos of *rollback*; its number."""
        epoch = self.owner.next_epoch()
        for partition in partitions:
            lowered = {
                vb: Checkpoint(1, seqno, seqno, seqno)
                for vb, seqno in (rollback or {}).items()
                if vb in self.meta.vbuckets_of(partition)
            }
            self.owner.begin(partition, epoch, "test", rollback=lowered)
        return epoch

    def write(
        self,
        epoch: int,
        rows: Iterable[Row],
        partitions: Iterable[int] = (0, 1),
        writer: IndexWriter | None = None,
    ) -> set[int]:
        """Append *rows*, in one batch, under *epoch*, to the blocks of the worker that has *partitions*."""
        group = hashing.group_of(partitions, self.meta.n_partitions)
        rows_by_channel: dict[str, list[Row]] = {}
        for row in rows:
            rows_by_channel.setdefault(row.channel, []).append(row)
        appends = [
            ChannelAppend(channel, group, epoch, _packed(of_channel)) for channel, of_channel in rows_by_channel.items()
        ]
        return (writer or self.writer).write(appends)

    def advance(self, epoch: int, stable: Mapping[int, int]) -> None:
        """Move the stable clock of vbuckets to *stable*."""
        by_partition: dict[int, dict[int, Checkpoint]] = {}
        for vb, seqno in stable.items():
            partition = vb // self.meta.partition_width
            by_partition.setdefault(partition, {})[vb] = Checkpoint(1, seqno, seqno, seqno)
        self.owner.advance(epoch, by_partition)


def _packed(rows: Iterable[Row]) -> bytes:
    return b"".join(blocks.pack_entry(Entry(row.vb, row.seqno, row.key.encode(), row.rev, row.flags)) for row in rows)
