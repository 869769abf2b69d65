"""Which channel costs a batch writer the most at present, for people who look for what is slow."""

import mmap
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from channelindex.stores.base import ChannelAppend

WINDOW_S = 2.0
EVERYTHING = "*"
"""The channel of all documents is always the largest, and no news."""
_LENGTH_BYTES = 2
_NOTE_BYTES = 256


class Hot(NamedTuple):
    """A channel, and how many bytes of entries per second it takes."""

    channel: str
    bytes_per_s: int


class Note:
    """A channel's name in shared memory, cut to what fits. A look while it is written may be garbled."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _NOTE_BYTES)

    def write(self, hot: Hot | None) -> None:
        """Replace what is there."""
        text = f"{hot.bytes_per_s} {hot.channel}".encode()[: _NOTE_BYTES - _LENGTH_BYTES] if hot else b""
        self._memory[:_LENGTH_BYTES] = len(text).to_bytes(_LENGTH_BYTES, "little")
        self._memory[_LENGTH_BYTES : _LENGTH_BYTES + len(text)] = text

    def read(self) -> Hot | None:
        """What is there."""
        length = int.from_bytes(self._memory[:_LENGTH_BYTES], "little")
        text = self._memory[_LENGTH_BYTES : _LENGTH_BYTES + length].decode("utf-8", "replace")
        rate, _, channel = text.partition(" ")
        return Hot(channel, int(rate)) if rate.isdecimal() else None


class Hottest:
    """Finds it: the largest append of each batch counts, so the work is one look at each append."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self._bytes_by_channel: Counter[str] = Counter()
        self._began = 0.0

    def add(self, appends: Sequence[ChannelAppend], now: float) -> None:
        """Take a batch into account; write the note at the end of each window."""
        named = [(len(append.entries), append.channel) for append in appends if append.channel != EVERYTHING]
        if named:
            size, channel = max(named)
            self._bytes_by_channel[channel] += size
        self._began = self._began or now
        elapsed_s = now - self._began
        if elapsed_s >= WINDOW_S:
            self._tell(elapsed_s)
            self._bytes_by_channel.clear()
            self._began = now

    def _tell(self, elapsed_s: float) -> None:
        ((channel, size),) = self._bytes_by_channel.most_common(1) or [("", 0)]
        self._note.write(Hot(channel, round(size / elapsed_s)) if size else None)
