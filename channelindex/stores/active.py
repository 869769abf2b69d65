"""Remembers the active blocks of a writer in a bounded map, cheap to ask once per channel and batch.

The compiled kernel has a class like it (`kernel/active.c`).
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

import msgspec

from channelindex.blocks import ENTRIES, FRAME_HEAD_BYTES, HEADER, has_several, pack_frame, raise_pairs
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
    found, where all since then did: the compiled kernel alone has that. It also sums up what comes; in Python that is
    kept in `since`, behind the pairs of `summed`, until the directory is moved.
    """

    epoch: int
    number: int
    size: int
    upto: int
    limit: int
    summed: Summed | None = None
    noted: Noted | None = None
    since: list[bytes] | None = None

    @property
    def clock(self) -> bytes:
        """The clock of all that is in the group's blocks, as pairs. Only where `summed` is known."""
        assert self.summed is not None, "nobody knows it"
        if not self.since:
            return self.summed[-1]
        pairs, *entries = self.since
        return raise_pairs(pairs, entries)


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

    What is to be summed up of them is forgotten, all at once, as soon as it would take more than *most_sum_bytes*.
    """

    def __init__(self, limit: int, most_sum_bytes: int = 0) -> None:
        assert limit > 0, "it remembers something"
        assert most_sum_bytes >= 0
        self._most_sum_bytes = most_sum_bytes
        self._sum_bytes = 0
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

    @property
    def sums_up(self) -> bool:
        """True if anything is to be summed up."""
        return self._most_sum_bytes > 0

    def put(self, key: Key, active: ActiveBlock, entries: bytes = b"") -> None:
        """Remember *active*, instead of what *key* had. *entries* came to it behind what is summed up of it."""
        self.old.pop(key, None)
        self.young[key] = active
        if active.summed is not None:
            assert self.sums_up, "it would be forgotten at once"
            self._sum_bytes = max(0, self._sum_bytes - sum(map(len, active.since or ())))
            active.since = []
            self.note(active, active.summed[-1])
            self.note(active, entries)
        self.forget_if_full()

    def note(self, active: ActiveBlock, part: bytes) -> None:
        """Keep *part* for the clock of *active*, if that is known: its pairs first, then entries that come to it."""
        if active.since is None:
            return
        active.since.append(part)
        self._sum_bytes += len(part)  # those of blocks that were forgotten are counted, too, until all are
        if self._sum_bytes > self._most_sum_bytes:
            self._forget_sums()

    def _forget_sums(self) -> None:
        for active in chain(self.young.values(), self.old.values()):
            active.summed = active.since = None
        self._sum_bytes = 0

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
        self._sum_bytes = 0


def learn(
    blocks: ActiveBlocks,
    appends: Sequence[LocatingAppend],
    locations: Sequence[Location | None],
    block_bytes: int,
    full_at: Callable[[int, int], int],
) -> set[int]:
    """Remember the blocks to which *appends* went; the epochs of those that were refused.

    A block is full at *block_bytes*, or where the channel was compacted, at `full_at(live, block_bytes)`. A group that
    begins with its append has nothing else, and so is summed up; not where that has one entry, of a channel that will
    not soon fill a block.
    """
    stale: set[int] = set()
    for (channel, group, epoch, _, frame), location in zip(appends, locations, strict=True):
        if location is None:
            stale.add(epoch)
        else:
            number, size, upto, live = location
            limit = full_at(live, block_bytes) if live else block_bytes
            assert number >= 0
            assert limit > 0, "it would be full before its first entry"
            active, entries = ActiveBlock(epoch, number, size, upto, limit), b""
            if blocks.sums_up and not upto and size == FRAME_HEAD_BYTES + len(frame):
                entries = frame[FRAME_HEAD_BYTES:]
                active.summed = (0, number, 0, b"") if has_several(entries) else None
            blocks.put((channel, group), active, entries)
    return stale


def locating(append: ChannelAppend) -> LocatingAppend:
    """Make the append of which a store has to look for the block."""
    channel, group, epoch, entries = append
    return LocatingAppend(channel, group, epoch, _first_header(epoch), pack_frame(ENTRIES, epoch, entries))


@lru_cache(64)
def _first_header(epoch: int) -> bytes:
    """The header of block 0: nothing is before it."""
    return pack_frame(HEADER, epoch, b"")
