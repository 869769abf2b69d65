"""The write half that all stores share: which appends are blind, which must ask first, and when a block is full.

A store brings four atomic operations (`BlockOperations`); the rules are here, once:

* **Append**, blind, to the active block that this writer learnt for this very epoch.
* **Touch** where it knows none: the store looks into the channel's directory, refuses if a newer epoch of the group is
  there, else notes our epoch, appends to the active block and tells which it is.
* **Rotate** a full block: the next one begins with the channel's clock, and the clock log is folded. It happens
  only if the directory still names our epoch and that block, and the log has not grown since we read it. A rotation
  that does not happen is no error: the append becomes a touch.

A request whose reply was lost may still arrive, even after its repetition. It must not rotate a block under our blind
appends: readers would miss what lies behind the active block, beyond its header clock. So after any error the writer
forgets all blocks. It has to touch before it appends blindly again, the touch makes the log grow, and the late
rotation does not happen. All that such a request can do is append what its repetition appends too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from channelindex.blocks import ENTRIES, HEADER, fold_clock, pack_clock_record, pack_frame, pack_pairs
from channelindex.stores.active import Active, ActiveBlocks
from channelindex.stores.base import ChannelAppend

REMEMBERED_BLOCKS = 200_000
"""Active blocks that one writer remembers (about 250 bytes each); beyond, the longest unused ones are touched anew."""

MAX_CALL_CHANNELS = 500
"""Channels in one call of the store: Redis runs nothing else meanwhile, about 4 ms."""

MAX_CALL_BYTES = 2 << 20
"""Bytes in one call of the store: a larger one would stall Redis and grow its buffers."""

MAX_CALL_ROTATIONS = 50
"""Rotations in one call of the store: each copies a whole block, about 40 µs at 64 KB."""

BlindAppend = tuple[str, int, bytes, bytes]
"""(group, block number, frame, clock record). A plain tuple: there is one per channel and batch."""


class Touch(NamedTuple):
    """An append to a block that we do not know; `header` begins block 0 if the channel has none."""

    channel: str
    group: str
    epoch: int
    header: bytes
    frame: bytes
    record: bytes


class Rotation(NamedTuple):
    """Starts block `number + 1` with `header` and replaces the clock log of `log_bytes` bytes by `folded`."""

    channel: str
    group: str
    epoch: int
    number: int
    header: bytes
    log_bytes: int
    folded: bytes


class BlockOperations(Protocol):
    """What a store does atomically, per channel. Errors are those of `IndexWriter.write`."""

    def append(self, by_channel: Mapping[str, Sequence[BlindAppend]]) -> None:
        """Per channel: the frames to their blocks, then the records to the clock logs, then the counter, once."""
        ...

    def touch(self, touches: Sequence[Touch]) -> Sequence[tuple[int, int] | None]:
        """Per touch, in order: (number, size in bytes) of the block appended to, or None where it was refused."""
        ...

    def clock_logs(self, keys: Sequence[tuple[str, str]]) -> Sequence[bytes]:
        """The clock log of each (channel, group)."""
        ...

    def rotate(self, rotations: Sequence[Rotation]) -> Sequence[bool]:
        """Per rotation, in order, whether it happened."""
        ...

    def count_principals(self, keys: Sequence[str]) -> None:
        """Raise the counters of these principals, and their sum."""
        ...

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        ...


_Known = tuple[ChannelAppend, Active]


class BlockWriter:
    """`IndexWriter` over the atomic operations of a store."""

    def __init__(
        self, operations: BlockOperations, block_bytes: int, remembered_blocks: int = REMEMBERED_BLOCKS
    ) -> None:
        self._operations = operations
        self._block_bytes = block_bytes
        self._active = ActiveBlocks(remembered_blocks)
        self.n_touches = 0

    def write(self, appends: Sequence[ChannelAppend], principals: Iterable[str] = ()) -> set[int]:
        """See `IndexWriter.write`."""
        try:
            known, full, unknown = self._classify(appends)
            if full:
                self._rotate(full, known, unknown)
            if known:
                self._append(known)
            stale = self._touch(unknown) if unknown else set()
            keys = list(principals)
            if keys:
                self._operations.count_principals(keys)
        except BaseException:
            self._active.clear()  # see above; and a store that comes back may have lost what we know
            raise
        return stale

    def close(self) -> None:
        """See `IndexWriter.close`."""
        self._operations.close()

    def _classify(self, appends: Sequence[ChannelAppend]) -> tuple[list[_Known], list[_Known], list[ChannelAppend]]:
        """Of *appends*, those to a block that we know, to one that we know to be full, to one that we do not know."""
        known: list[_Known] = []
        full: list[_Known] = []
        unknown: list[ChannelAppend] = []
        get, limit = self._active.get, self._block_bytes
        for append in appends:
            active = get((append[0], append[1]))
            if active is None or active.epoch != append[2]:
                unknown.append(append)
            elif active.size < limit:
                known.append((append, active))
            else:
                full.append((append, active))
        return known, full, unknown

    def _rotate(self, full: Sequence[_Known], known: list[_Known], unknown: list[ChannelAppend]) -> None:
        """Start the next block of *full*; each goes on to *known*, or to *unknown* where it was not to be."""
        for chunk in _chunks(full, MAX_CALL_ROTATIONS):
            logs = self._operations.clock_logs([(append.channel, append.group) for append, _ in chunk])
            rotations = [_rotation(append, active, log) for (append, active), log in zip(chunk, logs, strict=True)]
            rotated = self._operations.rotate(rotations)
            for (append, active), rotation, happened in zip(chunk, rotations, rotated, strict=True):
                if happened:
                    active.number += 1
                    active.size = len(rotation.header)
                    known.append((append, active))
                else:
                    unknown.append(append)

    def _append(self, known: Sequence[_Known]) -> None:
        by_channel: dict[str, list[BlindAppend]] = {}
        n_bytes = 0
        for (channel, group, epoch, entries, pairs), active in known:
            frame = pack_frame(ENTRIES, epoch, entries)
            item = (group, active.number, frame, pack_clock_record(epoch, pairs))
            items = by_channel.get(channel)
            if items is None:
                by_channel[channel] = [item]
            else:
                items.append(item)
            active.size += len(frame)
            n_bytes += len(frame)
            if len(by_channel) >= MAX_CALL_CHANNELS or n_bytes >= MAX_CALL_BYTES:
                self._operations.append(by_channel)
                by_channel, n_bytes = {}, 0
        if by_channel:
            self._operations.append(by_channel)

    def _touch(self, unknown: Sequence[ChannelAppend]) -> set[int]:
        """Append *unknown* and learn their blocks; the epochs that were refused."""
        stale: set[int] = set()
        touches: list[ChannelAppend] = []
        n_bytes = 0
        for append in unknown:
            touches.append(append)
            n_bytes += len(append.entries)
            if len(touches) >= MAX_CALL_CHANNELS or n_bytes >= MAX_CALL_BYTES:
                stale |= self._touch_at_once(touches)
                touches, n_bytes = [], 0
        if touches:
            stale |= self._touch_at_once(touches)
        return stale

    def _touch_at_once(self, appends: Sequence[ChannelAppend]) -> set[int]:
        stale: set[int] = set()
        found = self._operations.touch([_touch(append) for append in appends])
        self.n_touches += len(appends)
        for append, block in zip(appends, found, strict=True):
            if block is None:
                stale.add(append.epoch)
            else:
                number, size = block
                self._active.put((append.channel, append.group), Active(append.epoch, number, size))
        return stale


def _touch(append: ChannelAppend) -> Touch:
    channel, group, epoch, entries, pairs = append
    header = pack_frame(HEADER, epoch, b"")
    return Touch(channel, group, epoch, header, pack_frame(ENTRIES, epoch, entries), pack_clock_record(epoch, pairs))


def _rotation(append: ChannelAppend, active: Active, log: bytes) -> Rotation:
    """The folded log carries our epoch for older ones' seqnos too: it may say too much, never too little."""
    pairs = pack_pairs(fold_clock(log))
    return Rotation(
        append.channel,
        append.group,
        append.epoch,
        active.number,
        pack_frame(HEADER, append.epoch, pairs),
        len(log),
        pack_clock_record(append.epoch, pairs),
    )


def _chunks(items: Sequence[_Known], size: int) -> Iterator[Sequence[_Known]]:
    return (items[start : start + size] for start in range(0, len(items), size))
