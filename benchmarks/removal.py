"""What removal leaves of an index, what it costs, and what it takes from writers.

    python -m benchmarks.removal history FILE [--hand-overs 10]
    python -m benchmarks.removal year [--share 100] [--hours 8760] [--nodes 2] [--feeds 1] [--store memory://]
    python -m benchmarks.removal writers [--documents 10000] [--pairs 3]
    python -m benchmarks.removal pause [--megabytes 100]

history: a file of revisions (`channelindex load`) in Redis, before and after all of it is compacted.

year: 10 million changes of 100,000 documents in 10,000 channels and the channel of all, divided by `--share`, and a
hand-over every hour, in one process, with a clock of its own. Of so many nodes one after the other goes and comes back,
and the partitions are shared out as nodes would; without nodes, at random each time.

writers: a node that compacts all the time against one that does not, in turn, while they index documents that change
often; and how long Redis was held by each switch.

pause: how long Redis is held at most while one channel of so many megabytes is compacted.
"""

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import redis
from rich.console import Console
from rich.table import Table

from benchmarks import removal_pause, removal_writers
from benchmarks.machine import write_results
from benchmarks.removal_index import N_VBUCKETS, RemovalIndex, Row, Shares, Space
from channelindex.blocks import pack_entry
from channelindex.hashing import vbucket_of
from channelindex.model import DELETED, STAR_CHANNEL, Entry
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import CompactionSettings
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.sync_gateway.revisions import Revision, read_revisions

HOUR_S = 3600.0
YEAR_H = 8760
CHANGES, DOCUMENTS, CHANNELS = 10_000_000, 100_000, 10_000
"""Of a year."""
BLOCK_BYTES = 64 << 10
BATCH = 200
"""Changes in one batch of the writers."""


class Reading(NamedTuple):
    """What a reader without a token reads of a channel, and what it is told, packed."""

    told: int
    told_bytes: int
    read_bytes: int


class Month(NamedTuple):
    """The index at the end of a month. `share` is that of its bytes in twice what is live and all active blocks."""

    space: Space
    share: float
    live_bytes: int
    record_bytes: int
    written: int
    rewritten: int


def history(path: Path, n_hand_overs: int) -> dict[str, Any]:
    """Index the revisions of *path* with so many hand-overs between them; figures before and after compaction."""
    revisions = list(read_revisions(path))
    settings = CompactionSettings(min_lag_s=60.0, grace_s=0.0)
    with EmbeddedRedis() as server, RemovalIndex(server.url, BLOCK_BYTES, settings) as index:
        part = -(-len(revisions) // (n_hand_overs + 1))
        for start in range(0, len(revisions), part):
            index.hand_over()
            for at in range(start, min(start + part, len(revisions)), BATCH):
                index.write(row for each in revisions[at : at + BATCH] for row in _rows(each))
            index.settle(100.0)
        busiest = _busiest(index)
        before = _state(index, server.url, busiest)
        started_s = time.process_time()
        index.compact(all_channels=True)
        cpu_s = time.process_time() - started_s
        time.sleep(1.0)  # blocks that left are gone after a grace of 0 s
        return {"before": before, "after": _state(index, server.url, busiest), "channel": busiest, "cpu_s": cpu_s}


def _rows(revision: Revision) -> list[Row]:
    vb = vbucket_of(revision.id.encode(), N_VBUCKETS)
    flags = DELETED if revision.deleted else 0
    return [(channel, vb, revision.id, revision.rev, flags) for channel in (*revision.channels, STAR_CHANNEL)]


def _busiest(index: RemovalIndex) -> str:
    channels = list(index.reader.channels())
    counters = [state.counter if state else 0 for state in index.reader.channel_states(channels)]
    return max(zip(counters, channels, strict=True))[1]


def read_whole(index: RemovalIndex, channel: str) -> Reading:
    """Read *channel* from the beginning."""
    answer = ChangesReader(index.reader).changes([channel])
    told = answer.entries
    told_bytes = sum(len(pack_entry(Entry(each.vb, each.seqno, each.id.encode(), each.rev, 0))) for each in told)
    return Reading(len(told), told_bytes, answer.stats.n_bytes)


def _state(index: RemovalIndex, url: str, busiest: str) -> dict[str, Any]:
    with redis.Redis.from_url(url) as client:
        memory: Any = client.info("memory")
    space, read = index.space(), read_whole(index, busiest)
    return {"memory": memory["used_memory"], "entries": index.count_entries(), **space._asdict(), **read._asdict()}


def year(share: int, hours: int, shares: Shares, url: str, console: Console) -> list[Month]:
    """Live so many hours of a year that is divided by *share*; the index at the end of each twelfth."""
    n_documents, n_channels = DOCUMENTS // share, max(1, CHANNELS // share)
    chance, months = random.Random(2026), list[Month]()
    sizes: dict[str, int] = {}
    documents = [f"document-{number:06}" for number in range(n_documents)]
    vbuckets = [vbucket_of(document.encode(), N_VBUCKETS) for document in documents]
    done = 0
    with RemovalIndex(url, BLOCK_BYTES, CompactionSettings(grace_s=0.0), shares) as index:
        for hour in range(hours):
            index.hand_over()
            upto = CHANGES * (hour + 1) // (YEAR_H * share)
            for start in range(done, upto, BATCH):
                rows: list[Row] = []
                for change in range(start, min(start + BATCH, upto)):
                    number = chance.randrange(n_documents)
                    rev = f"{change % 1000 + 1}-{change:032x}"
                    row = (f"channel-{number % n_channels:05}", vbuckets[number], documents[number], rev, 0)
                    rows += row, (STAR_CHANNEL, *row[1:])
                    sizes[documents[number]] = 2 * len(pack_entry(Entry(0, 1, documents[number].encode(), rev, 0)))
                index.write(rows)
            done = upto
            index.settle(HOUR_S)
            index.compact()
            if (hour + 1) % max(1, hours // 12) == 0:
                live = sum(sizes.values())
                space = index.space()
                share_of_bound = space.n_bytes / (2 * live + space.active_bytes)
                written = index.written, index.rewritten
                months.append(Month(space, share_of_bound, live, index.record_bytes(), *written))
                console.print(_month_line(len(months), months[-1]))
        read = read_whole(index, STAR_CHANNEL)
        console.print(f"a first read of {STAR_CHANNEL}: {read.read_bytes:,} bytes, to tell {read.told_bytes:,}")
    return months


def _month_line(number: int, month: Month) -> str:
    space = month.space
    words = (
        f"{number:>3}: {space.n_bytes:,} bytes in {space.n_blocks:,} blocks ({month.live_bytes:,} are live)",
        f"{month.share:.0%} of the bound",
        f"{space.n_groups} groups, {space.most_groups} at most",
        f"histories {month.record_bytes:,} bytes",
        f"written {(month.written + month.rewritten) / month.written:.2f} times",
    )
    return ", ".join(words)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one of the four, print it, keep the figures in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.removal", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("history")
    part.add_argument("file", type=Path)
    part.add_argument("--hand-overs", type=int, default=10)
    part = parts.add_parser("year")
    part.add_argument("--share", type=int, default=100)
    part.add_argument("--hours", type=int, default=YEAR_H)
    part.add_argument("--nodes", type=int, default=2)
    part.add_argument("--feeds", type=int, default=1, help="feed workers of a node")
    part.add_argument("--store", default="memory://")
    part = parts.add_parser("writers")
    part.add_argument("--documents", type=int, default=10_000)
    part.add_argument("--pairs", type=int, default=3)
    part = parts.add_parser("pause")
    part.add_argument("--megabytes", type=int, default=100)
    args = parser.parse_args(arguments)
    console = Console(width=150, highlight=False)
    found: Any
    if args.part == "history":
        found = history(args.file, args.hand_overs)
        table = Table("", "before", "after")
        for name in found["before"]:
            table.add_row(name, f"{found['before'][name]:,}", f"{found['after'][name]:,}")
        console.print(table, f"read: channel {found['channel']}; compaction took {found['cpu_s']:.1f} s of CPU")
    elif args.part == "year":
        months = year(args.share, args.hours, Shares(args.nodes, args.feeds), args.store, console)
        found = [month._asdict() | month.space._asdict() | {"space": None} for month in months]
    elif args.part == "pause":
        found = removal_pause.measure(args.megabytes)._asdict()
        console.print(found)
    else:
        found = removal_writers.measure(args.documents, args.pairs, console)
    print(f"figures: {write_results('removal-' + args.part, {'found': found, 'arguments': vars(args) | {'file': ''}})}")


if __name__ == "__main__":
    main()
