"""Compacts one channel: reads its blocks, writes what stays, switches its directory."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from channelindex.blocks import HEADER, iter_frames, pack_pairs, unpack_pairs
from channelindex.compaction.due import MOST_SWITCHED, Extent, is_removable, merged_groups
from channelindex.compaction.packing import PackedGroup, pack_group
from channelindex.compaction.selection import Counts, Selected, Selection
from channelindex.compaction.view import CompactionView
from channelindex.errors import IndexCorrupt
from channelindex.stores.base import COMPACT_PREFIX, BlockRef, ChannelState, IndexReader
from channelindex.stores.compacting import ChannelSizes, CompactionStore, GroupChange, GroupSize, Output, Switch

_BLOCKS_AT_ONCE = 16
"""Blocks that are read or written before the compactor pauses: 1 MB."""

MAX_ENTRIES = 5_000_000
"""Entries of one channel that are held in memory at once, some 400 bytes each."""

_LEAST_SHARE = 4
"""A channel is rewritten if at least one in so many bytes leaves."""


class ChannelResult(NamedTuple):
    """Reports one compaction of a channel, done or dry.

    `outcome` is "compacted", "unchanged" (too little leaves: only its size was noted), "refused" (somebody else
    compacted it meanwhile), "damaged", "too large" or "gone". Sizes before and after are of all blocks that it has.
    `long_dead_left` entries are still there though they have been dead for `dead_retention`.
    """

    channel: str
    outcome: str
    counts: Counts = Counts()
    bytes_before: int = 0
    bytes_after: int = 0
    blocks_before: int = 0
    blocks_after: int = 0
    young_superseded: int = 0
    young_dead: int = 0
    long_dead_left: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    detail: str = ""


class _ReadPlan(NamedTuple):
    """The groups to read, those that leave whole, the state and sizes from which that was decided."""

    state: ChannelState
    sizes: ChannelSizes
    read: Sequence[str]
    inputs: AbstractSet[str]
    removed: AbstractSet[str]
    left: AbstractSet[str]
    """Groups to read that stay whole: there are too many for one compaction."""
    taken: Mapping[str, int]
    """Of `removed`, groups that a present epoch writes, and the sizes of their active blocks."""

    def taking(self, taken: Mapping[str, int]) -> "_ReadPlan":
        """Take these groups in, too."""
        return self._replace(inputs=self.inputs | taken.keys(), removed=self.removed | taken.keys(), taken=taken)


class _BlocksGone(Exception):
    """A block is gone: somebody else has compacted the channel, or it is damaged."""


class ChannelCompactor:
    """Compacts channels of one index by one view after the other. *pause* is called between two requests."""

    def __init__(
        self, store: CompactionStore, reader: IndexReader, block_bytes: int, grace_s: float, pause: Callable[[], None]
    ) -> None:
        self._store = store
        self._reader = reader
        self._block_bytes = block_bytes
        self._grace_s = grace_s
        self._pause = pause

    def compact(
        self,
        channel: str,
        extent: Extent,
        view: CompactionView,
        now_s: float,
        *,
        dry_run: bool = False,
        all_dead: bool = False,
    ) -> ChannelResult:
        """Compact *channel* by *view*, which is fenced, unless *dry_run*.

        With *all_dead*, whatever was dead for long leaves, be it little, or in an active block of a present epoch.

        Raises:
            StoreUnavailable, OutcomeUnknown: it may have happened, or be left half-way, which harms nobody.
        """
        try:
            plan = self._plan(channel, extent)
            if plan is None:
                return ChannelResult(channel, "gone")
            selection, taken = self._select(channel, plan, view, takes_active=all_dead)
        except _BlocksGone as error:
            assert plan is not None, "blocks are of a directory"
            (state,) = self._reader.channel_states([channel])
            is_same = state is not None and state.compacted.generation == plan.state.compacted.generation
            return ChannelResult(channel, "damaged" if is_same else "refused", detail=str(error))
        except IndexCorrupt as error:
            return ChannelResult(channel, "damaged", detail=str(error))
        if selection is None:
            return ChannelResult(channel, "too large", detail=f"more than {MAX_ENTRIES} entries stay")
        plan = plan.taking(taken)
        selected = selection.result()
        is_wanted = all_dead and selected.long_dead > 0
        result = self._finish(channel, extent, plan, selected, view, now_s, dry_run=dry_run, is_wanted=is_wanted)
        if all_dead and not self._have_left(channel, plan):
            return result._replace(long_dead_left=selected.long_dead + selected.long_dead_outside)
        return result

    def _have_left(self, channel: str, plan: _ReadPlan) -> bool:
        """True if all groups left that were to: one that somebody located or wrote meanwhile stays.

        One that left may have begun again, behind all that it had. One that stayed may have rotated.
        """
        (sizes,) = self._store.sizes([channel])
        groups = sizes.groups if sizes else {}
        number_by_group = {name: plan.state.groups[name].directory.number for name in plan.removed}
        return all(groups[name].directory.first > number for name, number in number_by_group.items() if name in groups)

    def _plan(self, channel: str, extent: Extent) -> _ReadPlan | None:
        """Decide what to read. The epochs are asked for after the directory: who begins later finds it as it is."""
        (state,) = self._reader.channel_states([channel])
        if state is None or not state.groups:
            return None
        groups = {
            name: GroupSize(group.directory, group.directory.upto + len(group.tail or b""))
            for name, group in state.groups.items()
        }
        sizes = ChannelSizes(state.compacted, groups)
        present = frozenset(self._reader.stable_view().epochs)
        removed = frozenset(name for name, group in groups.items() if is_removable(name, group, present))
        if extent is Extent.MERGE:
            removed = merged_groups(sizes, present)
            return _ReadPlan(state, sizes, sorted(removed), removed, removed, frozenset(), {}) if removed else None
        full = {name for name, group in groups.items() if group.directory.number > group.directory.first}
        inputs = [*sorted(removed), *sorted(full - removed)]
        assert len(inputs) == len(removed | full), "each once"
        left = frozenset(inputs[MOST_SWITCHED:])
        return _ReadPlan(state, sizes, sorted(groups), frozenset(inputs) - left, removed - left, left, {})

    def _select(
        self, channel: str, plan: _ReadPlan, view: CompactionView, *, takes_active: bool
    ) -> tuple[Selection | None, Mapping[str, int]]:
        """Select what stays, None if it is too much; return it and the groups of present epochs that were taken in."""
        taken: dict[str, int] = {}
        selection = Selection(view.judge, is_whole=len(plan.read) == len(plan.state.groups))
        for name in plan.read:
            directory = plan.state.groups[name].directory
            refs = [BlockRef(channel, name, number) for number in range(directory.first, directory.number + 1)]
            for start in range(0, len(refs), _BLOCKS_AT_ONCE):
                chunk = refs[start : start + _BLOCKS_AT_ONCE]
                for ref, block in zip(chunk, self._reader.blocks(chunk), strict=True):
                    if block is None:
                        raise _BlocksGone(f"block {ref.key} is missing")
                    is_input = name in plan.inputs and (ref.number < directory.number or name in plan.removed)
                    may_take = takes_active and name not in plan.left
                    if not is_input and may_take and _has_long_dead(view, ref, block):
                        is_input, taken[name] = True, len(block)
                    _add_block(selection, ref, block, is_input=is_input)
                self._pause()
                if selection.n_held > MAX_ENTRIES:
                    return None, taken
        assert taken.keys().isdisjoint(plan.removed), "those leave anyway"
        return selection, taken

    def _finish(
        self,
        channel: str,
        extent: Extent,
        plan: _ReadPlan,
        selected: Selected,
        view: CompactionView,
        now_s: float,
        *,
        dry_run: bool,
        is_wanted: bool,
    ) -> ChannelResult:
        kept_bytes = sum(len(entry[3]) for entry in selected.kept)
        assert plan.removed <= plan.inputs, "what leaves was read"
        result = _result(channel, plan, selected)
        changes = [
            GroupChange(name, plan.state.groups[name].directory, name in plan.removed, plan.taken.get(name))
            for name in sorted(plan.inputs)
        ]
        input_bytes = sum(_input_bytes(plan.sizes.groups[name], name in plan.removed) for name in plan.inputs)
        is_worth_it = is_wanted or len(plan.removed) > 1 or (input_bytes - kept_bytes) * _LEAST_SHARE >= input_bytes > 0
        packed = self._pack(selected, view) if selected.kept and is_worth_it else None
        live = plan.state.compacted.live
        if extent is Extent.FULL:
            # A byte less makes it due again, though nobody writes it.
            live = max(1, (self._counted_bytes(packed) if packed else kept_bytes) - selected.is_ripening)
        if not is_worth_it:
            changes = []
        bytes_out = sum(map(len, packed.blocks)) if packed else 0
        blocks_out = len(packed.blocks) if packed else 0
        if changes:
            n_blocks = sum(_input_blocks(plan.sizes.groups[name], name in plan.removed) for name in plan.inputs)
            result = result._replace(
                outcome="compacted",
                long_dead_left=selected.long_dead_outside,
                bytes_read=input_bytes,
                bytes_written=bytes_out,
                bytes_after=result.bytes_before - input_bytes + bytes_out,
                blocks_after=result.blocks_before - n_blocks + blocks_out,
            )
        if dry_run:
            return result
        output = self._write(channel, packed) if packed else None
        assert (output is None) == (packed is None)
        floor = _raised_floor(plan.state.floor, selected.floor) if changes else b""
        switch = Switch(
            channel, plan.state.compacted.generation, changes, output, live, int(now_s), floor, int(self._grace_s)
        )
        if self._store.switch(switch):
            return result
        if output:
            self._store.discard(channel, output.group, len(output.sizes))
        left = selected.long_dead + selected.long_dead_outside
        result = result._replace(long_dead_left=left)
        return result._replace(outcome="refused", bytes_after=result.bytes_before, blocks_after=result.blocks_before)

    def _pack(self, selected: Selected, view: CompactionView) -> PackedGroup:
        assert selected.kept, "something stays"
        epochs = {record.epoch for record in view.records} | {entry[2] for entry in selected.kept}
        return pack_group(selected.kept, max(epochs), self._block_bytes, ends_with_header=self._store.ends_with_header)

    def _counted_bytes(self, packed: PackedGroup) -> int:
        """The bytes of *packed* that `CompactionStore.sizes` reports: in a bucket, not those of the active block."""
        return sum(map(len, packed.blocks[:-1] if self._store.ends_with_header else packed.blocks))

    def _write(self, channel: str, packed: PackedGroup) -> Output:
        group = COMPACT_PREFIX + secrets.token_hex(8)
        for start in range(0, len(packed.blocks), _BLOCKS_AT_ONCE):
            self._store.write_blocks(channel, group, start, packed.blocks[start : start + _BLOCKS_AT_ONCE])
            self._pause()
        return Output(group, list(map(len, packed.blocks)), packed.directory, packed.clock)


def _add_block(selection: Selection, ref: BlockRef, block: bytes, *, is_input: bool) -> None:
    frames = iter_frames(block)
    try:
        kind, _, _ = next(frames)
        if kind != HEADER:
            raise IndexCorrupt("it does not begin with a header")
        for kind, epoch, body in frames:
            if kind != HEADER:
                selection.add(epoch, body, is_input=is_input)
    except (IndexCorrupt, StopIteration) as error:
        raise IndexCorrupt(f"block {ref.key}: {str(error) or 'it is empty'}") from error


def _has_long_dead(view: CompactionView, ref: BlockRef, block: bytes) -> bool:
    try:
        return view.judge.has_long_dead(block)
    except (IndexCorrupt, IndexError) as error:
        raise IndexCorrupt(f"block {ref.key}: {error}") from error


def _raised_floor(floor: bytes, dropped: Mapping[int, int]) -> bytes:
    if not dropped:
        return b""
    before = unpack_pairs(floor)
    return pack_pairs({vb: max(before.get(vb, 0), dropped.get(vb, 0)) for vb in {*before, *dropped}})


def _result(channel: str, plan: _ReadPlan, selected: Selected) -> ChannelResult:
    """The result of a compaction that leaves everything where it is."""
    n_bytes = plan.sizes.n_bytes
    n_blocks = sum(group.directory.number - group.directory.first + 1 for group in plan.sizes.groups.values())
    return ChannelResult(
        channel,
        "unchanged",
        selected.counts,
        n_bytes,
        n_bytes,
        n_blocks,
        n_blocks,
        selected.young_superseded,
        selected.young_dead,
        selected.long_dead + selected.long_dead_outside,
    )


def _input_bytes(group: GroupSize, removed: bool) -> int:
    return group.n_bytes if removed else group.n_bytes - group.active_bytes


def _input_blocks(group: GroupSize, removed: bool) -> int:
    return group.directory.number - group.directory.first + int(removed)
