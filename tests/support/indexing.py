"""A small index of any store, written the way the batch writer and the feed worker do; and what readers say of it."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from channelindex import blocks, hashing
from channelindex.model import Checkpoint, Entry, IndexMeta
from channelindex.reading import since_token
from channelindex.stores import open_compaction, open_owner, open_reader, open_writer
from channelindex.stores.base import ChannelAppend, IndexWriter, OwnerStore
from channelindex.stores.compacting import CompactionStore
from tests.support.stores import settings_of

ASKED_A = since_token.ask(["A"], None)
"""What a token of channel A says that it was asked for."""

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
        self._open: list[Any] = []
        self.owner = self.new_owner()
        self.meta = IndexMeta(blocks.FORMAT_VERSION, n_vbuckets, n_partitions, "source", f"uuid-{self.name}")
        self.owner.create_or_check(self.meta)
        self.reader = open_reader(self._settings)
        self._open.append(self.reader)
        self.writer = self.new_writer()

    def new_owner(self) -> OwnerStore:
        owner = open_owner(self._settings)
        self._open.append(owner)
        return owner

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

    def begin(
        self,
        partitions: Iterable[int] = (0, 1),
        rollback: Mapping[int, int] | None = None,
        owner: OwnerStore | None = None,
    ) -> int:
        """Begin a new epoch of *owner* on *partitions*, rolled back to the seqnos of *rollback*; return its number."""
        owner = owner or self.owner
        epoch = owner.next_epoch()
        for partition in partitions:
            lowered = {
                vb: Checkpoint(1, seqno, seqno, seqno)
                for vb, seqno in (rollback or {}).items()
                if vb in self.meta.vbuckets_of(partition)
            }
            owner.begin(partition, epoch, "test", rollback=lowered)
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


def filled(index):
    """40 documents over four vbuckets in A, every third in B too; the stable clock at the end."""
    epoch = index.begin()
    for seqno in range(1, 11):
        rows = [Row("A", vb, seqno, f"{vb}-{seqno}") for vb in range(4)]
        index.write(epoch, rows + [row._replace(channel="B") for row in rows if row.seqno % 3 == 0])
    index.advance(epoch, dict.fromkeys(range(4), 10))
    return epoch


def told(changes):
    """What was told of which document, short."""
    return [(entry.id, entry.seqno, entry.rev, entry.removed) for entry in changes.entries]


def read_through(reader, channels, limit, since=None):
    """All entries, page by page, each page asked for anew, and the last since."""
    entries = []
    while True:
        page = reader.changes(channels, since, limit)
        entries += page.entries
        since = page.since
        if not page.pending:
            return entries, since


class Proxy:
    """A store whose operations can be replaced one by one."""

    def __init__(self, store, **replaced):
        self._store = store
        self.__dict__.update(replaced)

    def __getattr__(self, name):
        return getattr(self._store, name)
