"""A node with one bug, planted into the product's own code, and readers with one. The checker must find each of them.

Run like `channelindex`. A bug is there while the configuration's folder has a file of its name; one that acts once
removes the file when it does.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from channelindex import epochs
from channelindex.blocks import HEADER, iter_entries, pack_entry, pack_frame
from channelindex.decode.removals import RemovalMemory
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.epochs import EpochStart, PartitionRecord
from channelindex.errors import StoreUnavailable
from channelindex.model import DELETED, ORIGIN, Checkpoint, Principal, Route
from channelindex.reading.changes_reader import ChangesReader
from channelindex.reading.paging import Changes
from channelindex.stores import block_writer
from channelindex.stores.base import ChannelAppend, IndexReader, StableView
from channelindex.stores.block_writer import Move
from channelindex.stores.redis.owner import RedisOwner
from tests.support.node import Node
from workers.cli import main
from workers.pipeline import frames
from workers.pipeline.batch_writer import BatchWriter
from workers.pipeline.feed_worker import FeedWorker
from workers.pipeline.frames import RingFrame
from workers.pipeline.outbox import StableQueue


class Bug:
    """Whether a bug is there now."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = folder / name

    def __bool__(self) -> bool:
        return self._file.exists()

    def once(self) -> bool:
        """Whether it was there; it is no more."""
        try:
            self._file.unlink()
        except FileNotFoundError:
            return False
        return True

    def told(self) -> list[int]:
        """The numbers that whoever planted it gave with it."""
        return [int(word) for word in self._file.read_text().split()]

    def tell(self, numbers: Iterable[int]) -> None:
        """Let whoever planted it know *numbers*."""
        new = self._file.with_suffix(".new")
        new.write_text(" ".join(map(str, numbers)))
        new.rename(self._file)


BUGS: dict[str, Callable[[Bug], None]] = {}


class PlantedNode(Node):
    """A node into which a bug can be planted, also while it runs."""

    module = "tests.chaos.planted"

    def plant(self, bug: Callable[[Bug], None], *told: int) -> None:
        """From now on it has *bug*."""
        (self.log.parent / bug.__name__).write_text(" ".join(map(str, told)))

    def told_of(self, bug: Callable[[Bug], None]) -> list[int]:
        """The numbers that *bug* has told, or was planted with."""
        return Bug(self.log.parent, bug.__name__).told()

    def cure(self, bug: Callable[[Bug], None]) -> None:
        """From now on it has it no more."""
        (self.log.parent / bug.__name__).unlink()


def bug(install: Callable[[Bug], None]) -> Callable[[Bug], None]:
    """A bug of the function's name."""
    BUGS[install.__name__] = install
    return install


Make = Callable[[Any], Any]
"""What is to stand in the place of a function or method, given that."""


def replace(owner: Any, name: str, make: Make) -> None:
    """Put what *make* makes of a function or method in its place."""
    setattr(owner, name, make(getattr(owner, name)))


# -- the batch writer


@bug
def skip_an_append(bug: Bug) -> None:
    """One batch, once, is written without one of its channels."""

    def make(write: Any) -> Any:
        def planted(self: Any, appends: Sequence[ChannelAppend], principals: Any) -> Any:
            return write(self, appends[1:] if appends and bug.once() else appends, principals)

        return planted

    replace(BatchWriter, "_write", make)


@bug
def reverse_batches(bug: Bug) -> None:
    """The entries of a channel are written newest first."""

    def make(write: Any) -> Any:
        def planted(self: Any, appends: Sequence[ChannelAppend], principals: Any) -> Any:
            return write(self, list(map(_reversed, appends)) if bug else appends, principals)

        return planted

    replace(BatchWriter, "_write", make)


def _reversed(append: ChannelAppend) -> ChannelAppend:
    entries = reversed(list(iter_entries(append.entries)))
    return append._replace(entries=b"".join(map(pack_entry, entries)))


@bug
def revive_a_dead_epoch(bug: Bug) -> None:
    """What a feed worker that is no more left in the rings is written as if its successor had sent it.

    Tells the seqnos that are in the rings: of each vbucket in turn the highest since it was planted.
    """
    newest = [0]
    in_rings: dict[int, int] = {}

    def make_write_batch(write_batch: Any) -> Any:
        def planted(self: Any) -> Any:
            newest[0] = max(ring.epoch for ring in self._rings)
            return write_batch(self)

        return planted

    def make_decode(decode: Callable[[Any], RingFrame]) -> Any:
        def planted(payload: Any) -> RingFrame:
            frame = decode(payload)
            frame.epoch = newest[0] if bug else frame.epoch
            return frame

        return planted

    def make_push(push: Any) -> Any:
        def planted(self: Any, positions: Any, checkpoints: dict[int, Checkpoint], *more: Any) -> None:
            push(self, positions, checkpoints, *more)
            if bug:
                in_rings.update((vb, checkpoint.seqno) for vb, checkpoint in checkpoints.items())
                bug.tell(in_rings.get(vb, 0) for vb in range(max(in_rings, default=-1) + 1))

        return planted

    replace(BatchWriter, "_write_batch", make_write_batch)
    replace(frames, "decode_frame", make_decode)
    replace(StableQueue, "push", make_push)


@bug
def forget_headers(bug: Bug) -> None:
    """A block begins with an empty header, whatever is in those before it."""

    def make(move: Any) -> Any:
        def planted(*arguments: Any) -> Move:
            made: Move = move(*arguments)
            header = pack_frame(HEADER, made.new.epoch, b"")
            if not bug or not made.rotates:
                return made
            return made._replace(clock=header, new=made.new._replace(upto=len(header)))

        return planted

    replace(block_writer, "_move", make)


# -- the feed worker


@bug
def advance_early(bug: Bug) -> None:
    """The stable clock moves on when a round is in the rings, and does not wait for the writers."""

    def make(pop_committed: Any) -> Any:
        return lambda self, committed: pop_committed(self, [1 << 63] * len(committed) if bug else committed)

    replace(StableQueue, "pop_committed", make)


@bug
def go_on_after_a_rollback(bug: Bug) -> None:
    """After a rollback the feed goes on where it was told to, in the same epoch."""

    def make(rollback_due: Any) -> Any:
        def planted(self: Any) -> bool:
            due: bool = rollback_due(self)
            if not (due and bug):
                return due
            lowered, self._builder.rollbacks, self._builder.rollback_since = self._builder.rollbacks, {}, None
            self._feed.drop(list(lowered))
            self._feed.add(lowered)
            for vb in lowered:  # as if nothing had been read of it: an assertion guards this otherwise
                self._builder._positions.pop(vb)
            self._builder.begin(lowered)
            return False

        return planted

    replace(FeedWorker, "_rollback_due", make)


@bug
def resume_too_late(bug: Bug) -> None:
    """The vbucket that it is told of is resumed at the seqno that it is told, not at its checkpoint."""

    def make(start: Any) -> Any:
        def planted(self: Any, checkpoints: dict[int, Checkpoint]) -> None:
            if bug:
                vb, at = bug.told()
                checkpoints[vb] = checkpoints[vb]._replace(seqno=at, snap_start=at, snap_end=at)
            start(self, checkpoints)

        return planted

    replace(FeedWorker, "_start", make)


@bug
def drop_removals(bug: Bug) -> None:
    """That a document has left a channel is never indexed."""
    replace(RemovalMemory, "due", lambda due: lambda *arguments: {} if bug else due(*arguments))


@bug
def drop_the_deleted_flag(bug: Bug) -> None:
    """A deletion is indexed as if it were none."""
    _change_routes(bug, lambda route: msgspec.structs.replace(route, flags=route.flags & ~DELETED))


@bug
def misspell_revisions(bug: Bug) -> None:
    """All revisions are indexed as the first generation."""
    _change_routes(bug, lambda route: msgspec.structs.replace(route, rev=f"1-{route.rev.partition('-')[2]}"))


@bug
def mistake_a_channel(bug: Bug) -> None:
    """What is in ch-001 is indexed as if it were in ch-002."""

    def mistaken(route: Route) -> Route:
        channels = {"ch-002" if name == "ch-001" else name: removal for name, removal in route.channels.items()}
        return msgspec.structs.replace(route, channels=channels)

    _change_routes(bug, mistaken)


def _change_routes(bug: Bug, change: Callable[[Route], Route]) -> None:
    def make(decode: Any) -> Any:
        def planted(self: Any, kind: int, key: bytes, datatype: int, value: bytes) -> Route | Principal | None:
            decoded: Route | Principal | None = decode(self, kind, key, datatype, value)
            return change(decoded) if bug and isinstance(decoded, Route) else decoded

        return planted

    replace(SyncGatewayDecoder, "decode", make)


# -- partition records


@bug
def forget_bounds(bug: Bug) -> None:
    """A rollback lowers the checkpoints, but the history says that no epoch starts lower than one before it."""

    def make(begin: Any) -> Any:
        def planted(record: PartitionRecord, epoch: int, *more: Any) -> PartitionRecord:
            begun: PartitionRecord = begin(record, epoch, *more)
            before = record.history[-1].starts if record.history else record.stable
            unbound = EpochStart(epoch, tuple(map(max, before, record.stable)))
            return begun._replace(history=(*record.history, unbound)) if bug else begun

        return planted

    replace(epochs, "begin", make)


@bug
def begin_at_zero(bug: Bug) -> None:
    """Each epoch begins at 0, as if the index were to be rebuilt."""

    def make(begin: Any) -> Any:
        def planted(record: PartitionRecord, epoch: int, owner: str, rollback: Any, *more: Any) -> PartitionRecord:
            zero = dict.fromkeys(record.vbuckets, ORIGIN) if bug else rollback
            begun: PartitionRecord = begin(record, epoch, owner, zero, *more)
            return begun

        return planted

    replace(epochs, "begin", make)


@bug
def hold_the_stable_clock(bug: Bug) -> None:
    """The stable clock cannot be moved. No bug that does harm: it gives time to see what others do."""

    def make(advance: Any) -> Any:
        def planted(self: Any, *arguments: Any) -> None:
            if bug:
                raise StoreUnavailable("the stable clock is held")
            advance(self, *arguments)

        return planted

    replace(RedisOwner, "advance", make)


# -- readers, in the process of the test


EAGER_SEQNOS = 0


class EagerReader(ChangesReader):
    """Tells what is up to EAGER_SEQNOS beyond the stable clock."""

    def __init__(self, store: IndexReader) -> None:
        super().__init__(_EagerStore(store))


class _EagerStore:
    """A store whose stable clock is EAGER_SEQNOS ahead, and seems to move on all the time."""

    def __init__(self, store: IndexReader) -> None:
        self._store = store
        self._counter = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def stable_view(self) -> StableView:
        view = self._store.stable_view()
        return view._replace(stable=[seqno + EAGER_SEQNOS for seqno in view.stable])

    def partition_records(self, partitions: Sequence[int] | None = None) -> Sequence[PartitionRecord]:
        return [
            record._replace(checkpoints=tuple(at._replace(seqno=at.seqno + EAGER_SEQNOS) for at in record.checkpoints))
            for record in self._store.partition_records(partitions)
        ]

    def wait_stable(self, *_: Any) -> int:
        time.sleep(0.02)
        self._counter += 1
        return self._counter


class ForgetfulReader(ChangesReader):
    """Forgets once how far it had read: what it told first it tells again."""

    def follow(self, *arguments: Any, **more: Any) -> Iterator[Changes]:
        first = None
        for page in super().follow(*arguments, **more):
            yield page
            if first is None:
                first = page
                yield page


class BackwardReader(ChangesReader):
    """Tells the newest changes first."""

    def follow(self, *arguments: Any, **more: Any) -> Iterator[Changes]:
        for page in super().follow(*arguments, **more):
            yield page._replace(entries=page.entries[::-1])


if __name__ == "__main__":
    with suppress(ValueError, IndexError):
        folder = Path(sys.argv[sys.argv.index("--config") + 1]).parent
        for name, install in BUGS.items():
            install(Bug(folder, name))
    sys.exit(main())
