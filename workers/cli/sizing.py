"""Estimates worker counts, rings, and the memory of a Redis store. Pure arithmetic.

The constants were measured: bytes on redis-server 6.2 (tests hold the formula against a real one), CPU with the
benchmarks of this project on a 2-core machine. They give orders of magnitude; `channelindex top` shows the truth.
"""

import math
from dataclasses import dataclass

from channelindex import blocks

PACKED_REV_BYTES = 20
FRAME_BYTES = 17
GROWTH = 1.4
"""Memory that Redis reserves per byte appended: up to 2, on the average of many 1.4."""
GROUP_BYTES = 160
"""A key, its object and its place in the key table, and the fields of the directory, per channel and vbucket group."""
CHANNEL_BYTES = 150
"""The directory of a channel."""
FEED_US = 10.0
WRITER_US_PER_ENTRY = 3.0
STORE_US_PER_ENTRY = 4.0
"""CPU per change and per entry, with hundreds or thousands of channels; many cold channels cost three times that."""
BUSY_SHARE = 0.5
"""Of a core: a worker that is busier than that at the peak has nothing left to catch up with."""
RING_S = 1.0
"""Seconds of the peak that fit into the rings: a store that forks or syncs may pause for so long."""
MIN_RING_BYTES, MAX_RING_BYTES = 2**20, 2**30


@dataclass(frozen=True)
class Load:
    """The expected load. `changes` are those that the index will hold, `rate` is the peak per second of all nodes.

    `channels_per_change` counts the channel `*` too. `entries_per_append`: how many entries of a channel come in one
    batch, 1 for many quiet channels, 10 and more for busy ones.
    """

    changes: int
    rate: int
    channels: int
    channels_per_change: float = 3.0
    key_bytes: int = 20
    entries_per_append: float = 2.0
    nodes: int = 2


@dataclass(frozen=True)
class Size:
    """The calculated size. Workers, rings and their memory are per node."""

    entries: int
    entry_bytes: int
    redis_bytes: int
    redis_bytes_per_million: int
    store_cores: float
    feed_workers: int
    batch_writers: int
    ring_bytes: int
    ring_memory_bytes: int


def size_of(load: Load) -> Size:
    """Calculate the size for *load*."""
    entry_bytes = len(blocks.pack_entry_head(0, 0, 0, 0, 0)) + load.key_bytes + PACKED_REV_BYTES
    entries = round(load.changes * load.channels_per_change)
    entry_rate = load.rate * load.channels_per_change
    node_rate, node_entry_rate = load.rate / load.nodes, entry_rate / load.nodes
    feeds = _workers(node_rate * FEED_US)
    writers = _workers(node_entry_rate * WRITER_US_PER_ENTRY)
    ring_bytes = _ring_bytes(node_entry_rate * entry_bytes * RING_S / (feeds * writers))
    assert MIN_RING_BYTES <= ring_bytes <= MAX_RING_BYTES
    groups = load.channels * min(load.nodes * feeds, max(1.0, entries / max(1, load.channels)))
    stored = entries * (entry_bytes + FRAME_BYTES / load.entries_per_append)
    redis_bytes = round(stored * GROWTH + groups * GROUP_BYTES + load.channels * CHANNEL_BYTES)
    return Size(
        entries=entries,
        entry_bytes=entry_bytes,
        redis_bytes=redis_bytes,
        redis_bytes_per_million=round(redis_bytes * 1e6 / entries) if entries else 0,
        store_cores=round(entry_rate * STORE_US_PER_ENTRY / 1e6, 2),
        feed_workers=feeds,
        batch_writers=writers,
        ring_bytes=ring_bytes,
        ring_memory_bytes=ring_bytes * feeds * writers,
    )


def _workers(us_per_s: float) -> int:
    return max(1, math.ceil(us_per_s / 1e6 / BUSY_SHARE))


def _ring_bytes(n_bytes: float) -> int:
    """The next power of two, within what a ring may be."""
    return min(MAX_RING_BYTES, max(MIN_RING_BYTES, 1 << math.ceil(math.log2(max(1.0, n_bytes)))))
