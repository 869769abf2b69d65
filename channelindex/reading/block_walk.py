"""Walks the blocks of channels, newest first, as far as a reader needs them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from channelindex.blocks import OnCorrupt, fold_clock, refuse, unpack_pairs
from channelindex.errors import IndexCorrupt, RemovalsForgotten
from channelindex.reading.scan import Scan
from channelindex.stores.base import BlockRef, ChannelState, GroupState, IndexReader

_BLOCKS_PER_READ = 64  # a reader that has a long way to go must not hold all the blocks at once


class ReadStats(NamedTuple):
    """Counts the blocks that one answer fetched from the store, and the bytes of all that it read of blocks."""

    n_blocks: int
    n_bytes: int


NOTHING_READ = ReadStats(0, 0)


class _BlockStep(NamedTuple):
    """A block to read; `first` is the number of the oldest block of its group.

    `planned`: the blocks before it are read in any case, whatever its header holds.
    """

    position: int
    ref: BlockRef
    first: int
    planned: bool

    @property
    def goes_back(self) -> bool:
        """True if there is a block before this one, to be read if this one reaches back."""
        return self.ref.number > self.first and not self.planned

    def before(self) -> "_BlockStep":
        """The block before this one."""
        assert self.ref.number > self.first, "nothing is before the first block"
        return self._replace(ref=self.ref._replace(number=self.ref.number - 1))


def walk(
    store: IndexReader,
    channels: Sequence[str],
    scan: Scan,
    on_corrupt: OnCorrupt = refuse,
    states: Sequence[ChannelState | None] | None = None,
) -> ReadStats:
    """Add to *scan* all blocks of *channels* that reach into its window; return what was fetched.

    *states* are those of the channels, if they were read already, after the scan's snapshot.
    *on_corrupt* is called for each block or clock that is missing or damaged, with its key. If it returns, the intact
    part is used, and the walk goes as far back as the damaged part might have required.

    Raises:
        IndexCorrupt: if *on_corrupt* does.
        ChangesForgotten, StoreUnavailable: see `IndexReader`.
    """
    walking = _Walk(store, scan, on_corrupt)
    steps = walking.begin(channels, store.channel_states(channels) if states is None else states)
    while steps:
        steps = walking.read(steps)
    return ReadStats(walking.n_blocks, walking.n_bytes)


class _Walk:
    """One walk. A group's state has the end of its active block: enough for a reader that has seen all before it."""

    def __init__(self, store: IndexReader, scan: Scan, on_corrupt: OnCorrupt) -> None:
        self._store = store
        self._scan = scan
        self._on_corrupt = on_corrupt
        self._channels: Sequence[str] = ()
        self._states: dict[int, ChannelState] = {}
        self.n_blocks = 0
        self.n_bytes = 0

    def begin(self, channels: Sequence[str], states: Sequence[ChannelState | None]) -> list[_BlockStep]:
        """Add the entries in *states*, those of *channels*; return the blocks to read besides."""
        self._channels = channels
        return self._begin(range(len(channels)), states)

    def _begin_again(self, positions: Sequence[int]) -> list[_BlockStep]:
        """Begin the channels at *positions* once more: their directories are others since they were read."""
        return self._begin(positions, self._store.channel_states([self._channels[position] for position in positions]))

    def _begin(self, positions: Sequence[int], states: Sequence[ChannelState | None]) -> list[_BlockStep]:
        steps: list[_BlockStep] = []
        for position, state in zip(positions, states, strict=True):
            if state is None:
                continue
            channel = self._channels[position]
            self._states[position] = state
            if any(group.tail is None for group in state.groups.values()) and self._is_another(position):
                steps += self._begin_again([position])
                continue
            if state.floor:
                self._check_floor(channel, state.floor)
            for group, of_group in sorted(state.groups.items()):
                active = BlockRef(channel, group, of_group.directory.number)
                steps += self._begin_group(position, active, of_group)
        return steps

    def _check_floor(self, channel: str, floor: bytes) -> None:
        """Refuse a reader that may hold a document whose removal was dropped; one that begins holds none."""
        dropped = unpack_pairs(floor)
        if any(self._scan.heard_upto(vb) < seqno for vb, seqno in dropped.items()):
            raise RemovalsForgotten(channel, dropped)

    def _is_another(self, position: int) -> bool:
        """True if the channel was compacted, or the store went back, since its directory was read: blocks may be gone.

        A store goes back where requests of one read go to two servers: the first was replaced by one that lacks its
        newest writes.
        """
        (state,) = self._store.channel_states([self._channels[position]])
        known = self._states[position]
        if state is None or state.compacted.generation != known.compacted.generation:
            return True
        return any(_went_back(state.groups.get(group), before) for group, before in known.groups.items())

    def read(self, steps: Sequence[_BlockStep]) -> list[_BlockStep]:
        """Add the blocks of *steps*; those before them that are to be read next."""
        assert steps, "there is something to read"
        following: list[_BlockStep] = []
        compacted: set[int] = set()
        for step, block in _fetched(self._store, steps):
            if step.position in compacted or (block is None and self._is_another(step.position)):
                compacted.add(step.position)
                continue
            self.n_blocks += block is not None
            if self._add_block(step.position, step.ref, block) and step.goes_back:
                following.append(step.before())
        following = [step for step in following if step.position not in compacted]
        return following + (self._begin_again(sorted(compacted)) if compacted else [])

    def _begin_group(self, position: int, active: BlockRef, state: GroupState) -> list[_BlockStep]:
        """All blocks at once if the reader has seen nothing of the group."""
        first = state.directory.first
        assert first <= active.number, "the active block is the newest"
        step = _BlockStep(position, active, first, planned=False)
        if not state.directory.upto or state.tail is None:  # all of the block, or nothing
            reaches_back = self._add_block(position, active, state.tail)
            return [step.before()] if reaches_back and step.goes_back else []
        try:
            clock = fold_clock(state.clock, self._scan.clock_limit)
        except IndexCorrupt as error:
            _with_location(f"clock of channel {active.channel!r}, group {active.group}", self._on_corrupt)(error)
            return [step]  # the block headers decide
        if self._scan.covered(clock):
            self.n_bytes += len(state.tail)
            self._scan.add_tail(state.tail, position, _with_location(f"block {active.key}", self._on_corrupt))
            return []
        if any(self._scan.since[vb] for vb in clock):
            return [step]
        return [
            _BlockStep(position, active._replace(number=number), first, planned=True)
            for number in range(active.number, first - 1, -1)
        ]

    def _add_block(self, position: int, ref: BlockRef, block: bytes | None) -> bool:
        """Add a block; whether blocks before it may hold something, too."""
        report = _with_location(f"block {ref.key}", self._on_corrupt)
        if block is None:
            report(IndexCorrupt("it is missing"))
            return True
        self.n_bytes += len(block)
        return self._scan.add_block(block, position, report)


def _fetched(store: IndexReader, steps: Sequence[_BlockStep]) -> Iterator[tuple[_BlockStep, bytes | None]]:
    for start in range(0, len(steps), _BLOCKS_PER_READ):
        chunk = steps[start : start + _BLOCKS_PER_READ]
        yield from zip(chunk, store.blocks([step.ref for step in chunk]), strict=True)


def _went_back(now: GroupState | None, before: GroupState) -> bool:
    """True if a group's directory is older than it was: it only ever moves on, as long as the store loses nothing."""
    if now is None:
        return True
    return (now.directory.number, now.directory.upto) < (before.directory.number, before.directory.upto)


def _with_location(where: str, on_corrupt: OnCorrupt) -> OnCorrupt:
    """*on_corrupt* with the place of the damage put before each message."""
    return lambda error: on_corrupt(IndexCorrupt(f"{where}: {error}"))
