"""Memory of an index in Redis, and what a reader reads: a million entries in a hundred thousand channels.

    python -m benchmarks.memory [--entries 1000000] [--channels 100000] [--block-bytes 65536 …] [--revs packed|plain]

Entries come in batches of 4,000 from two vbucket groups, spread evenly over the channels: about one per channel and
batch, the most expensive case. One more channel gets a twentieth as many entries as all others together, so that it
has many blocks. Bytes are Redis' used_memory above that of an empty one, divided by the entries.
"""

import argparse
import random
from collections import defaultdict
from contextlib import closing
from typing import Any, NamedTuple

import redis
from rich.console import Console
from rich.table import Table

from channelindex import blocks
from channelindex.compaction.compactor import Compactor
from channelindex.hashing import group_of
from channelindex.model import Checkpoint, Entry, IndexMeta
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import CompactionSettings, IndexSettings
from channelindex.stores import open_compaction, open_owner, open_reader, open_writer
from channelindex.stores.base import ChannelAppend, OwnerStore
from devbucket.embedded_redis import EmbeddedRedis

BATCH_ENTRIES = 4_000
N_VBUCKETS = 1024
N_PARTITIONS = 64
HALVES = (range(N_PARTITIONS // 2), range(N_PARTITIONS // 2, N_PARTITIONS))
GROUPS = tuple(group_of(half, N_PARTITIONS) for half in HALVES)
BUSY = "busy"


class Figures(NamedTuple):
    """What one index takes, and what a reader of the busy channel read from a `since` a thousand entries back."""

    bytes_per_entry: float
    settled: float
    """The same once a compactor has looked at it."""
    keys: int
    busy_blocks: int
    blocks_read: int
    bytes_read: int
    gets: int


class _Filling:
    """An index that is written as two feed workers and their batch writer would."""

    def __init__(self, settings: IndexSettings, n_channels: int, revs: str) -> None:
        self._random = random.Random(1)
        self._n_channels = n_channels
        self._packed = revs == "packed"
        self._writer = open_writer(settings)
        self._owner: OwnerStore = open_owner(settings)
        self._owner.create_or_check(IndexMeta(blocks.FORMAT_VERSION, N_VBUCKETS, N_PARTITIONS, "s", "i"))
        self._epoch = self._owner.next_epoch()
        self._owner.begin_all({partition: {} for partition in range(N_PARTITIONS)}, self._epoch, "bench")
        self._seqnos = [0] * N_VBUCKETS

    def add(self, n_entries: int, n_busy: int) -> None:
        """Write *n_entries* spread over the channels and *n_busy* of the busy one, in batches, and make them stable."""
        while n_entries > 0 or n_busy > 0:
            names = [
                f"channel-{self._random.randrange(self._n_channels)}" for _ in range(min(n_entries, BATCH_ENTRIES))
            ]
            names += [BUSY] * min(n_busy, BATCH_ENTRIES // 20)
            n_entries, n_busy = n_entries - BATCH_ENTRIES, n_busy - BATCH_ENTRIES // 20
            self._write(names)
        moved = {
            partition: {vb: self._checkpoint(vb) for vb in range(partition * 16, partition * 16 + 16)}
            for partition in range(N_PARTITIONS)
        }
        self._owner.advance(self._epoch, moved)

    def _checkpoint(self, vb: int) -> Checkpoint:
        seqno = self._seqnos[vb]
        return Checkpoint(1, seqno, seqno, seqno)

    def _write(self, names: list[str]) -> None:
        entries: defaultdict[tuple[str, str], list[bytes]] = defaultdict(list)
        for name in names:
            vb = self._random.randrange(N_VBUCKETS)
            self._seqnos[vb] += 1
            chain = name, GROUPS[vb // (N_VBUCKETS // 2)]
            digest = f"{self._random.getrandbits(128):032x}"
            rev = f"3-{digest}" if self._packed else f"3-{digest[:31]}g"  # g is no hexadecimal digit: not packed
            key = b"document-%08d" % self._random.randrange(10**8)
            entries[chain].append(blocks.pack_entry(Entry(vb, self._seqnos[vb], key, rev, 0)))
        self._writer.write([ChannelAppend(*chain, self._epoch, b"".join(packed)) for chain, packed in entries.items()])

    def close(self) -> None:
        self._writer.close()
        self._owner.close()


def measure(n_entries: int, n_channels: int, block_bytes: int, revs: str) -> Figures:
    """Build an index in a Redis of its own and look at it."""
    n_busy = n_entries // 20
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        empty = _used_memory(client)
        settings = IndexSettings("channels", server.url, block_bytes=block_bytes)
        with closing(_Filling(settings, n_channels, revs)) as filling, closing(open_reader(settings)) as store:
            filling.add(n_entries, n_busy)
            used = _used_memory(client) - empty
            with closing(open_compaction(settings)) as compaction:
                compactor = Compactor(compaction, store, CompactionSettings(), block_bytes)
                for _ in range(2):  # at the second look it knows that nobody writes
                    compactor.find_due(store.channels(), tidies=True)
            settled = _used_memory(client) - empty
            keys: Any = client.dbsize()
            reader = ChangesReader(store)
            since = reader.changes([BUSY]).since
            (state,) = store.channel_states([BUSY])
            assert state is not None
            filling.add(0, 1000)
            client.config_resetstat()
            answer = reader.changes([BUSY], since)
            stats: Any = client.info("commandstats")
        assert len(answer.entries) == 1000
        return Figures(
            used / (n_entries + n_busy),
            settled / (n_entries + n_busy),
            keys,
            sum(number + 1 for number in state.active_by_group.values()),
            answer.stats.n_blocks,
            answer.stats.n_bytes,
            stats["cmdstat_get"]["calls"],
        )


def _used_memory(client: "redis.Redis") -> int:
    found: Any = client.info("memory")
    return int(found["used_memory"])


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--channels", type=int, default=100_000)
    parser.add_argument("--block-bytes", type=int, action="append")
    parser.add_argument("--revs", choices=("packed", "plain"), default="packed")
    args = parser.parse_args()
    table = Table(title=f"{args.entries:,} entries in {args.channels:,} channels, {args.revs} revision ids")
    headings = (
        "block bytes",
        "bytes/entry",
        "after a look",
        "keys",
        "busy blocks",
        "blocks read",
        "bytes read",
        "GETs",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for block_bytes in args.block_bytes or [65536]:
        found = measure(args.entries, args.channels, block_bytes, args.revs)
        per_entry, settled, *numbers = found
        table.add_row(f"{block_bytes:,}", f"{per_entry:.1f}", f"{settled:.1f}", *(f"{number:,}" for number in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
