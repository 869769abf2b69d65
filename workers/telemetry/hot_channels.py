"""Reports the channels that cost a batch writer the most, for people who look for a bottleneck.

A batch goes to the store in one call, so no channel has a time of its own. Known are the largest channels, the time of
the batches that they were in, and their share of such a batch: a channel that is most of a slow batch made it slow, one
with a small share only waited.
"""

import mmap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

WINDOW_S = 5.0
"""Longer than the interval of a node's status (a third of the usual coordination.ttl_s): no window is missed."""
EVERYTHING = "*"
"""The channel of all documents is always the largest, so it is left out."""
CANDIDATES = 8
"""Appends of a batch that are examined, its largest: bounds the cost."""
REPORTED = 4
_NAME_BYTES = 60
_LENGTH_BYTES = 2
_NOTE_BYTES = 512


class HotChannel(NamedTuple):
    """A channel, its bytes of entries per second, the slowest batch with it, and its share of that batch."""

    channel: str
    bytes_per_s: int
    batch_ms: int
    percent: int


def top_channels(channels: Iterable[HotChannel], limit: int) -> list[HotChannel]:
    """The *limit* largest of *channels*, the largest first; the slowest is always among them."""
    assert limit > 0
    ranked = sorted(channels, key=lambda hot: -hot.bytes_per_s)
    slowest = max(ranked, key=lambda hot: (hot.batch_ms, hot.percent), default=None)
    kept = ranked[:limit]
    assert len(kept) <= limit
    return kept if slowest is None or slowest in kept else [*kept[:-1], slowest]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[HotChannel]).decode


class SharedNote:
    """A few channels in shared memory, their names shortened. A read during a write may find nothing."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _NOTE_BYTES)

    def write(self, channels: Sequence[HotChannel]) -> None:
        """Replace the channels."""
        data = _encode([hot._replace(channel=_cut(hot.channel)) for hot in channels])
        assert _LENGTH_BYTES + len(data) <= _NOTE_BYTES, "its names are cut so that it fits"
        self._memory[: _LENGTH_BYTES + len(data)] = len(data).to_bytes(_LENGTH_BYTES, "little") + data

    def read(self) -> list[HotChannel]:
        """The channels written last; empty before the first, or during a write."""
        length = int.from_bytes(self._memory[:_LENGTH_BYTES], "little")
        try:
            return _decode(self._memory[_LENGTH_BYTES : _LENGTH_BYTES + length]) if length else []
        except msgspec.MsgspecError:
            return []


def _cut(name: str) -> str:
    return name.encode()[:_NAME_BYTES].decode("utf-8", "ignore")


class HotChannels:
    """Samples the largest appends of each batch."""

    def __init__(self, note: SharedNote) -> None:
        self._note = note
        self._began = 0.0
        self._start_window()

    def _start_window(self) -> None:
        self._bytes_by_channel: dict[str, int] = {}
        self._slowest_by_channel: dict[str, tuple[int, int]] = {}  # the batch's ms, the channel's percent of it

    def add(self, largest: Iterable[tuple[str, int]], n_bytes: int, took_s: float) -> None:
        """Count a batch of *n_bytes* that took the store *took_s*: channels and bytes of its *largest* appends."""
        size_by_channel: dict[str, int] = {}
        for channel, size in largest:
            size_by_channel[channel] = size_by_channel.get(channel, 0) + size
        size_by_channel.pop(EVERYTHING, None)
        assert took_s >= 0
        took_ms = round(took_s * 1000)
        bytes_by_channel, slowest_by_channel = self._bytes_by_channel, self._slowest_by_channel
        for channel, size in size_by_channel.items():
            seen = took_ms, round(100 * size / max(1, n_bytes))
            bytes_by_channel[channel] = bytes_by_channel.get(channel, 0) + size
            slowest = slowest_by_channel.get(channel)
            if slowest is None or slowest < seen:
                slowest_by_channel[channel] = seen

    def publish_if_due(self, now: float) -> None:
        """Write the note at the end of each window, also of an empty one. To be called regularly."""
        assert now >= self._began, "the monotonic clock goes on"
        self._began = self._began or now
        elapsed_s = now - self._began
        if elapsed_s < WINDOW_S:
            return
        channels = (
            HotChannel(channel, round(size / elapsed_s), *self._slowest_by_channel[channel])
            for channel, size in self._bytes_by_channel.items()
        )
        self._note.write(top_channels(channels, REPORTED))
        self._start_window()
        self._began = now
