"""The board: the last report of every process of a node, in shared memory made before the first fork.

A child has 64-bit words of its own, which it alone writes while it lives; the supervisor and the monitor read them
without a lock. Word i is the i-th name of its role's row in `FIELDS_BY_ROLE`, and is written by one 8-byte store.
Words of one process may be of slightly different times: they are for display and thresholds, never for a decision that
must be exact. Two words of a child are the supervisor's: `pid`, which is 0 while no child lives there, and `restarts`.

The board has room for as many workers as can be configured, so it outlives every reload and so does its reader.
"""

import mmap
import os
import time
from bisect import bisect_left
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from workers.telemetry.hot_channels import SharedNote

FEED_WORKER = "feed_worker"
BATCH_WRITER = "batch_writer"
LEASE_KEEPER = "lease_keeper"
MONITOR = "monitor"
COMPACTOR = "compactor"
SUPERVISOR = "supervisor"

MAX_WORKERS = 64
"""Of each kind; `workers.feed_workers` and `workers.batch_writers` go no higher."""

_COMMON = (
    "pid",
    "started_ns",
    "beat_ns",
    "store_errors",
    "restarts",
    "damaged",  # 1 where the one before ended because the index is damaged
)
"""Times (`_ns`) are of the monotonic clock, which is the same in all processes of a machine; 0 for never."""


class NodePhase(Enum):
    """State of a node. The board holds its position in this order."""

    RUNNING = "running"
    RELOADING = "reloading"
    DRAINING = "draining"


class Histogram(NamedTuple):
    """Counts of observations by size: one word per bound, one for those above all bounds, one for the sum."""

    name: str
    bounds: Sequence[int]

    @property
    def first_word(self) -> str:
        """The name of the first of its words."""
        return f"{self.name}_0"

    @property
    def words(self) -> tuple[str, ...]:
        """The names of its words: the counts, ascending, then the sum."""
        return (*(f"{self.name}_{index}" for index in range(len(self.bounds) + 1)), f"{self.name}_sum")


STORE_US = Histogram(
    "store_us",
    (1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000),
)
"""Time that the store took for a batch, in microseconds: from a Redis on the same machine to one that swaps."""
BATCH_BYTES = Histogram("batch_bytes", tuple(4**power for power in range(5, 13)))
"""Entries per batch, in bytes: 1 KiB to 16 MiB."""
_HISTOGRAMS_BY_ROLE = {BATCH_WRITER: (STORE_US, BATCH_BYTES)}

FIELDS_BY_ROLE: dict[str, tuple[str, ...]] = {
    FEED_WORKER: (
        *_COMMON,
        "epoch",
        "events",  # taken from the source in this life
        "entries",  # that they became
        "in_flight",  # events that are not stable yet
        "oldest_ns",  # since when the oldest of them waits
        "lag",  # seqnos between the source's newest and the stable clock, over all vbuckets
        "connected",  # 1 while every stream runs
        "stalls",  # turns on which a ring had no room
        "quarantined",  # documents that could not be decoded
        "ring_fill",  # bytes that wait in all its rings
        "ring_bytes",  # that they can hold
    ),
    BATCH_WRITER: (
        *_COMMON,
        "batches",
        "frames",
        "channels",  # appends, one per channel and batch
        "block_lookups",  # those whose block had to be looked for
        "entry_bytes",
        "ring_fill",  # bytes that wait in all its rings
    ),
    LEASE_KEEPER: _COMMON,
    MONITOR: _COMMON,
    COMPACTOR: (
        *_COMMON,
        "looks",  # at all directories of the index
        "channels",  # in the last look
        "due",  # channels that wait to be compacted
        "live_bytes",  # that the last compaction of each channel left, as of the last look
        "index_bytes",  # in all blocks, as of the last look
        "oldest_due_ns",  # since when a channel waits; 0: none does
        "compacted",  # channels
        "refused",  # switches: somebody else was faster
        "skipped",  # channels that are damaged or too large
        "left_entries",
        "read_bytes",
        "written_bytes",
    ),
    SUPERVISOR: (
        *_COMMON,
        "state",  # index in `NodePhase`, in its order
        "heard_ns",  # time of the lease keeper's last report
        "trouble",  # 1 while the leases cannot be renewed
        "members",  # live nodes, this one among them
        "to_move",  # partitions that the cluster has yet to move
        "unowned",  # partitions that nobody owns
        "gained",  # leases that came
        "lost",  # leases that were released or expired
        "reloads",
        "refused_reloads",
    ),
}

PARTITION_FIELDS = (
    "leased_ns",  # supervisor: since when this node has the lease; 0: it has not
    "deadline_ns",  # supervisor: when work has to stop unless the lease is renewed
    "lag",  # feed worker: seqnos between the source's newest and the stable clock
    "behind_ns",  # feed worker: since when the source has had what is not stable yet; 0: all of it is
    "streaming",  # feed worker: 1 while its streams run; supervisor: 0 when the worker is gone
)

_WORD = 8
_STATS_WORDS = 64
"""Eight cache lines: two children never write to the same one."""
_ROW_WORDS = 8


class Row:
    """Words of shared memory by name."""

    __slots__ = ("_index_by_name", "_words")

    def __init__(self, names: Sequence[str], words: memoryview) -> None:
        assert len(set(names)) == len(names) <= len(words), "a word for each name"
        self._words = words
        self._index_by_name = {name: index for index, name in enumerate(names)}

    def set(self, **values: int) -> None:
        """Replace the named words."""
        for name, value in values.items():
            self._words[self._index_by_name[name]] = value

    def add(self, **counts: int) -> None:
        """Raise the named words."""
        for name, count in counts.items():
            self._words[self._index_by_name[name]] += count

    def get(self, name: str) -> int:
        """The named word."""
        return self._words[self._index_by_name[name]]

    def clear(self) -> None:
        """Set all words to 0."""
        for index in range(len(self._words)):
            self._words[index] = 0


class ProcessStats(Row):
    """One process's words. Made by the supervisor, written by the child as long as it lives."""

    __slots__ = ("role",)

    def __init__(self, role: str, words: memoryview) -> None:
        names = FIELDS_BY_ROLE[role]
        histograms = _HISTOGRAMS_BY_ROLE.get(role, ())
        assert all(list(histogram.bounds) == sorted(set(histogram.bounds)) for histogram in histograms), "ascending"
        super().__init__([*names, *(word for histogram in histograms for word in histogram.words)], words)
        self.role = role

    def start(self) -> None:
        """Set all words to 0 except the time, the caller's process id and what is known of those before.

        The child calls it, while the supervisor already judges it by its last beat: that word is never 0 in between.
        """
        now_ns = time.monotonic_ns()
        kept = {"restarts": self.get("restarts"), "damaged": self.get("damaged")}
        fresh = {self._index_by_name[name]: value for name, value in {**kept, "beat_ns": now_ns}.items()}
        for index in range(len(self._words)):
            self._words[index] = fresh.get(index, 0)
        self.set(pid=os.getpid(), started_ns=now_ns)

    def beat(self) -> None:
        """Record that the main loop has turned once more."""
        self._words[self._index_by_name["beat_ns"]] = time.monotonic_ns()

    def observe(self, histogram: Histogram, value: int) -> None:
        """Count *value* in one of the role's histograms."""
        assert value >= 0, "words are unsigned"
        first = self._index_by_name[histogram.first_word]
        self._words[first + bisect_left(histogram.bounds, value)] += 1
        self._words[first + len(histogram.bounds) + 1] += value

    def counts(self, histogram: Histogram) -> tuple[list[int], int]:
        """Number of values in each bucket of *histogram*, and the sum of all values."""
        *counts, total = (self.get(word) for word in histogram.words)
        return counts, total

    def silent_s(self, now_ns: int) -> float:
        """Seconds from the last beat, or the start, to *now_ns* (`time.monotonic_ns`)."""
        return (now_ns - self.get("beat_ns")) / 1e9

    def as_dict(self) -> dict[str, int]:
        """All words by name, without the histograms."""
        return {name: self.get(name) for name in FIELDS_BY_ROLE[self.role]}


class Board:
    """Words for each process that a node can have, a note for each batch writer, a row for each partition."""

    def __init__(self, n_partitions: int) -> None:
        assert n_partitions > 0
        self.supervisor, self.keeper, self.monitor, self.compactor = make_stats(
            [SUPERVISOR, LEASE_KEEPER, MONITOR, COMPACTOR]
        )
        self.feeds = make_stats([FEED_WORKER] * MAX_WORKERS)
        self.writers = make_stats([BATCH_WRITER] * MAX_WORKERS)
        self.hot_channels = [SharedNote() for _ in range(MAX_WORKERS)]
        memory = memoryview(mmap.mmap(-1, n_partitions * _ROW_WORDS * _WORD)).cast("Q")
        self.partitions = [
            Row(PARTITION_FIELDS, memory[number * _ROW_WORDS : (number + 1) * _ROW_WORDS])
            for number in range(n_partitions)
        ]

    @property
    def processes(self) -> list[tuple[int, ProcessStats]]:
        """The words of every process that lives or will live again, each with its number among its role."""
        workers = [*enumerate(self.feeds), *enumerate(self.writers)]
        single = (self.supervisor, self.keeper, self.monitor, self.compactor)
        processes = [*((0, stats) for stats in single), *workers]
        return [(number, stats) for number, stats in processes if stats.get("started_ns")]


def make_stats(roles: list[str]) -> list[ProcessStats]:
    """Make the words of each role in *roles*, all 0, in shared memory that ends with the last process that has it."""
    memory = memoryview(mmap.mmap(-1, max(1, len(roles)) * _STATS_WORDS * _WORD)).cast("Q")
    return [
        ProcessStats(role, memory[number * _STATS_WORDS : (number + 1) * _STATS_WORDS])
        for number, role in enumerate(roles)
    ]
