"""A compactor of an abstract index, one step after the other, with the program's own rules. For models.

What leaves is decided by `channelindex.compaction` itself; the order of its steps is written down here once more, and
can be broken. One that is killed is one that takes no further step.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from channelindex import epochs
from channelindex.blocks import pack_entry
from channelindex.compaction.judge import Ages, Judge
from channelindex.compaction.selection import Selection
from channelindex.epochs import NO_BOUND, Bounds, PartitionRecord
from channelindex.errors import StaleEpoch
from channelindex.model import DELETED
from channelindex.model import Entry as StoredEntry
from tests.support.model_channel import OUTPUT, Block, Channel, Entry, Group, Switch, with_block

UNFENCED = "nothing is fenced"
FENCED_LATE = "fenced after the switch"
FENCED_ANYHOW = "fenced under whatever epoch is there"
PENDING_SUPERSEDES = "what is not stable supersedes"
DEAD_SUPERSEDES = "what is dead supersedes"
YOUNG_SUPERSEDES = "what is stable supersedes at once"
YOUNG_DEAD = "what is dead leaves at once"
AGAIN_JUDGED = "what was brought again is judged by a view of before"
NEWER_EPOCH = "rewritten under the newest epoch"
LOW_HEADER = "a header under the oldest epoch"
PRESENT_GROUPS = "the active blocks of present epochs, too"
EPOCHS_FIRST = "present epochs read before the directory"
UNCHECKED = "switched whatever the generation, whatever is left of the output"
PART_FORGETS = "removals leave a part of the groups"
NO_FLOOR = "no floor where removals left"


class Ripe(NamedTuple):
    """The newest moment that is old enough: what was stable then, and under which epoch."""

    epoch: int = 0
    seqno: int = 0


class View(NamedTuple):
    """A partition's record, and what is settled by it."""

    record: PartitionRecord
    settled: int
    dead_epoch: int


class Compactor(NamedTuple):
    """Where a compactor is: which of these it has yet. `n_runs` is how many compactions it will begin."""

    n_runs: int
    view: View | None = None
    is_fenced: bool = False
    present: frozenset[int] = frozenset()
    listed: Channel | None = None
    wanted: Switch | None = None


class Rules(NamedTuple):
    """How compactors work here, and which rule is broken. With `parts`, one may take in a part of the groups."""

    removals: bool = False
    parts: bool = False
    fault: str = ""


def take_view(record: PartitionRecord, ripe: Ripe, fault: str) -> View:
    """What a compactor sees now."""
    (stable,) = record.stable
    if fault == YOUNG_SUPERSEDES:
        return View(record, stable, ripe.epoch)
    dead_epoch = record.epoch if fault == YOUNG_DEAD else ripe.epoch
    return View(record, min(ripe.seqno, stable, Bounds(record).bound(ripe.epoch, 0)), dead_epoch)


def fence(record: PartitionRecord, view: View, fault: str) -> PartitionRecord:
    """The record after the fence.

    Raises:
        StaleEpoch: the view is stale.
    """
    if fault in (UNFENCED, FENCED_LATE) or not view.settled:
        return record
    epoch = record.epoch if fault == FENCED_ANYHOW else view.record.epoch
    through = view.settled
    if fault == FENCED_ANYHOW:
        through = min(through, *record.stable)
    return epochs.compact(record, epoch, (through,))


def fence_late(record: PartitionRecord, view: View) -> PartitionRecord:
    """The record after a fence that comes too late."""
    try:
        return fence(record, view, "")
    except StaleEpoch:
        return record


def removable(channel: Channel, present: frozenset[int], fault: str) -> frozenset[int]:
    """The groups that nobody writes: `due.is_removable` of them."""
    return frozenset(
        group.name
        for group in channel.groups
        if group.name >= OUTPUT
        or fault == PRESENT_GROUPS
        or (group.epoch not in present and (fault == EPOCHS_FIRST or group.epoch < max(present, default=0)))
    )


def read_and_write(
    channel: Channel, compactor: Compactor, output: int, part: frozenset[int], rules: Rules
) -> tuple[Channel, Switch] | None:
    """Read the groups of *part*, write what stays as group *output*; the switch that follows. None: a block is gone."""
    listed, view = compactor.listed, compactor.view
    assert listed
    assert view
    removed = removable(listed, compactor.present, rules.fault)
    read_groups = [group for group in listed.groups if group.name in part]
    inputs: set[Entry] = set()
    outside: set[Entry] = set()
    for group in read_groups:
        for number in range(group.first, group.number + 1):
            block = channel.block(group.name, number)
            if block is None:
                return None
            is_input = group.name in removed or number < group.number
            (inputs if is_input else outside).update(block.entries)
    is_whole = len(read_groups) == len(listed.groups) or rules.fault == PART_FORGETS
    kept, floor = select(view, frozenset(inputs), frozenset(outside), is_whole, rules)
    if rules.fault == NEWER_EPOCH:
        kept = frozenset(entry._replace(epoch=view.record.epoch) for entry in kept)
    written = _group(output, kept, view, rules.fault) if kept else None
    for number, entry in enumerate(sorted(kept, key=lambda each: (each.seqno, each.epoch))):
        channel = with_block(channel, Block(output, number, frozenset({entry}), expires=True))
    known = tuple(read_groups)
    floor = 0 if rules.fault == NO_FLOOR else floor
    wanted = Switch(listed.generation, known, removed & part, written, floor, checks=rules.fault != UNCHECKED)
    return channel, wanted


def _group(name: int, kept: frozenset[Entry], view: View, fault: str) -> Group:
    all_epochs = [view.record.epoch, *(entry.epoch for entry in kept)]
    epoch = min(all_epochs) if fault == LOW_HEADER else max(all_epochs)
    return Group(name, len(kept) - 1, epoch, 0, (epoch, max(entry.seqno for entry in kept)))


@lru_cache(20_000)
def select(
    view: View, inputs: frozenset[Entry], outside: frozenset[Entry], is_whole: bool, rules: Rules
) -> tuple[frozenset[Entry], int]:
    """What stays of *inputs* by the program's own selection, and the floor."""
    judge = _judge(view, rules)
    selection = Selection(judge, is_whole=is_whole)
    entry_by_raw = {}
    for entries, is_input in ((inputs, True), (outside, False)):
        for entry in sorted(entries):
            flags = DELETED if entry.gone else 0
            raw = pack_entry(StoredEntry(0, entry.seqno, entry.doc.encode(), f"1-{entry.rev}a", flags))
            entry_by_raw[entry.epoch, raw] = entry
            selection.add(entry.epoch, raw, is_input=is_input)
    selected = selection.result()
    return frozenset(entry_by_raw[epoch, raw] for _, _, epoch, raw in selected.kept), selected.floor.get(0, 0)


def _judge(view: View, rules: Rules) -> Judge:
    ages = Ages([view.settled], [view.settled if rules.removals else 0], [view.dead_epoch])
    judge = Judge([view.record], ages)
    computed = judge._computed
    if rules.fault == PENDING_SUPERSEDES:
        judge._computed = lambda epoch: (limits := computed(epoch))._replace(settled=limits.live)  # type: ignore[method-assign]
    if rules.fault == DEAD_SUPERSEDES:
        judge._computed = lambda epoch: computed(epoch)._replace(settled=[NO_BOUND])  # type: ignore[method-assign]
    if rules.fault == AGAIN_JUDGED:
        judge._computed = lambda epoch: computed(epoch)._replace(judged=[NO_BOUND])  # type: ignore[method-assign]
    return judge


def parts(channel: Channel, present: frozenset[int], rules: Rules) -> Iterable[frozenset[int]]:
    """Which groups a compactor may take in: all, or some of those that nobody writes, to merge them."""
    whole = frozenset(group.name for group in channel.groups)
    yield whole
    if rules.parts and len(whole) > 1:
        yield from (frozenset({name}) for name in sorted(removable(channel, present, rules.fault)))
