"""Walks the blocks of channels, newest first, as far as a reader needs them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from channelindex.blocks import OnCorrupt, fold_clock, refuse
from channelindex.errors import ChangesForgotten, IndexCorrupt
from channelindex.reading.scan import Scan
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores.base import BlockRef, IndexReader

_BLOCKS_PER_READ = 64  # a reader that has a long way to go must not hold all the blocks at once


class ReadStats(NamedTuple):
    """Counts the blocks that one answer fetched from the store, and their bytes."""

    n_blocks: int
    n_bytes: int


class _Step(NamedTuple):
    """A block to read. `planned`: the blocks before it are read in any case, whatever its header holds."""

    position: int
    ref: BlockRef
    planned: bool


def walk(store: IndexReader, channels: Sequence[str], scan: Scan, on_corrupt: OnCorrupt = refuse) -> ReadStats:
    """Add to *scan* all blocks of *channels* that reach into its window; return what was fetched.

    *on_corrupt* is called for each block or clock that is missing or damaged, with its key. If it returns, the intact
    part is used, and the walk goes as far back as the damaged part might have required.

    Raises:
        IndexCorrupt: if *on_corrupt* does.
        ChangesForgotten, StoreUnavailable: see `IndexReader`.
    """
    n_blocks = n_bytes = 0
    steps = list(_first_steps(store, channels, scan, on_corrupt))
    while steps:
        following: list[_Step] = []
        for step, block in _fetched(store, steps):
            report = _with_location(f"block {step.ref.key}", on_corrupt)
            if block is None:
                report(IndexCorrupt("it is missing"))
                reaches_back = True
            else:
                n_blocks += 1
                n_bytes += len(block)
                reaches_back = scan.add_block(block, step.position, report)
            if reaches_back and step.ref.number and not step.planned:
                following.append(step._replace(ref=step.ref._replace(number=step.ref.number - 1)))
        steps = following
    return ReadStats(n_blocks, n_bytes)


def read_retained(store: IndexReader, channel: str, snapshot: IndexSnapshot) -> tuple[Scan, Mapping[int, int]]:
    """All entries that the index retains of *channel*, and the clock up to which it may have dropped some.

    Only an index in memory drops entries; the clock is empty for every other.

    Raises:
        IndexCorrupt, StoreUnavailable: see `walk`.
    """
    floor: dict[int, int] = {}
    while True:
        scan = Scan(snapshot, [floor.get(vb, 0) for vb in range(len(snapshot.stable))])
        try:
            walk(store, [channel], scan)
        except ChangesForgotten as error:  # it may drop more while we read
            floor = {vb: max(floor.get(vb, 0), error.floor.get(vb, 0)) for vb in {*floor, *error.floor}}
        else:
            return scan, floor


def _first_steps(store: IndexReader, channels: Sequence[str], scan: Scan, on_corrupt: OnCorrupt) -> Iterator[_Step]:
    """The active block of each group with news; all its blocks at once if the reader has seen nothing of the group."""
    for position, state in enumerate(store.channel_states(channels)):
        if state is None:
            continue
        for group, active in sorted(state.active_by_group.items()):
            ref = BlockRef(channels[position], group, active)
            clock: dict[int, int] = {}
            try:
                clock = fold_clock(state.clock_log_by_group.get(group, b""), scan.snapshot.clock_limit)
            except IndexCorrupt as error:
                _with_location(f"clock of channel {channels[position]!r}, group {group}", on_corrupt)(error)
            if not clock:  # not written yet, damaged, or lost by the store: the block headers decide
                yield _Step(position, ref, planned=False)
            elif scan.covered(clock):
                continue
            elif any(scan.since[vb] for vb in clock):
                yield _Step(position, ref, planned=False)
            else:
                for number in range(active, -1, -1):
                    yield _Step(position, ref._replace(number=number), planned=True)


def _fetched(store: IndexReader, steps: Sequence[_Step]) -> Iterator[tuple[_Step, bytes | None]]:
    for start in range(0, len(steps), _BLOCKS_PER_READ):
        chunk = steps[start : start + _BLOCKS_PER_READ]
        yield from zip(chunk, store.blocks([step.ref for step in chunk]), strict=True)


def _with_location(where: str, on_corrupt: OnCorrupt) -> OnCorrupt:
    """*on_corrupt* with the place of the damage put before each message."""
    return lambda error: on_corrupt(IndexCorrupt(f"{where}: {error}"))
