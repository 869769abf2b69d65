"""Defines the operations of a store that compaction needs; their order is in docs/design/015-compaction.md.

As in `base.py`, a call that raises `OutcomeUnknown` may have happened. None is to be repeated, though: who does not
know whether a switch happened leaves the channel alone until the next pass.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from channelindex.epochs import EpochStart
from channelindex.stores.base import COMPACT_PREFIX, Compacted, Directory

STRAY_S = 3600
"""Time to live of output blocks until a switch names them: more than a compaction takes."""


class GroupSize(NamedTuple):
    """A group's directory and the size of its active block, 0 if it is not there or the store does not report it."""

    directory: Directory
    active_bytes: int

    @property
    def n_bytes(self) -> int:
        """Number of bytes that are there."""
        return self.directory.before - self.directory.dropped + self.active_bytes


class ChannelSizes(NamedTuple):
    """The directory of a channel, to see from it whether compaction is due.

    `unswept_at` says that blocks are there that `sweep` is for: Unix time at which a compactor made output durable that
    no switch has named yet, 0 for what a switch left, None for neither.
    """

    compacted: Compacted
    groups: Mapping[str, GroupSize]
    unswept_at: int | None = None

    @property
    def n_bytes(self) -> int:
        """Number of bytes in all blocks."""
        return sum(group.n_bytes for group in self.groups.values())


class GroupChange(NamedTuple):
    """A group whose directory was *known*. Its full blocks leave; where `removed`, the active one and the group too.

    Where its directory has changed since, it is not removed, and the blocks leave that were full then. With
    `active_bytes`, a present epoch writes the group: it is removed only if its active block has that size, and the
    block goes at once. Whoever appends to it next finds it gone, and begins the group anew.
    """

    group: str
    known: Directory
    removed: bool
    active_bytes: int | None = None

    @property
    def is_output(self) -> bool:
        """True if compaction wrote it: its bytes are not counted by the channel's counter."""
        return self.group.startswith(COMPACT_PREFIX)


class Output(NamedTuple):
    """A group that was written by `write_blocks`: the sizes of its blocks from 0 on, its directory and clock frame."""

    group: str
    sizes: Sequence[int]
    directory: Directory
    clock: bytes


class Switch(NamedTuple):
    """Puts *output*, if anything stayed, into the place of blocks of *changes*, in a channel of *generation*.

    `live` and `at` are those of `Compacted` from now on, `floor` that of `ChannelState`. What left lives for *grace_s*.
    """

    channel: str
    generation: int
    changes: Sequence[GroupChange]
    output: Output | None
    live: int
    at: int
    floor: bytes
    grace_s: int


class CompactionStore(Protocol):
    """The compactor's half of a store. To be used from one thread of one process."""

    ends_with_header: bool
    """True if readers get the active block whole, so that the last block of a group is better a header alone."""

    def sizes(self, channels: Sequence[str]) -> Sequence[ChannelSizes | None]:
        """The sizes of each channel, in the order asked; None for one that nobody wrote."""
        ...

    def raise_compacted(self, through: Mapping[int, Sequence[int]], epoch_by_partition: Mapping[int, int]) -> None:
        """Apply `epochs.compact` to the record of each partition of *through*, under its epoch.

        Raises:
            StaleEpoch: see `epochs.compact`; of a partition that refused. Others may have been changed.
        """
        ...

    def servers(self) -> int:
        """The servers of the last `raise_compacted`, as `IndexWriter.servers`; asks nobody."""
        ...

    def write_blocks(self, channel: str, group: str, first: int, blocks: Sequence[bytes]) -> None:
        """Write output blocks, numbered from *first* on, to live for STRAY_S. One that exists is left as it is."""
        ...

    def switch(self, switch: Switch) -> bool:
        """Let *switch* happen, atomically: only if the channel has its generation, and the output blocks are there.

        Only the times to live of blocks may be changed before and after it: see `sweep`.

        Nor does it happen in a store that has lost its newest writes since they were read, or since `raise_compacted`.
        """
        ...

    def sweep(self, channel: str, grace_s: int, since: int) -> None:
        """Give what is left of switches of *channel* *grace_s* to live: a compactor may die before that is done.

        So goes output that was made durable before *since*, Unix time, and was not named: no switch will name it then.
        """
        ...

    def prune(self, partition: int, before: Sequence[EpochStart], after: Sequence[EpochStart]) -> bool:
        """Put *after* in the place of *before*, with which the archive of *partition* begins; false if it does not."""
        ...

    def give_back(self, sizes: Mapping[str, ChannelSizes]) -> None:
        """Give back what the store reserves behind the active blocks of channels whose `sizes` were just read.

        A store that appends in place keeps room for more, up to the size of the block. That stays for ever where
        nothing more comes.
        """
        ...

    def discard(self, channel: str, group: str, n_blocks: int) -> None:
        """Remove output blocks that no switch named."""
        ...

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        ...
