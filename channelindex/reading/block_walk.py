"""Walks the blocks of channels, newest first, as far as a reader needs them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from channelindex.blocks import OnCorrupt, fold_clock, refuse
from channelindex.errors import IndexCorrupt
from channelindex.reading.scan import Scan
from channelindex.stores.base import BlockRef, ChannelState, GroupState, IndexReader

_BLOCKS_PER_READ = 64  # a reader that has a long way to go must not hold all the blocks at once


class ReadStats(NamedTuple):
    """Counts the blocks that one answer fetched from the store, and the bytes of all that it read of blocks."""

    n_blocks: int
    n_bytes: int


NOTHING_READ = ReadStats(0, 0)


class _BlockStep(NamedTuple):
    """A block to read. `planned`: the blocks before it are read in any case, whatever its header holds."""

    position: int
    ref: BlockRef
    planned: bool

    def before(self) -> "_BlockStep":
        """The block before this one."""
        assert self.ref.number > 0, "nothing is before block 0"
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
        self.n_blocks = 0
        self.n_bytes = 0

    def begin(self, channels: Sequence[str], states: Sequence[ChannelState | None]) -> list[_BlockStep]:
        """Add the entries in *states*, those of *channels*; return the blocks to read besides."""
        return [
            step
            for position, (channel, state) in enumerate(zip(channels, states, strict=True))
            if state is not None
            for group, of_group in sorted(state.groups.items())
            for step in self._begin_group(position, BlockRef(channel, group, of_group.directory.number), of_group)
        ]

    def read(self, steps: Sequence[_BlockStep]) -> list[_BlockStep]:
        """Add the blocks of *steps*; those before them that are to be read next."""
        following: list[_BlockStep] = []
        for step, block in _fetched(self._store, steps):
            self.n_blocks += block is not None
            reaches_back = self._add_block(step.position, step.ref, block)
            if reaches_back and step.ref.number and not step.planned:
                following.append(step.before())
        return following

    def _begin_group(self, position: int, active: BlockRef, state: GroupState) -> list[_BlockStep]:
        """All blocks at once if the reader has seen nothing of the group."""
        step = _BlockStep(position, active, planned=False)
        if not state.directory.upto or state.tail is None:  # all of the block, or nothing
            reaches_back = self._add_block(position, active, state.tail)
            return [step.before()] if reaches_back and active.number else []
        try:
            clock = fold_clock(state.clock, self._scan.snapshot.clock_limit)
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
            _BlockStep(position, active._replace(number=number), planned=True)
            for number in range(active.number, -1, -1)
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


def _with_location(where: str, on_corrupt: OnCorrupt) -> OnCorrupt:
    """*on_corrupt* with the place of the damage put before each message."""
    return lambda error: on_corrupt(IndexCorrupt(f"{where}: {error}"))
