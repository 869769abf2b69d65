"""Defines the contract of an index store, which `tests/contract` checks for every store.

A store has three halves, used by different processes. Each process opens its own; none may be shared over a fork.

* `IndexWriter`: the batch writer's. Blind appends, safe to repeat.
* `OwnerStore`: the feed worker's and the supervisor's. Epochs, partition records, the stable clock.
* `IndexReader`: everybody's who asks what changed. Every read has three outcomes: a value, absent (None or an
  empty collection), or an error that is raised. Absent is never the answer to a failed read.

Every operation may raise `StoreUnavailable` (nothing happened) or `OutcomeUnknown` (it may have happened; repeating it
is safe for every operation of this module). A store never retries by itself beyond one reconnection: its caller knows
whether waiting makes sense.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, NamedTuple, Protocol

import msgspec

from channelindex.epochs import EpochStart, PartitionRecord
from channelindex.model import Checkpoint, IndexMeta
from channelindex.timeline import Moment


class ChannelAppend(NamedTuple):
    """The entries that one batch adds to one channel from one vbucket group under one epoch.

    `entries` are packed (`channelindex.blocks`), in the order of the feed; per (epoch, vb) the seqnos rise.
    """

    channel: str
    group: str
    epoch: int
    entries: bytes


class StableView(NamedTuple):
    """All that changes while an index is written and nothing happens to its owners: small, and read at each look.

    `epochs` are by partition, `stable`, the seqnos up to which the index is complete, by vbucket. Both are as of one
    moment within each partition. What bounds older epochs is in the partition records, and changes with the epoch.
    """

    meta: IndexMeta
    epochs: tuple[int, ...]
    stable: list[int]


class BlockRef(NamedTuple):
    """Names one block of a channel. Those of one (channel, group) have numbers in a row; gaps mean corruption."""

    channel: str
    group: str
    number: int

    @property
    def key(self) -> str:
        """The block's name for people, whatever the store: GROUP:NUMBER:CHANNEL."""
        return f"{self.group}:{self.number}:{self.channel}"


class Directory(NamedTuple):
    """One group's part of a channel's directory. Sizes are in bytes.

    `number` is the active (newest) block, `epoch` the one that located it last, `before` the size of all blocks before
    it. `upto` is a byte of the active block: what lies before it, in this block and all earlier ones, is summed up by
    the group's clock frame. 0 for the first block until its clock is moved: nothing is summed up.
    `first` is the oldest block that is there, `dropped` the size of those before it, which were compacted.
    """

    number: int
    epoch: int
    before: int = 0
    upto: int = 0
    first: int = 0
    dropped: int = 0


class GroupState(NamedTuple):
    """A (channel, group): its directory, its clock frame, empty where nothing is summed up, and the rest of the block.

    `tail` is the active block from `directory.upto` on, so the whole block if that is 0. None: the block is missing, or
    shorter than its directory says. `live` is that of the channel (`Compacted`).
    """

    directory: Directory
    clock: bytes
    tail: bytes | None
    live: int = 0

    @property
    def n_bytes(self) -> int:
        """Number of bytes ever written to the group's blocks."""
        return self.directory.before + self.directory.upto + len(self.tail or b"")

    @property
    def frames(self) -> bytes:
        """Frames of which `blocks.fold_clock` makes the channel's clock in this group."""
        return self.clock + (self.tail or b"")


class Compacted(NamedTuple):
    """Notes of compaction on a channel. Sizes are in bytes.

    `generation` rises whenever blocks leave the directory; 0: none ever did. `live` is the size of what the last full
    compaction left, `gone` that of all groups that were removed. `next_number` is the first block of a group that
    begins. `at` is when the channel was compacted, in Unix seconds.
    """

    generation: int = 0
    live: int = 0
    gone: int = 0
    next_number: int = 0
    at: int = 0


NEVER_COMPACTED = Compacted()

COMPACT_PREFIX = "compact-"
"""Begins the name of a group that compaction wrote; those of vbucket groups are 16 hex digits."""


class ChannelState(NamedTuple):
    """The state of each group of a channel. Each group is consistent in itself.

    `floor` has clock pairs: up to there, removals and deletions may have been dropped for their age.
    """

    groups: Mapping[str, GroupState]
    compacted: Compacted = NEVER_COMPACTED
    floor: bytes = b""

    @property
    def counter(self) -> int:
        """The channel's counter: rises with every append."""
        written = sum(group.n_bytes for name, group in self.groups.items() if not name.startswith(COMPACT_PREFIX))
        return self.compacted.gone + written

    @property
    def active_by_group(self) -> dict[str, int]:
        """The number of the active block of each group."""
        return {name: group.directory.number for name, group in self.groups.items()}


class Quarantined(NamedTuple):
    """A document that could not be decoded; it moved the clock and gave no entry. `at` is Unix seconds."""

    vb: int
    seqno: Annotated[int, msgspec.Meta(gt=0)]
    key: bytes
    reason: str
    at: float


class Restored(NamedTuple):
    """The meta record that is there now, whether it was written anew, and the partitions whose records were."""

    meta: IndexMeta
    wrote_meta: bool
    partitions: tuple[int, ...]


class RepairedChannels(NamedTuple):
    """Names what was put back of channels: keys of directories, and blocks of which something is lost for good."""

    directories: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()


class IndexWriter(Protocol):
    """The write half. One live instance per (index, batch writer)."""

    n_block_lookups: int
    """Appends to a channel whose active block was not known, so that the store had to look for it first."""

    def write(self, appends: Sequence[ChannelAppend], principals: Iterable[str] = ()) -> set[int]:
        """Append a batch; raise the principals' counters. An append moves a channel's block, clock and counter at once.

        At most one `ChannelAppend` per (channel, group, epoch). When this returns, all of it is stored, except the
        appends of the returned epochs: they were refused because a newer epoch of the same group writes the channel.
        When it raises, any part may be stored; call again with the same arguments. Readers keep one of entries
        that are there twice. A counter may rise more than once.
        """
        ...

    def servers(self) -> int:
        """A digest, of 48 bits, of the servers that take what is written now, and of their history; 0 if it has none.

        It differs after a restart or failover of any of them, in which the store may have lost what was written. Equal
        before and after a `write`: these took it.

        Raises:
            StoreUnavailable: they cannot be asked.
        """
        ...

    def reconnect(self) -> None:
        """Forget the servers and all that is known of them; the next call finds out where the store is now."""
        ...

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        ...


class OwnerStore(Protocol):
    """The owner's half. Stores derive from it, for `begin`."""

    note_interval_s: float = 2.0
    """Time between two calls of `note_moments`: more where the store writes a timeline whole."""

    def servers(self) -> int:
        """The servers in which the first epoch began, as `IndexWriter.servers`; asks nobody."""
        ...

    def create_or_check(self, expected: IndexMeta) -> IndexMeta:
        """The index's meta record, created as *expected* if there is none. `index_uuid` is not compared.

        Raises:
            IndexMismatch: there is an index of another format, shape or source bucket; nothing was changed.
            IndexCorrupt: the meta record is missing though partition records are there; nothing was changed.
        """
        ...

    def restore(self, expected: IndexMeta, partitions: Collection[int] = (), *, from_nothing: bool = False) -> Restored:
        """Write what is missing or cannot be read of the meta record and the partition records, and *partitions* anew.

        The meta record becomes *expected*, with the `index_uuid` that it had, if that is still known somewhere: with
        another one, no `since` token is accepted any more. A record that is written anew is that of a partition that
        nobody has owned yet: its next epoch starts at 0, so all that was ever written of it is dead, and is indexed
        again. So is that of a partition whose store was replaced and of which nobody knows up to where that has
        everything. What is whole is not changed. May be repeated, while nodes run.

        Raises:
            IndexMismatch: there is an index of another format, shape or source bucket; nothing was changed.
            IndexMissing: there is neither a meta record nor a partition record; not raised where *from_nothing*.
        """
        ...

    def repair_channels(
        self,
        channels: Collection[str] | None = None,  # noqa: ARG002 a store that loses nothing
        floor: bytes = b"",  # noqa: ARG002
    ) -> RepairedChannels:
        """Put back directories and blocks that the store has lost, of *channels* or of all, so that all can go on.

        A directory comes back as it was, but for what compaction noted: a channel that was compacted gets *floor*. Of
        a block, what cannot be read is left out: the caller has to see that it is indexed again. May be repeated, while
        nodes run. A store that loses no single key repairs nothing.
        """
        return RepairedChannels()

    def next_epoch(self) -> int:
        """A number that is higher than any returned before, to any process.

        Not only for this index: one of the same name that was lost and made anew must not hand out a number again, or
        what processes remember of the lost one would be taken for true. Counting on from the time in milliseconds does.
        """
        ...

    def begin(
        self,
        partition: int,
        epoch: int,
        owner: str,
        rollback: Mapping[int, Checkpoint] | None = None,
        only_if: int | None = None,
    ) -> PartitionRecord:
        """Begin *epoch* of one partition: `begin_all` of it alone; the record after it.

        Raises:
            StaleEpoch: see `epochs.begin`.
        """
        (record,) = self.begin_all({partition: rollback or {}}, epoch, owner, only_if)
        return record

    def begin_all(
        self,
        rollbacks: Mapping[int, Mapping[int, Checkpoint]],
        epoch: int,
        owner: str,
        only_if: int | None = None,
    ) -> list[PartitionRecord]:
        """Apply `epochs.begin`, then `epochs.archive_old`, to the record of each partition of *rollbacks*.

        *rollbacks* is partition -> vbucket -> checkpoint. The records after it are in the same order. Each changes
        atomically by itself, in few round trips for all; any of them may have begun when it raises. What leaves a
        record is in the archive when the new record can be seen. Repeating it after `OutcomeUnknown` with the same
        epoch returns the records of those in which the first call took effect.

        Raises:
            StaleEpoch: see `epochs.begin`; of a partition that refused.
        """
        ...

    def advance(self, epoch: int, checkpoints: Mapping[int, Mapping[int, Checkpoint]]) -> None:
        """Apply `epochs.advance` to each partition (partition -> vbucket -> checkpoint), each atomically by itself.

        Raises the stable counter and wakes waiting readers. All partitions are tried before it raises. A partition
        without checkpoints is only checked; where none has any, nothing is written and nobody is woken.

        Raises:
            StaleEpoch: of the first partition that refused.
            IndexMissing: the whole index is gone.
            IndexCorrupt: its meta record is gone, or a partition record.
        """
        ...

    def note_moments(self, epoch: int, partitions: Collection[int], now_s: float) -> None:
        """Add what is stable now to the timelines of *partitions*; *now_s* is Unix time.

        A partition whose checkpoints are those that this instance noted last, or whose epoch is not *epoch*, is left
        out. What `timeline.superseded` names leaves the timeline. Each changes atomically by itself.
        """
        ...

    def quarantine(self, documents: Sequence[Quarantined]) -> None:
        """Remember *documents*, newest first; the store keeps a bounded number of them and a total count."""
        ...

    def forget_quarantined(self, documents: Sequence[Quarantined]) -> None:
        """Remember exactly these no longer; one that is not there is no error. The total count stays."""
        ...

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        ...


class IndexReader(Protocol):
    """The read half."""

    def meta(self) -> IndexMeta:
        """The index's meta record.

        Raises:
            IndexMissing: there is no such index.
            IndexMismatch: it is of a format version that this code does not read.
        """
        ...

    def stable_view(self) -> StableView:
        """The meta record, and of each partition record its epoch and stable seqnos, in one round trip.

        Raises:
            IndexMissing, IndexMismatch: see `meta`.
        """
        ...

    def partition_records(self, partitions: Sequence[int] | None = None) -> Sequence[PartitionRecord]:
        """The records of *partitions*, or of all. Each is consistent in itself; their times may differ slightly."""
        ...

    def archived_starts(self, partitions: Sequence[int]) -> Sequence[Sequence[EpochStart]]:
        """Per partition the starts that `begin` moved out of its record (`epochs.archive_old`), in no order.

        What a record read before lacks is among them. A start may be there twice.
        """
        ...

    def timelines(self, partitions: Sequence[int]) -> Sequence[Sequence[Moment]]:
        """Per partition its moments, ascending by time; `IndexSnapshot.stable_before` judges them."""
        ...

    def channels(self) -> Iterator[str]:
        """The names of all channels that have an entry, in no particular order, each once."""
        ...

    def channel_states(self, channels: Sequence[str]) -> Sequence[ChannelState | None]:
        """The state of each channel, in the order asked; None for a channel without entries."""
        ...

    def mark(self, channel: str, state: ChannelState | None) -> bytes | None:
        """Note that *channel* was in *state*, for `changed`; None where the store cannot say. Makes no request."""
        ...

    def changed(self, marks: Sequence[bytes]) -> Sequence[bool]:
        """Tell of each of *marks* if its channel may have changed since. Costs a fraction of `channel_states`."""
        ...

    def watch(self) -> "ChannelWatch | None":
        """A watch of the channels, which has begun; None where the store cannot be watched, or does not let us."""
        ...

    def blocks(self, refs: Sequence[BlockRef]) -> Sequence[bytes | None]:
        """The bytes of each block, in the order asked; None for one that does not exist.

        Raises:
            ChangesForgotten: the store holds only the newest of this channel, and this block no longer.
        """
        ...

    def principal_counter(self, key: str) -> int:
        """Number of changes of the user or role document *key*; "" for the sum over all principals."""
        ...

    def stable_counter(self) -> int:
        """A number that rises with every advance of the stable clock, and when an epoch begins below it; 0 before.

        A store that may forget counts on from the time in microseconds, so that it comes to no number again.
        """
        ...

    def wait_stable(self, counter: int, timeout_s: float) -> int:
        """The stable counter as soon as it differs from *counter*, at the latest after *timeout_s* seconds."""
        ...

    def quarantined(self, limit: int = 100) -> tuple[int, Sequence[Quarantined]]:
        """The number of records ever written to the quarantine, and the newest of them."""
        ...

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        ...


class ChannelWatch(Protocol):
    """Notices which channels are changed after their states were read by `reader`. For one thread."""

    @property
    def reader(self) -> IndexReader:
        """Reads what is to be watched, on a connection of its own: all that it says is of one server."""
        ...

    @property
    def is_whole(self) -> bool:
        """False once a connection was lost: nothing is watched any more."""
        ...

    def changed(self, counter: int) -> Collection[str] | None:
        """The channels that changed since `reader` read their states, or since they were named here last.

        All that changed before the call are among them, and maybe others. None: it is proven that it does not notice
        everything, and must not be used any more.

        Raises:
            StoreUnavailable: *counter*, which was read since the last call, is not between the stable counters of then
                and now, so another store was asked for it; or a connection is lost. It has ended.
        """
        ...

    def close(self) -> None:
        """Let go of connections. May be called twice."""
        ...
