"""Says from a channel's directory whether compaction is due, and which groups it takes in. Pure; no block is read."""

from collections.abc import Set as AbstractSet
from enum import Enum
from typing import NamedTuple

from channelindex.settings import CompactionSettings
from channelindex.stores.base import COMPACT_PREFIX
from channelindex.stores.block_writer import full_at
from channelindex.stores.compacting import ChannelSizes, GroupSize

MAX_GROUPS = 32
"""Groups of a channel that nobody writes any more, each of which a reader asks for. With more, the small are merged.

With 16, small channels were merged so often that all was written three times (`python -m benchmarks.removal year`)."""


MOST_SWITCHED = 64
"""Groups that one compaction takes in: a store changes them all at once. More than `MAX_GROUPS`, so there are more only
where nobody has compacted for long; the next compaction takes others."""


class Extent(Enum):
    """The part of a channel that a compaction reads: all groups, or the small ones to merge them."""

    FULL = "full"
    MERGE = "merge"


class DueChannel(NamedTuple):
    """A channel that is due. `gain` is about how many bytes leave."""

    channel: str
    extent: Extent
    gain: int


def is_removable(name: str, group: GroupSize, present_epochs: AbstractSet[int]) -> bool:
    """True if nobody writes the group any more: no present epoch has located its active block.

    An epoch beyond all present ones is of somebody whose begin we do not see.
    """
    if name.startswith(COMPACT_PREFIX):
        return True
    epoch = group.directory.epoch
    return epoch not in present_epochs and epoch < max(present_epochs, default=0)


def due(
    channel: str,
    sizes: ChannelSizes,
    present_epochs: AbstractSet[int],
    block_bytes: int,
    settings: CompactionSettings,
    now_s: float,
) -> DueChannel | None:
    """The compaction that *channel* is due for, None if for none.

    What counts is what a compaction takes in: not the active blocks of present epochs, which are bound by `full_at`.
    """
    assert block_bytes > 0
    compacted = sizes.compacted
    removable = {name for name, group in sizes.groups.items() if is_removable(name, group, present_epochs)}
    input_bytes = sum(
        group.n_bytes if name in removable else group.n_bytes - group.active_bytes
        for name, group in sizes.groups.items()
    )
    gain = input_bytes - compacted.live
    since = compacted.at or _oldest_s(sizes)
    if input_bytes >= 2 * compacted.live + full_at(compacted.live, block_bytes):
        return DueChannel(channel, Extent.FULL, gain)
    if now_s - since >= settings.max_lag_s and gain > 0:
        return DueChannel(channel, Extent.FULL, gain)
    if len(removable) > MAX_GROUPS:
        return DueChannel(channel, Extent.MERGE, gain)
    return None


def merged_groups(sizes: ChannelSizes, present_epochs: AbstractSet[int]) -> frozenset[str]:
    """The groups to merge where there are too many: the small removable ones.

    One that is larger than all smaller ones together stays: it would be rewritten for little.
    """
    removable = sorted(
        (group.n_bytes, name) for name, group in sizes.groups.items() if is_removable(name, group, present_epochs)
    )
    chosen: list[str] = []
    total = 0
    for n_bytes, name in removable:
        if len(chosen) == MOST_SWITCHED or (len(chosen) >= 2 and n_bytes > total):
            break
        chosen.append(name)
        total += n_bytes
    assert len(chosen) <= MOST_SWITCHED
    return frozenset(chosen) if len(chosen) > 1 else frozenset()


def _oldest_s(sizes: ChannelSizes) -> float:
    """About when a channel began that was never compacted: stores count epochs on from the time in milliseconds."""
    return min((group.directory.epoch for group in sizes.groups.values()), default=0) / 1000
