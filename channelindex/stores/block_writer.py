"""The write half that all stores share: which appends are blind, which must ask first, and when a block is full.

A store brings the operations (`BlockOperations`); the rules are here, once:

* **Append**, blind, to the active block that this writer learnt for this very epoch.
* **Append and locate** where it knows none: the store looks into the channel's directory, refuses if a newer epoch of
  the group is there, else records our epoch, appends to the active block and returns its number.
* **Split** a batch that the store refuses for its size, down to single entries (`call_limit.py`).
* **Move** a directory: its clock, when the tail that readers fetch has become long; to the next block, which begins
  with the channel's clock, when the active one is full. It happens only if the directory is as we read it and, for a
  full block, nothing was appended since. A move that does not happen is no error: the append locates the block anew.

A request whose reply was lost may still arrive, even after its repetition. It must not rotate a block under our blind
appends: readers would miss what lies behind the active block, beyond its header clock. So after any error the writer
forgets all blocks. It has to locate a block before it appends blindly again, that append makes the block grow, and the
late rotation does not happen. All that such a request can do is append what its repetition appends too.

A block that is full after `full_at` bytes is followed by another one. A block may be compacted away (`compacting.py`),
but only when no present epoch writes it: a writer that finds one gone was paused, and locates the block anew.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple, Protocol

from channelindex import kernel
from channelindex.blocks import ENTRIES, HEADER, pack_clock, pack_frame
from channelindex.errors import BlockGone, IndexCorrupt, RequestTooLarge
from channelindex.stores.active import ActiveBlock, ActiveBlocks
from channelindex.stores.base import BlockRef, ChannelAppend, Directory, GroupState
from channelindex.stores.call_limit import CallLimit

REMEMBERED_BLOCKS = 200_000
"""Active blocks that one writer remembers (about 250 bytes each); the longest unused ones beyond are located anew."""

TAIL_BYTES = 16 << 10
"""Longest tail that the next append leaves alone. Each reader of the channel fetches and parses it, about 0.1 ms."""

MIN_BLOCK_BYTES = 4 << 10
"""Size at which the smallest block is full. What is in active blocks cannot be compacted, so those of a channel of few
documents that change often are small."""

MAX_CALL_CHANNELS = 500
"""Channels in one call of the store: Redis runs nothing else meanwhile, about 2 ms."""

MAX_CALL_BYTES = 2 << 20
"""Bytes in one call of the store: a larger one would stall Redis and grow its buffers."""

MAX_CALL_MOVES = 50
"""Moves in one call of the store: a rotation copies a whole block, about 40 µs at 64 KB."""

BlindAppend = tuple[str, str, int, bytes]
"""(channel, group, block number, frame). A plain tuple: there is one per channel and batch."""


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


class Move(NamedTuple):
    """Replaces the directory `known` by `new`, and the clock frame by `clock`.

    Where `rotates`, block `new.number` begins with `clock`; `size` is then what the block before must have, in bytes,
    else what it must have at least.
    """

    channel: str
    group: str
    known: Directory
    new: Directory
    clock: bytes

    @property
    def rotates(self) -> bool:
        """True if the active block becomes another one."""
        return self.new.number != self.known.number

    @property
    def size(self) -> int:
        """Number of bytes of the block `known.number` that the clock sums up."""
        return self.new.before - self.known.before if self.rotates else self.new.upto


class BlockOperations(Protocol):
    """The operations of a store on one (channel, group) at a time. Errors are those of `IndexWriter.write`."""

    tail_bytes: int
    """See TAIL_BYTES; more where readers get whole blocks anyway."""

    def append(self, appends: Sequence[BlindAppend]) -> None:
        """Append each frame to its block. A (channel, group, number) may be there more than once.

        Raises:
            BlockGone: a block does not exist; nothing was appended to it.
        """
        ...

    def append_and_locate(self, appends: Sequence[LocatingAppend]) -> Sequence[Location | None]:
        """Per append, in order: the block appended to, or None where it was refused.

        Raises:
            IndexCorrupt: a block does not exist though the directory names it.
        """
        ...

    def groups(self, keys: Sequence[tuple[str, str]]) -> Sequence[GroupState | None]:
        """The state of each (channel, group); None for one that was never written, or is compacted."""
        ...

    def is_compacted(self, channel: str) -> bool:
        """True if blocks of *channel* were ever compacted."""
        ...

    def move(self, moves: Sequence[Move]) -> Sequence[bool]:
        """Per move, in order, whether it happened."""
        ...

    def count_principals(self, keys: Sequence[str]) -> None:
        """Raise the counters of these principals, and their sum."""
        ...

    def servers(self) -> int:
        """See `IndexWriter.servers`."""
        ...

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        ...


_Known = tuple[ChannelAppend, ActiveBlock]


class BlockWriter:
    """`IndexWriter` over the operations of a store."""

    def __init__(
        self, operations: BlockOperations, block_bytes: int, remembered_blocks: int = REMEMBERED_BLOCKS
    ) -> None:
        assert block_bytes > 0
        self._operations = operations
        self._block_bytes = block_bytes
        self._active = ActiveBlocks(remembered_blocks)
        self._limit = CallLimit(MAX_CALL_BYTES)
        compiled = kernel.chosen()
        self._blind_appends = blind_appends if compiled is None else compiled.blind_appends
        self._compiled = compiled
        self._in_flight: Sequence[ChannelAppend] = ()
        """The entries that the last call of the store had to append."""
        self.n_block_lookups = 0

    def write(self, appends: Sequence[ChannelAppend], principals: Iterable[str] = ()) -> set[int]:
        """See `IndexWriter.write`."""
        keys = list(principals)
        while True:
            try:
                return self._write(self._limit.fit(appends) if self._limit.is_lowered else appends, keys)
            except RequestTooLarge as error:
                self._active.clear()
                self._limit.lower(self._in_flight, error)
            except BlockGone as error:
                self._active.clear()
                if not self._operations.is_compacted(error.channel):
                    raise
            except BaseException:
                self._active.clear()  # see above; and a store that comes back may have lost what we know
                raise

    def _write(self, appends: Sequence[ChannelAppend], principals: Sequence[str]) -> set[int]:
        known, due, unknown = self._classify(appends)
        if due:
            self._move(due, known, unknown)
        if known:
            self._append(known)
        stale = self._append_and_locate(unknown) if unknown else set()
        if principals:
            self._operations.count_principals(principals)
        return stale

    def servers(self) -> int:
        """See `IndexWriter.servers`."""
        return self._operations.servers()

    def reconnect(self) -> None:
        """See `IndexWriter.reconnect`."""
        self._active.clear()
        self._operations.close()

    def close(self) -> None:
        """See `IndexWriter.close`."""
        self._operations.close()

    def _classify(self, appends: Sequence[ChannelAppend]) -> tuple[list[_Known], list[_Known], list[ChannelAppend]]:
        """Of *appends*, those to a block that we know, to one whose directory is due to move, to one unknown to us."""
        known: list[_Known] = []
        due: list[_Known] = []
        unknown: list[ChannelAppend] = []
        young, tail_limit = self._active.young, self._operations.tail_bytes
        for append in appends:
            key = append[0], append[1]
            active = young.get(key) or self._active.get(key)
            if active is None or active.epoch != append[2]:
                unknown.append(append)
            elif active.size < active.limit and active.size - active.upto < tail_limit:
                known.append((append, active))
            else:
                due.append((append, active))
        return known, due, unknown

    def _move(self, due: Sequence[_Known], known: list[_Known], unknown: list[ChannelAppend]) -> None:
        """Move the directories of *due*; each goes on to *known*, or to *unknown* where it was not to be."""
        for chunk in _chunks(due, max(1, MAX_CALL_MOVES * self._limit.n_bytes // MAX_CALL_BYTES)):
            self._in_flight = [append for append, _ in chunk]
            states = self._operations.groups([(append.channel, append.group) for append, _ in chunk])
            moves: list[Move] = []
            moving: list[_Known] = []
            for (append, active), state in zip(chunk, states, strict=True):
                if state is None or state.directory[:2] != (active.number, append.epoch):
                    unknown.append(append)
                else:
                    moves.append(self._move_of(append, state, active.limit))
                    active.limit = full_at(state.live, self._block_bytes)
                    moving.append((append, active))
            happened = self._operations.move(moves) if moves else ()
            for (append, active), move, moved in zip(moving, moves, happened, strict=True):
                if moved:
                    active.number, active.upto = move.new.number, move.new.upto
                    active.size = active.upto
                    known.append((append, active))
                else:
                    unknown.append(append)

    def _move_of(self, append: ChannelAppend, state: GroupState, block_bytes: int) -> Move:
        if state.tail is None:
            block = BlockRef(append.channel, append.group, state.directory.number)
            raise IndexCorrupt(f"block {block.key} is gone: {_LOST}")
        pairs = None if self._compiled is None else self._compiled.pack_clock(state.frames)
        return _move(append, state, pack_clock(state.frames) if pairs is None else pairs, block_bytes)

    def _append(self, known: list[_Known]) -> None:
        n_done = 0
        while n_done < len(known):
            appends = self._blind_appends(known, n_done, MAX_CALL_CHANNELS, self._limit.n_bytes)
            self._append_at_once(known[n_done : n_done + len(appends)], appends)
            n_done += len(appends)

    def _append_at_once(self, known: Sequence[_Known], appends: Sequence[BlindAppend]) -> None:
        assert len(known) == len(appends), "what is in flight is what this call appends"
        self._in_flight = [append for append, _ in known]
        self._operations.append(appends)

    def _append_and_locate(self, unknown: Sequence[ChannelAppend]) -> set[int]:
        """Append *unknown* and learn their blocks; the epochs that were refused."""
        stale: set[int] = set()
        appends: list[ChannelAppend] = []
        n_bytes = 0
        for append in unknown:
            appends.append(append)
            n_bytes += len(append.entries)
            if len(appends) >= MAX_CALL_CHANNELS or n_bytes >= self._limit.n_bytes:
                stale |= self._locate_at_once(appends)
                appends, n_bytes = [], 0
        if appends:
            stale |= self._locate_at_once(appends)
        return stale

    def _locate_at_once(self, appends: Sequence[ChannelAppend]) -> set[int]:
        stale: set[int] = set()
        self._in_flight = appends
        found = self._operations.append_and_locate([_locating(append) for append in appends])
        self.n_block_lookups += len(appends)
        for append, location in zip(appends, found, strict=True):
            if location is None:
                stale.add(append.epoch)
            else:
                number, size, upto, live = location
                active = ActiveBlock(append.epoch, number, size, upto, full_at(live, self._block_bytes))
                self._active.put((append.channel, append.group), active)
        return stale


def full_at(live: int, block_bytes: int) -> int:
    """The size at which a block is full, of a channel of which compaction left *live* bytes; 0: there was none.

    Garbage in active blocks is bounded by it. At most *block_bytes*.
    """
    return min(block_bytes, max(MIN_BLOCK_BYTES, live)) if live else block_bytes


def blind_appends(known: Sequence[_Known], start: int, most: int, most_bytes: int) -> list[BlindAppend]:
    """Pack what one call of the store appends of *known* from *start* on; their blocks grow by it.

    At most so many, and none behind the one that reaches so many bytes. The compiled kernel has a function like it.
    """
    appends: list[BlindAppend] = []
    n_bytes = 0
    for (channel, group, epoch, entries), active in islice(known, start, start + most):
        frame = pack_frame(ENTRIES, epoch, entries)
        appends.append((channel, group, active.number, frame))
        size = len(frame)
        active.size += size
        n_bytes += size
        if n_bytes >= most_bytes:
            break
    return appends


def lost_block(key: str, channel: str) -> BlockGone:
    """The error of whoever appends to the block of *channel* with *key* that should be there and is not."""
    return BlockGone(f"{key} is gone: {_LOST}", channel)


_LOST = "the store has lost data; channelindex repair, or in a bucket a new index.name"


def _locating(append: ChannelAppend) -> LocatingAppend:
    channel, group, epoch, entries = append
    return LocatingAppend(channel, group, epoch, _first_header(epoch), pack_frame(ENTRIES, epoch, entries))


@lru_cache(64)
def _first_header(epoch: int) -> bytes:
    """The header of block 0: nothing is before it."""
    return pack_frame(HEADER, epoch, b"")


def _move(append: ChannelAppend, state: GroupState, pairs: bytes, block_bytes: int) -> Move:
    """The clock frame has our epoch for older ones' seqnos, too: it may claim too much, never too little."""
    channel, group, epoch, _ = append
    known = state.directory
    size = known.upto + len(state.tail or b"")
    clock = pack_frame(HEADER, epoch, pairs)
    if size >= block_bytes:
        new = known._replace(number=known.number + 1, epoch=epoch, before=known.before + size, upto=len(clock))
    else:
        new = known._replace(upto=size)
    move = Move(channel, group, known, new, clock)
    assert move.size == size, "the store compares the block with the bytes that the clock sums up"
    return move


def _chunks(items: Sequence[_Known], size: int) -> Iterator[Sequence[_Known]]:
    return (items[start : start + size] for start in range(0, len(items), size))
