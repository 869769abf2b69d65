"""Every interleaving of a small world on the real store: one vbucket, two owners, one failover, a reader with a token.

An owner receives changes, has them in flight, appends them and advances the stable clock; after the failover the source
has it roll back, in a new epoch. The old owner never learns that it was replaced but by being refused. The reader
takes the partition record in one step and the blocks in a later one. In every state that can be reached:

* nothing is lost: every seqno up to the stable clock is visible;
* nothing is phantom: what is visible there is what the branch of the checkpoint says;
* no reader misses a change: what its token covers it was told.

That the model can tell right from wrong is shown by three planted faults; it has to find each of them. In memory the
walk is complete, once more with a history so short that all but the last start is in the archive. In Redis, and with
blocks so small that every append rotates, random walks are sampled from a seed.
"""

import itertools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from channelindex import epochs
from channelindex.blocks import ENTRIES, FORMAT_VERSION, iter_entries, iter_frames
from channelindex.epochs import Bounds, EpochStart, PartitionRecord, whole_record
from channelindex.errors import StaleEpoch
from channelindex.model import Checkpoint, Entry, IndexMeta
from channelindex.stores import memory
from channelindex.stores.active import ActiveBlock
from channelindex.stores.base import BlockRef
from channelindex.stores.memory import MemoryIndex
from tests.support.stores import GROUP, Backend, append, entry, stored_blocks, visible_limit

KEPT = 1
"""The failover keeps the changes up to this one; what comes later has other contents."""

N_CHANGES = 2
"""One that the failover keeps and one that it replaces; with a third there are 180,000 states, and no other faults."""

N_OWNERS = 2
WHOLE_BLOCK = 65536
META = IndexMeta(FORMAT_VERSION, n_vbuckets=1, n_partitions=1, source_uuid="s", index_uuid="i")
FAULTS = ("rollback without a new epoch", "reader without bounds", "token without clamp")

Step = tuple[str, int]
"""(name of a method of World, position of the owner that takes it)."""


def content(branch: int, seqno: int) -> str:
    """The revision at *seqno* in a branch."""
    return f"{branch if seqno > KEPT else 0}-x"


class PromiseBroken(AssertionError):
    """A state that must not be reachable."""


class Frame(NamedTuple):
    """A change on its way from an owner to the index."""

    epoch: int
    seqno: int
    rev: str


class Owner(NamedTuple):
    """One owner: what it received last, up to where all is appended, what is in flight to which writer."""

    writer: int
    epoch: int
    received: int
    branch: int
    written: int
    in_flight: tuple[Frame, ...] = ()


class Reader(NamedTuple):
    """What a reader knows: its token (epoch, seqno), what it was told, the record of the read that it is in."""

    epoch: int = 0
    since: int = 0
    told: frozenset[tuple[int, str]] = frozenset()
    record: PartitionRecord | None = None


class Around(NamedTuple):
    """All but the store."""

    branch: int = 0
    owners: tuple[Owner, ...] = ()
    n_started: int = 0
    reader: Reader = Reader()


@dataclass(frozen=True)
class State:
    """Everything at one moment, in memory. The order of frames within a block makes no difference to anybody."""

    around: Around
    last_epoch: int
    record: PartitionRecord
    archive: tuple[EpochStart, ...]
    directory: tuple[tuple[str, object], ...]
    known: tuple[tuple[int, int] | None, ...]
    entries: frozenset[tuple[int, Entry]]
    block: bytes = field(compare=False)


class World:
    """A store and everybody around it. `steps` says what can happen next, `take` makes it happen."""

    def __init__(
        self, backend: Backend, block_bytes: int = WHOLE_BLOCK, n_changes: int = N_CHANGES, fault: str = ""
    ) -> None:
        self.backend = backend
        self.n_changes = n_changes
        self.fault = fault
        self.around = Around()
        self.store = backend.owner()
        self.store.create_or_check(META)
        self.store_reader = backend.reader()
        self.writers = [backend.writer(block_bytes) for _ in range(N_OWNERS)]

    @property
    def record(self) -> PartitionRecord:
        """The partition's record now."""
        (record,) = self.store_reader.partition_records()
        return record

    def steps(self) -> list[Step]:
        """What can happen next."""
        record, around = self.record, self.around
        steps: list[Step] = []
        if around.n_started < N_OWNERS:
            steps.append(("start", 0))
        if around.branch == 0:
            steps.append(("fail_over", 0))
        for position, owner in enumerate(around.owners):
            if owner.branch != around.branch:
                steps.append(("reconnect", position))
            elif owner.received < self.n_changes:
                steps.append(("receive", position))
            if owner.in_flight:
                steps.append(("append", position))
            if owner.written > record.stable[0]:
                steps.append(("advance", position))
        if around.reader.record:
            steps.append(("read_blocks", 0))
        elif (around.reader.epoch, around.reader.since) != (record.epoch, record.stable[0]):
            steps.append(("read_record", 0))
        return steps

    def take(self, step: Step) -> None:
        """Let *step* happen."""
        name, position = step
        getattr(self, name)(position)

    def start(self, _: int) -> None:
        """A new owner begins; its rollback, if it needs one, comes when it connects."""
        around = self.around
        epoch = self.store.next_epoch()
        record = self.store.begin(0, epoch, f"owner-{epoch}")
        (stable,), branch = record.stable, record.checkpoints[0].vbuuid
        owner = Owner(around.n_started, epoch, stable, branch, stable)
        self.around = around._replace(owners=(*around.owners, owner), n_started=around.n_started + 1)

    def fail_over(self, _: int) -> None:
        """The source goes on in its other branch."""
        self.around = self.around._replace(branch=1)

    def receive(self, position: int) -> None:
        """An owner receives its next change."""
        owner = self.around.owners[position]
        seqno = owner.received + 1
        frame = Frame(owner.epoch, seqno, content(owner.branch, seqno))
        self._replace(position, owner._replace(received=seqno, in_flight=(*owner.in_flight, frame)))

    def append(self, position: int) -> None:
        """An owner's oldest frame in flight reaches the store, whatever became of its epoch."""
        owner = self.around.owners[position]
        frame, *rest = owner.in_flight
        batch = [append("A", frame.epoch, entry(0, frame.seqno, "doc", frame.rev))]
        refused = self.writers[owner.writer].write(batch)
        if refused and frame.epoch == self.record.epoch:
            raise PromiseBroken(f"{frame} of the present owner was refused")
        is_own = frame.epoch == owner.epoch and not refused
        written = max(owner.written, frame.seqno) if is_own else owner.written
        self._replace(position, owner._replace(in_flight=tuple(rest), written=written))

    def advance(self, position: int) -> None:
        """An owner moves the stable clock, or learns that it is none."""
        owner = self.around.owners[position]
        checkpoint = Checkpoint(owner.branch, owner.written, owner.written, owner.written)
        try:
            self.store.advance(owner.epoch, {0: {0: checkpoint}})
        except StaleEpoch:
            self._replace(position)

    def reconnect(self, position: int) -> None:
        """The source asks for a rollback where the owner has received more than the failover kept."""
        owner, branch = self.around.owners[position], self.around.branch
        if owner.received <= KEPT:
            self._replace(position, owner._replace(branch=branch))
            return
        kept = Checkpoint(branch, KEPT, KEPT, KEPT)
        if self.fault == "rollback without a new epoch":
            self._lower_checkpoint(owner, kept)
            self._replace(position, owner._replace(received=KEPT, branch=branch, written=min(owner.written, KEPT)))
            return
        epoch = self.store.next_epoch()
        try:
            record = self.store.begin(0, epoch, f"owner-{epoch}", {0: kept}, only_if=owner.epoch)
        except StaleEpoch:
            self._replace(position)
            return
        (stable,) = record.stable
        self._replace(position, owner._replace(epoch=epoch, received=stable, branch=branch, written=stable))

    def read_record(self, _: int) -> None:
        """The reader begins to read."""
        self.around = self.around._replace(reader=self.around.reader._replace(record=self.record))

    def read_blocks(self, _: int) -> None:
        """The reader goes on with the blocks as they are by now."""
        reader = self.around.reader
        assert reader.record
        since = self._since(reader.record)
        (stable,) = reader.record.stable
        visible = self._visible(reader.record)
        told = {(seqno, rev) for seqno in range(since + 1, stable + 1) for rev in visible.get(seqno, ())}
        reader = Reader(reader.record.epoch, max(since, stable), reader.told | told)
        self.around = self.around._replace(reader=reader)

    def check(self) -> None:
        """Hold the three promises against this moment.

        Raises:
            PromiseBroken: which one, and where.
        """
        record = self.record
        visible = self._visible(record)
        for seqno in range(1, record.stable[0] + 1):
            if seqno not in visible:
                raise PromiseBroken(f"seqno {seqno} is lost")
            if visible[seqno] != {content(record.checkpoints[0].vbuuid, seqno)}:
                raise PromiseBroken(f"phantom at seqno {seqno}: {visible[seqno]}")
        for seqno in range(1, min(self._since(record), record.stable[0]) + 1):
            if any((seqno, rev) not in self.around.reader.told for rev in visible[seqno]):
                raise PromiseBroken(f"the reader missed {visible[seqno]} at seqno {seqno}")

    def save(self) -> State:
        """This moment. In memory, and as long as no block is full: what the clock frames say matters to nobody then."""
        index = self._memory
        known = [writer._active.get(("A", GROUP)) for writer in self.writers]
        block = bytes(index.blocks.get(BlockRef("A", GROUP, 0), b""))
        return State(
            self.around,
            index.last_epoch,
            index.records[0],
            index.archives[0],
            tuple(index.directories.get("A", {}).items()),
            tuple((active.epoch, active.number) if active else None for active in known),
            _entries(block),
            block,
        )

    def load(self, state: State) -> None:
        """Go back, or over, to *state*."""
        index = self._memory
        self.around = state.around
        index.last_epoch, index.records[0], index.archives[0] = state.last_epoch, state.record, state.archive
        index.directories.clear()
        index.blocks.clear()
        if state.directory:
            index.directories["A"].update(state.directory)  # type: ignore[arg-type]
            index.blocks[BlockRef("A", GROUP, 0)] = bytearray(state.block)
        for writer, known in zip(self.writers, state.known, strict=True):
            writer._active.clear()
            if known:
                writer._active.put(("A", GROUP), ActiveBlock(*known, size=0, upto=0, limit=WHOLE_BLOCK))

    @property
    def _memory(self) -> MemoryIndex:
        assert self.backend.memory
        return self.backend.memory

    def _since(self, record: PartitionRecord) -> int:
        reader = self.around.reader
        if self.fault == "token without clamp":
            return reader.since
        return Bounds(self._whole(record)).clamp(reader.epoch, [reader.since])[0]

    def _visible(self, record: PartitionRecord) -> dict[int, set[str]]:
        """Per seqno the revisions that a reader sees who has this record."""
        whole, visible = self._whole(record), dict[int, set[str]]()
        for epoch, each in self._stored():
            unbounded = self.fault == "reader without bounds"
            if each.seqno <= (record.stable[0] if unbounded else visible_limit(whole, epoch, 0)):
                visible.setdefault(each.seqno, set()).add(each.rev)
        return visible

    def _whole(self, record: PartitionRecord) -> PartitionRecord:
        """*record* as it was, with the archive as it is by now."""
        (archive,) = self.store_reader.archived_starts([0])
        return whole_record(record, archive)

    def _stored(self) -> Iterator[tuple[int, Entry]]:
        if self.backend.memory:
            for block in self._memory.blocks.values():
                yield from _entries(bytes(block))
            return
        for blocks in stored_blocks(self.store_reader, "A").values():
            for stored in blocks:
                yield from stored.entries

    def _lower_checkpoint(self, owner: Owner, kept: Checkpoint) -> None:
        """What no store lets anybody do."""
        record = self._memory.records[0]
        if record.epoch == owner.epoch and kept.seqno < record.stable[0]:
            self._memory.records[0] = record._replace(checkpoints=(kept,))

    def _replace(self, position: int, *owner: Owner) -> None:
        """Put *owner* in the place of the one that is there; without one, that one has stopped."""
        owners = self.around.owners
        self.around = self.around._replace(owners=(*owners[:position], *owner, *owners[position + 1 :]))


@cache
def _entries(block: bytes) -> frozenset[tuple[int, Entry]]:
    """The (epoch, entry) of a block; their order and repetition make no difference to a reader."""
    bodies = [(epoch, body) for kind, epoch, body in iter_frames(block) if kind == ENTRIES]
    return frozenset((epoch, each) for epoch, body in bodies for each in iter_entries(body))


def walk_all(fault: str = "") -> int:
    """Visit every state that can be reached; how many there are."""
    world = World(Backend("memory://"), fault=fault)
    seen = {world.save()}
    waiting = deque(seen)
    while waiting:
        state = waiting.popleft()
        world.load(state)
        for step in world.steps():
            world.load(state)
            world.take(step)
            following = world.save()
            if following not in seen:
                world.check()
                seen.add(following)
                waiting.append(following)
    return len(seen)


def walk_randomly(world: World, seed: int) -> None:
    """Take random steps as long as there are any, each judged; the seed is in the error."""
    choice = random.Random(seed)
    while steps := world.steps():
        world.take(choice.choice(steps))
        try:
            world.check()
        except PromiseBroken as error:
            raise PromiseBroken(f"seed {seed}: {error}") from error


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch):
    """Epochs in memory count from 1: from the time of day on, no state would ever be reached twice."""
    monkeypatch.setattr(memory, "time", SimpleNamespace(time_ns=lambda: 0))


@pytest.fixture(params=["whole history", "archived history"])
def history(request, monkeypatch):
    if request.param == "archived history":
        monkeypatch.setattr(epochs, "HISTORY_BYTES", 0)


def test_every_reachable_state_keeps_the_promises(history):
    assert walk_all() > 10_000


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found(fault, history):
    with pytest.raises(PromiseBroken):
        walk_all(fault)


@pytest.mark.parametrize("block_bytes", [1, 100])
def test_random_walks_over_rotating_blocks_keep_the_promises(block_bytes, history):
    for seed in range(300):
        walk_randomly(World(Backend("memory://"), block_bytes, n_changes=4), seed)


def test_random_walks_in_redis_keep_the_promises(redis_url, history):
    for seed, block_bytes in itertools.product(range(25), (1, WHOLE_BLOCK)):
        backend = Backend(redis_url, f"walk-{seed}-{block_bytes}")
        walk_randomly(World(backend, block_bytes, n_changes=4), seed)
        backend.close()
