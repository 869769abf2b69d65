"""Reads all that an index has of many channels, for those who compare it with something else."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from channelindex import blocks
from channelindex.errors import ChangesForgotten
from channelindex.model import Entry
from channelindex.reading.block_walk import walk
from channelindex.reading.scan import ChannelScans, FoundByVb, Scan
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores.base import ChannelState, IndexReader

CHANNELS_PER_READ = 500
"""Channels whose states are fetched with one request: a round trip for each was most of what they cost."""
BYTES_PER_WALK = 16 << 20
"""Blocks that are in memory at once, and what is found in them; one channel may have more."""


class Retained(NamedTuple):
    """All entries that the index retains of `channel`, by vbucket and seqno; up to `floor`, a clock, it may lack some.

    Only an index in memory drops entries; the floor of every other is empty.
    """

    channel: str
    entries: Sequence[Entry]
    floor: Mapping[int, int]


def read_retained(store: IndexReader, channels: Sequence[str], snapshot: IndexSnapshot) -> Iterator[Retained]:
    """Read what the index retains of each of *channels*, in their order.

    Raises:
        IndexCorrupt, StoreUnavailable: see `walk`.
    """
    names = iter(channels)
    while part := list(islice(names, CHANNELS_PER_READ)):
        states = store.channel_states(part)
        for start, stop in _walks(states):
            yield from _read(store, part[start:stop], states[start:stop], snapshot)


def _walks(states: Sequence[ChannelState | None]) -> Iterator[tuple[int, int]]:
    """Cut *states* where their blocks have more than BYTES_PER_WALK."""
    start = n_bytes = 0
    for index, state in enumerate(states):
        of_channel = state.counter if state else 0
        if index > start and n_bytes + of_channel > BYTES_PER_WALK:
            yield start, index
            start, n_bytes = index, 0
        n_bytes += of_channel
    if start < len(states):
        yield start, len(states)


def _read(
    store: IndexReader, channels: Sequence[str], states: Sequence[ChannelState | None], snapshot: IndexSnapshot
) -> Iterator[Retained]:
    scans = ChannelScans(snapshot, [0] * len(snapshot.stable), len(channels))
    try:
        walk(store, channels, scans, states=states)
    except ChangesForgotten:
        for channel in channels:
            yield _read_above_floor(store, channel, snapshot)
        return
    for channel, found in zip(channels, scans.by_channel, strict=True):
        yield Retained(channel, _entries(found), {})


def _read_above_floor(store: IndexReader, channel: str, snapshot: IndexSnapshot) -> Retained:
    floor: dict[int, int] = {}
    while True:
        scan = Scan(snapshot, [floor.get(vb, 0) for vb in range(len(snapshot.stable))])
        try:
            walk(store, [channel], scan)
        except ChangesForgotten as error:  # it may drop more while we read
            before, floor = floor, {vb: max(floor.get(vb, 0), error.floor.get(vb, 0)) for vb in {*floor, *error.floor}}
            assert floor != before, "what was dropped lies above the window, or we would read for ever"
        else:
            return Retained(channel, list(scan.entries()), floor)


def _entries(found: FoundByVb) -> list[Entry]:
    stored = [each[3] for vb in sorted(found) for each in sorted(found[vb].values())]
    return list(blocks.iter_entries(b"".join(stored)))
