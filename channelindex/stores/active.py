"""Remembers the active blocks of a writer in a bounded map, cheap to ask once per channel and batch.

The compiled kernel has a class like it (`kernel/active.c`).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from channelindex.blocks import ENTRIES, HEADER, pack_frame
from channelindex.stores.base import ChannelAppend

Key = tuple[str, str]
"""(channel, group)."""


Summed = tuple[int, int, int, bytes]
"""`Directory.before`, `first` and `dropped` of a group, and the clock of all that is in its blocks, as pairs.

So the directory can be moved though nobody has read it, or the tail.
"""


Noted = tuple[int, bytes]
"""A byte of the active block, and the clock of what is behind it, as pairs: all of that came from us."""


class ActiveBlock(msgspec.Struct, gc=False):
    """The active block of one (channel, group), as its writer knows it: its size, when it is full, `Directory.upto`.

    Knowing it is good for one epoch only: between two epochs of ours, another owner may have rotated the block.
    `summed` is known only where all since the last move came from us, `noted` until the first move of a block that we
    found, where all since then did. Only the compiled kernel keeps them up.
    """

    epoch: int
    number: int
    size: int
    upto: int
    limit: int
    summed: Summed | None = None
    noted: Noted | None = None


BlindAppend = tuple[str, str, int, int, bytes]
"""(channel, group, block number, size of the block once it is there, frame).

A plain tuple: there is one per channel and batch.
"""


class LocatingAppend(NamedTuple):
    """An append to a block that we do not know; `header` begins block 0 if the channel has none."""

    channel: str
    group: str
    epoch: int
    header: bytes
    frame: bytes


class Location(NamedTuple):
    """The active block that was appended to: its number, size since, `Directory.upto`, `Compacted.live`."""

    number: int
    size: int
    upto: int
    live: int = 0


class ActiveBlocks:
    """At most *limit* blocks by (channel, group), the longest unused ones forgotten first, in two generations.

    What is used moves into the young generation; when that holds half of the limit it becomes the old one, and
    what was old is forgotten. Asking costs one dict lookup, where an ordered map would pay for a move each time.
    """

    def __init__(self, limit: int) -> None:
        assert limit > 0, "it remembers something"
        self.half = max(1, limit // 2)
        self.young: dict[Key, ActiveBlock] = {}
        """The blocks used last."""
        self.old: dict[Key, ActiveBlock] = {}
        """Those used before, to be moved to `young` when they are used again."""

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    def get(self, key: Key) -> ActiveBlock | None:
        """The active block of *key*, None if it is not remembered. `sort` does it for a whole batch."""
        active = self.young.get(key)
        if active is None and key in self.old:
            active = self.young[key] = self.old.pop(key)
            self.forget_if_full()
        return active

    def put(self, key: Key, active: ActiveBlock) -> None:
        """Remember *active*, instead of what *key* had."""
        self.old.pop(key, None)
        self.young[key] = active
        self.forget_if_full()

    def forget_if_full(self) -> None:
        """Forget the old ones where half of what may be remembered is young."""
        if len(self.young) >= self.half:
            self.old, self.young = self.young, {}

    def drop(self, key: Key) -> None:
        """Forget *key*."""
        self.young.pop(key, None)
        self.old.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self.young.clear()
        self.old.clear()


def learn(
    blocks: ActiveBlocks,
    appends: Sequence[LocatingAppend],
    locations: Sequence[Location | None],
    block_bytes: int,
    full_at: Callable[[int, int], int],
) -> set[int]:
    """Remember the blocks to which *appends* went; the epochs of those that were refused.

    A block is full at *block_bytes*, or where the channel was compacted, at `full_at(live, block_bytes)`.
    """
    stale: set[int] = set()
    for (channel, group, epoch, _, _), location in zip(appends, locations, strict=True):
        if location is None:
            stale.add(epoch)
        else:
            number, size, upto, live = location
            limit = full_at(live, block_bytes) if live else block_bytes
            assert number >= 0
            assert limit > 0, "it would be full before its first entry"
            blocks.put((channel, group), ActiveBlock(epoch, number, size, upto, limit))
    return stale


def locating(append: ChannelAppend) -> LocatingAppend:
    """Make the append of which a store has to look for the block."""
    channel, group, epoch, entries = append
    return LocatingAppend(channel, group, epoch, _first_header(epoch), pack_frame(ENTRIES, epoch, entries))


@lru_cache(64)
def _first_header(epoch: int) -> bytes:
    """The header of block 0: nothing is before it."""
    return pack_frame(HEADER, epoch, b"")
