"""The write half that all stores share: which appends are blind, which must ask first, and when a block is full.

A store brings the operations (`BlockOperations`); the rules are here, once:

* **Append**, blind, to the active block that this writer learnt for this very epoch.
* **Append and locate** where it knows none: the store looks into the channel's directory, refuses if a newer epoch of
  the group is there, else records our epoch, appends to the active block and returns its number.
* **Split** a batch that the store refuses for its size, down to single entries (`call_limit.py`).
* **Move** a directory: its clock, when the tail that readers fetch has become long; to the next block, which begins
  with the channel's clock, when the active one is full. It happens only if the directory is as we read it and, for a
  full block, nothing was appended since. A move that does not happen is no error: the append locates the block anew.
  Where a store tells of others' appends (`notices_others`), the clock pairs of a block that this writer began, or whose
  directory it moved, are noted (without the compiled kernel, the entries). Then nothing is read: `append` and the
  store's comparison see to it that what is moved is what was noted. Of a block that was found, what came before is read
  at the first move, once.

A request whose reply was lost may still arrive, even after its repetition. It must not rotate a block under our blind
appends: readers would miss what lies behind the active block, beyond its header clock. So after any error the writer
forgets all blocks. It has to locate a block before it appends blindly again, that append makes the block grow, and the
late rotation does not happen. All that such a request can do is append what its repetition appends too.

A block that is full after `full_at` bytes is followed by another one. A block may be compacted away (`compacting.py`),
but only when no present epoch writes it: a writer that finds one gone was paused, and locates the block anew.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

from channelindex import kernel
from channelindex.blocks import ENTRIES, FRAME_HEAD_BYTES, HEADER, iter_frames, pack_clock, pack_frame
from channelindex.errors import BlockGone, IndexCorrupt, RequestTooLarge
from channelindex.stores.active import ActiveBlock, ActiveBlocks, BlindAppend, LocatingAppend, Location, learn, locating
from channelindex.stores.base import BlockRef, ChannelAppend, Directory, GroupState
from channelindex.stores.call_limit import CallLimit

REMEMBERED_BLOCKS = 400_000
"""Active blocks that one writer remembers, the longest unused ones beyond are located anew. Each takes 150 bytes, 270
without the compiled kernel."""

REMEMBERED_PAIR_BYTES = 32 << 20
"""Memory for clock pairs of blocks that one writer remembers, 10 bytes for an entry since its block's clock was moved,
and for a vbucket; without the kernel for the entries themselves. Beyond that, the store is asked for the tail of a
block before its directory is moved."""

TAIL_BYTES = 32 << 10
"""Longest tail that the next append leaves alone; of a block that was found, until its first move, twice that. Each
reader of the channel fetches and parses it, 0.2 ms at most, and 0.4. At half of it a clock of 1,024 vbuckets would be
written for every 350 entries, and be most of what they cost."""

MIN_BLOCK_BYTES = 4 << 10
"""Size at which the smallest block is full. What is in active blocks cannot be compacted, so those of a channel of few
documents that change often are small."""

MAX_CALL_CHANNELS = 500
"""Appends in one call of the store that locate their blocks: Redis runs nothing else meanwhile, 2 to 3 ms."""

MAX_BLIND_APPENDS = 2_000
"""Appends in one call of the store that do not: it runs others' requests in between. Each call is a wait."""

MAX_CALL_BYTES = 2 << 20
"""Bytes in one call of the store: a larger one would stall Redis and grow its buffers."""

MAX_CALL_MOVES = 50
"""Moves in one call of the store: a rotation copies a whole block, about 20 µs at 64 KB."""


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


Asked = tuple[str, str, int]
"""(channel, group, end): of the active block, what lies before byte `end` is asked for; 0: all of it."""


class BlockOperations(Protocol):
    """The operations of a store on one (channel, group) at a time. Errors are those of `IndexWriter.write`."""

    tail_bytes: int
    """See TAIL_BYTES; more where readers get whole blocks anyway."""

    notices_others: bool
    """True if `append` returns all that it has to."""

    def append(self, appends: Sequence[BlindAppend]) -> Sequence[BlindAppend]:
        """Append each frame to its block. A (channel, group, number) may be there more than once.

        Return those whose block has another size now than it should: somebody else has appended to it, too.

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

    def groups(self, asked: Sequence[Asked]) -> Sequence[GroupState | None]:
        """The state of each (channel, group); None for one that was never written, or is compacted.

        Behind `end`, tails may be cut off.
        """
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


Due = tuple[ChannelAppend, ActiveBlock]
"""An append to a block whose directory is to be moved first."""

_Moving = tuple[ChannelAppend, ActiveBlock, Move]


class Sorted(NamedTuple):
    """A batch by what its writer knows of the blocks: `known` and `unknown` are for `calls_of`."""

    known: Sequence[BlindAppend]
    due: list[Due]
    unknown: Sequence[LocatingAppend]


_Appends = TypeVar("_Appends", BlindAppend, LocatingAppend)
_AnyAppend = ChannelAppend | BlindAppend | LocatingAppend


class BlockWriter:
    """`IndexWriter` over the operations of a store."""

    def __init__(
        self, operations: BlockOperations, block_bytes: int, remembered_blocks: int = REMEMBERED_BLOCKS
    ) -> None:
        assert block_bytes > 0
        self._operations = operations
        self._block_bytes = block_bytes
        self._limit = CallLimit(MAX_CALL_BYTES)
        self._compiled = compiled = kernel.chosen()
        self._sums_up = operations.notices_others
        most_sum_bytes = REMEMBERED_PAIR_BYTES if self._sums_up else 0
        self._active: Any = (
            ActiveBlocks(remembered_blocks, most_sum_bytes)
            if compiled is None
            else compiled.ActiveBlocks(remembered_blocks, ActiveBlock, LocatingAppend, most_sum_bytes)
        )
        self._in_flight: Sequence[_AnyAppend] = ()
        """The appends of the last call of the store."""
        self.n_block_lookups = 0

    def write(self, appends: Sequence[ChannelAppend], principals: Iterable[str] = ()) -> set[int]:
        """See `IndexWriter.write`."""
        keys = list(principals)
        while True:
            try:
                return self._write(self._limit.fit(appends) if self._limit.is_lowered else appends, keys)
            except RequestTooLarge as error:
                self._active.clear()
                self._limit.lower([*map(_entries_of, self._in_flight)], error)
            except BlockGone as error:
                self._active.clear()
                if not self._operations.is_compacted(error.channel):
                    raise
            except BaseException:
                self._active.clear()  # see above; and a store that comes back may have lost what we know
                raise

    def _write(self, appends: Sequence[ChannelAppend], principals: Sequence[str]) -> set[int]:
        known, due, unknown = self._sort(appends)
        moved, not_moved = self._move(due) if due else ([], [])
        for blind_appends in (known, moved):
            self._append(blind_appends)
        stale: set[int] = set()
        for locating_appends in (unknown, not_moved):
            stale |= self._append_and_locate(locating_appends)
        if principals:
            self._operations.count_principals(principals)
        return stale

    def _sort(self, appends: Sequence[ChannelAppend]) -> Sorted:
        if self._compiled is None:
            return sort(self._active, appends, self._operations.tail_bytes)
        if type(appends) is not self._compiled.Batch:
            appends = self._compiled.batch_of([*appends], ChannelAppend)
        return Sorted(*self._active.sort(appends, self._operations.tail_bytes))

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

    def _move(self, due: Sequence[Due]) -> tuple[list[BlindAppend], list[LocatingAppend]]:
        """Move the directories of *due*; what of it is to be appended blindly now, and what where it was not to be."""
        known: list[BlindAppend] = []
        unknown: list[LocatingAppend] = []
        for start, end in _chunks(len(due), max(1, MAX_CALL_MOVES * self._limit.n_bytes // MAX_CALL_BYTES)):
            chunk = due[start:end]
            self._in_flight = [append for append, _ in chunk]
            moving, others = self._moves_of(chunk)
            unknown += map(locating, others)
            happened = self._operations.move([move for _, _, move in moving]) if moving else ()
            for (append, active, move), moved in zip(moving, happened, strict=True):
                if moved:
                    known.append(self._moved(append, active, move))
                else:
                    unknown.append(locating(append))
        return known, unknown

    def _moves_of(self, due: Sequence[Due]) -> tuple[list[_Moving], list[ChannelAppend]]:
        """The moves of *due*, and the appends whose directory is not as we know it."""
        asked = [
            (append.channel, append.group, active.noted[0] if active.noted else 0)
            for append, active in due
            if active.summed is None
        ]
        states = iter(self._operations.groups(asked) if asked else ())
        moving: list[_Moving] = []
        others: list[ChannelAppend] = []
        for append, active in due:
            if active.summed is not None:
                before, first, dropped, _ = active.summed
                known = Directory(active.number, append.epoch, before, active.upto, first, dropped)
                moving.append((append, active, _move(append, known, active.size, active.clock, active.limit)))
                continue
            state = next(states)
            if state is None or not _is_known(state, append, active):
                others.append(append)
            else:
                moving.append((append, active, self._move_of(append, state, active)))
                active.limit = full_at(state.live, self._block_bytes)
        return moving, others

    def _move_of(self, append: ChannelAppend, state: GroupState, active: ActiveBlock) -> Move:
        if state.tail is None:
            block = BlockRef(append.channel, append.group, state.directory.number)
            raise IndexCorrupt(f"block {block.key} is gone: {_LOST}")
        size = state.directory.upto + len(state.tail)
        frames = state.frames
        if active.noted is not None:
            since, noted = active.noted
            assert state.directory.upto <= since <= size, "else the group is not as we know it"
            assert since <= active.size, "it has grown"
            cut = size - since
            frames = (frames[:-cut] if cut > 0 else frames) + pack_frame(HEADER, append.epoch, noted)
            size = active.size
        pairs = None if self._compiled is None else self._compiled.pack_clock(frames)
        return _move(append, state.directory, size, pack_clock(frames) if pairs is None else pairs, active.limit)

    def _moved(self, append: ChannelAppend, active: ActiveBlock, move: Move) -> BlindAppend:
        """Remember *active* as it is after *move*; return what is appended to it."""
        new = move.new
        active.number, active.upto = new.number, new.upto
        active.size = active.upto
        blind = _blind(append, active)
        key = append.channel, append.group
        if self._sums_up:
            active.summed, active.noted = (new.before, new.first, new.dropped, move.clock[FRAME_HEAD_BYTES:]), None
            self._active.put(key, active, append.entries)
        else:
            self._active.put(key, active)
        return blind

    def _append(self, known: Sequence[BlindAppend]) -> None:
        for appends in calls_of(known, MAX_BLIND_APPENDS, self._limit.n_bytes):
            self._in_flight = appends
            for append in self._operations.append(appends):
                self._active.drop(append[:2])  # its size and its clock are not what we count

    def _append_and_locate(self, unknown: Sequence[LocatingAppend]) -> set[int]:
        """Append *unknown* and learn their blocks; the epochs that were refused."""
        stale: set[int] = set()
        for appends in calls_of(unknown, MAX_CALL_CHANNELS, self._limit.n_bytes):
            self._in_flight = appends
            locations = self._operations.append_and_locate(appends)
            self.n_block_lookups += len(appends)
            remember = partial(learn, self._active) if isinstance(appends, list) else self._active.learn
            stale |= remember(appends, locations, self._block_bytes, full_at)
        return stale


def sort(blocks: ActiveBlocks, appends: Iterable[ChannelAppend], tail_bytes: int) -> Sorted:
    """Say of *appends* where they go; a known block grows by what goes to it. The kernel has a function like it.

    Due is the directory of a block that is full, or whose tail has *tail_bytes*.
    """
    known: list[Due] = []
    due: list[Due] = []
    unknown: list[LocatingAppend] = []
    young, old = blocks.young, blocks.old
    for append in appends:
        key = append[0], append[1]
        active = young.get(key)
        if active is None and key in old:
            active = young[key] = old.pop(key)
        if active is None or active.epoch != append[2]:
            unknown.append(locating(append))
        elif active.size < active.limit and active.size - active.upto < tail_bytes:
            known.append((append, active))
            if active.summed is not None:
                blocks.note(active, append[3])
        else:
            due.append((append, active))
    if len(young) >= blocks.half:
        blocks.forget_if_full()
    return Sorted([_blind(append, active) for append, active in known], due, unknown)


def _blind(append: ChannelAppend, active: ActiveBlock) -> BlindAppend:
    channel, group, epoch, entries = append
    frame = pack_frame(ENTRIES, epoch, entries)
    active.size += len(frame)
    return channel, group, active.number, active.size, frame


def full_at(live: int, block_bytes: int) -> int:
    """The size at which a block is full, of a channel of which compaction left *live* bytes; 0: there was none.

    Garbage in active blocks is bounded by it. At most *block_bytes*.
    """
    assert live >= 0
    return min(block_bytes, max(MIN_BLOCK_BYTES, live)) if live else block_bytes


def calls_of(appends: Sequence[_Appends], most: int, most_bytes: int) -> Iterable[Sequence[_Appends]]:
    """Return what each call of the store appends of *appends*.

    At most *most*, and none behind the one with which it has *most_bytes*.
    """
    assert most > 0
    if isinstance(appends, list):
        return _cut(appends, most, most_bytes)
    compiled: Any = appends
    calls: Iterable[Sequence[_Appends]] = compiled.calls(most, most_bytes)
    return calls


def _cut(appends: list[_Appends], most: int, most_bytes: int) -> Iterator[list[_Appends]]:
    call: list[_Appends] = []
    n_bytes = 0
    for append in appends:
        call.append(append)
        n_bytes += len(append[-1])
        if len(call) >= most or n_bytes >= most_bytes:
            yield call
            call, n_bytes = [], 0
    if call:
        yield call


def lost_block(key: str, channel: str) -> BlockGone:
    """The error of whoever appends to the block of *channel* with *key* that should be there and is not."""
    return BlockGone(f"{key} is gone: {_LOST}", channel)


_LOST = "the store has lost data; channelindex repair puts it back"


def _is_known(state: GroupState, append: ChannelAppend, active: ActiveBlock) -> bool:
    """Return whether the group is as we know it: the active block, and all of it that was there before us."""
    if state.directory[:2] != (active.number, append.epoch):
        return False
    if active.noted is None or state.tail is None:
        return True
    upto, since = state.directory.upto, active.noted[0]
    return upto <= since <= upto + len(state.tail)


def _move(append: ChannelAppend, known: Directory, size: int, pairs: bytes, block_bytes: int) -> Move:
    """The clock frame has our epoch for older ones' seqnos, too: it may claim too much, never too little."""
    channel, group, epoch, _ = append
    assert known.epoch <= epoch, "a newer epoch of the group would have refused us"
    assert known.number >= known.first
    assert size >= known.upto
    clock = pack_frame(HEADER, epoch, pairs)
    if size >= block_bytes:
        new = known._replace(number=known.number + 1, epoch=epoch, before=known.before + size, upto=len(clock))
    else:
        new = known._replace(upto=size)
    move = Move(channel, group, known, new, clock)
    assert move.size == size, "the store compares the block with the bytes that the clock sums up"
    assert new.before >= known.before, "a directory goes on"
    return move


def _entries_of(append: _AnyAppend) -> bytes:
    if isinstance(append, ChannelAppend):
        return append.entries
    ((_, _, entries),) = iter_frames(append[-1])
    return entries


def _chunks(count: int, size: int) -> Iterator[tuple[int, int]]:
    assert size > 0
    return ((start, start + size) for start in range(0, count, size))
