"""Every interleaving of a small world whose store returns and whose source rolls back: what becomes of a reader.

The index lies in two slots that lose suffixes independently: one has the blocks, the other the partition's record and
timeline, so what readers were told may be lost with the record. The source is one vbucket that fails over; its
snapshots leave out what was superseded, and end anywhere. Owners come, receive, advance, note moments, connect anew;
the reader reads everything or a page of one document, and keeps nothing but its token.

All that decides is the program's own: `epochs`, `timeline`, `Position`, the stream's position, `IndexSnapshot`, `Scan`,
`Pager`. What the source answers is what the dev bucket does. Marks are set at once here: `test_store_loss_model.py` has
them in pieces, and `test_epoch_model.py` has late writers.

From every state that can be reached the world is let come to rest: no more faults, an owner that streams to the end,
the reader reads on. Then the index has what the source has, and the reader believes it of every document that is there.

Each rule that this rests on is planted broken, and found.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import pytest

from channelindex import blocks, epochs, timeline
from channelindex.epochs import NO_BOUND, Bounds, EpochStart, PartitionRecord
from channelindex.errors import TokenAhead
from channelindex.feeds.base import vbuuid_at
from channelindex.feeds.dcp.streams import LIVE, Stream
from channelindex.feeds.position import Position
from channelindex.model import ORIGIN, Checkpoint, Entry, IndexMeta
from channelindex.reading import since_token
from channelindex.reading.block_walk import NOTHING_READ
from channelindex.reading.paging import Pager
from channelindex.reading.query import Query
from channelindex.reading.scan import Scan
from channelindex.reading.since_token import Token
from channelindex.reading.snapshot import Archives, History, IndexSnapshot
from channelindex.stores.memory import MemoryIndex, MemoryReader
from channelindex.timeline import Moment
from devbucket.history import FailoverLog, rollback_seqno

META = IndexMeta(blocks.FORMAT_VERSION, n_vbuckets=1, n_partitions=1, source_uuid="s", index_uuid="i")
QUERY = Query.of(["A"], None, active_only=False)
NO_ARCHIVES = Archives(MemoryReader(MemoryIndex(), "none"))
Change = tuple[str, str]
"""(document, revision), which names branch and seqno."""
Op = tuple[Any, ...]
"""What a slot took: ("entry", epoch, seqno, change), ("mark", epoch, number), ("record", record, servers), a moment."""


class PromiseBroken(AssertionError):
    """A state that must not be reachable."""


class Source(NamedTuple):
    """The vbucket: its failover log, newest first, and the changes, from seqno 1 on."""

    log: tuple[tuple[int, int], ...] = ((1, 0),)
    changes: tuple[Change, ...] = ()

    @property
    def newest(self) -> dict[str, int]:
        """The seqno of each document."""
        return {document: seqno for seqno, (document, _) in enumerate(self.changes, 1)}

    def fail_over(self, keep: int) -> "Source":
        """Lose what came after seqno *keep*; go on in a new branch."""
        number = self.log[0][0] + 1
        return Source(((number, keep), *((uuid, at) for uuid, at in self.log if at <= keep)), self.changes[:keep])

    def write(self) -> "Source":
        """Take the next change, of a document that no branch before had."""
        branch = self.log[0][0]
        return self._replace(changes=(*self.changes, ("--xyz"[branch], f"{branch}-{len(self.changes) + 1}")))

    def answer(self, at: Checkpoint) -> int | None:
        """The seqno to which a client has to roll back; None if it may resume."""
        log, high = FailoverLog(), len(self.changes)
        log.entries = list(self.log)
        return rollback_seqno(log, *at[:4], high_seqno=high, purge_seqno=0, strict=False)

    def sent(self, above: int, end: int) -> list[int]:
        """The seqnos of a snapshot up to *end*: without what is superseded in it."""
        changes = self.changes[:end]
        return [n for n in range(above + 1, end + 1) if changes[n - 1][0] not in {doc for doc, _ in changes[n:]}]


class Slot(NamedTuple):
    """A slot: which server it has by now, and what this has."""

    server: int = 0
    log: tuple[Op, ...] = ()

    def marks(self) -> dict[int, int]:
        """The newest mark of each epoch."""
        return {op[1]: op[2] for op in self.log if op[0] == "mark"}


class Owner(NamedTuple):
    """The present owner; `stream` and `position` are the state of what follows the source for it.

    `to_come` are the seqnos that are left of the snapshot it is in.
    """

    epoch: int
    servers: tuple[int, ...]
    stream: tuple[Any, ...]
    position: tuple[Any, ...]
    branch: int = 0
    to_come: tuple[int, ...] = ()
    n_marks: int = 0


class State(NamedTuple):
    """Everything at one moment. `token` is (epoch, seqno, horizon)."""

    source: Source
    slots: tuple[Slot, Slot]
    owner: Owner | None = None
    n_epochs: int = 0
    n_losses: int = 0
    n_failovers: int = 0
    token: tuple[int, int, int] = (0, 0, 0)
    believed: tuple[tuple[str, Change], ...] = ()

    @property
    def present(self) -> tuple[int, ...]:
        """The servers that are there now."""
        return tuple(slot.server for slot in self.slots)

    @property
    def record(self) -> tuple[PartitionRecord, tuple[int, ...]]:
        """The partition's record, and the servers in which its epoch began."""
        return next((op[1], op[2]) for op in reversed(self.slots[1].log) if op[0] == "record")

    @property
    def entries(self) -> tuple[Op, ...]:
        """The entries that are there."""
        return tuple(op for op in self.slots[0].log if op[0] == "entry")


class World(NamedTuple):
    """How large the world is. All changes have been written; the first owner noted a moment at each seqno in *noted*.

    *documents* are those of the first branch. *losing* are the slots that may lose; with *pages*, the reader may stop
    after a document.
    """

    documents: str = "aba"
    n_epochs: int = 3
    n_losses: int = 1
    n_failovers: int = 1
    n_marks: int = 0
    noted: tuple[int, ...] = (1,)
    losing: tuple[int, ...] = (0, 1)
    pages: bool = False

    def first(self) -> State:
        """Return where the walk begins."""
        changes = tuple((document, f"1-{seqno}") for seqno, document in enumerate(self.documents, 1))
        record = epochs.new_record(0, 1)
        state = State(Source(changes=changes), (Slot(), Slot(0, (("record", record, (0, 0)),))))
        state = connect(begin(state) or state)
        for end in self.noted:
            state = enter_snapshot(state, end)
            while state.owner and state.owner.to_come:
                state = receive(state)
            state = note(state)
        return state

    def steps(self, state: State) -> Iterator[State]:
        """Everything that can happen next."""
        source = state.source
        if len(source.changes) < len(self.documents):
            yield state._replace(source=source.write())
        if state.n_failovers < self.n_failovers:
            for keep in range(1, len(source.changes)):
                yield state._replace(source=source.fail_over(keep), n_failovers=state.n_failovers + 1)
        if state.n_losses < self.n_losses:
            yield from self._losses(state)
        if state.n_epochs < self.n_epochs and (begun := begin(state)):
            yield begun
        if state.owner:
            yield from self._work(state, state.owner)
        for limit in (None, 1) if self.pages else (None,):
            after = read(state, limit)
            if after and after != state:
                yield after

    def _losses(self, state: State) -> Iterator[State]:
        """One slot is on another server, which has less, or all."""
        for number in self.losing:
            slot = state.slots[number]
            for left in range(number, len(slot.log) + 1):  # the first record was there before anybody came
                slots = list(state.slots)
                slots[number] = Slot(slot.server + 1, slot.log[:left])
                yield state._replace(slots=(slots[0], slots[1]), n_losses=state.n_losses + 1)

    def essence(self, state: State) -> State:
        """*state* without what makes no difference any more once nothing else can be lost."""
        if state.n_losses < self.n_losses:
            return state
        (record, servers), (blocks_slot, record_slot) = state.record, state.slots
        bounds = Bounds(record)
        kept: list[list[Op]] = [[], []]
        if servers != state.present:  # the next epoch looks for what is left
            kept = [[op for op in slot.log if isinstance(op, Moment) or op[0] == "mark"] for slot in state.slots]
        kept[0] += sorted(op for op in state.entries if op[2] <= bounds.bound(op[1], 0))
        kept[1].append(("record", record, servers))
        slots = blocks_slot._replace(log=tuple(kept[0])), record_slot._replace(log=tuple(kept[1]))
        return state._replace(slots=slots)

    def _work(self, state: State, owner: Owner) -> Iterator[State]:
        if owner.branch != state.source.log[0][0]:
            yield connect(state)
            return
        if owner.to_come:
            yield receive(state)
        else:
            for end in range(owner.stream[0] + 1, len(state.source.changes) + 1):
                yield receive(enter_snapshot(state, end))
        if owner.n_marks < self.n_marks:
            yield note(state)

    def check(self, state: State) -> None:
        """Let *state* come to rest and compare.

        Raises:
            PromiseBroken: the index, or the reader, has something else than the source.
        """
        while len(state.source.changes) < len(self.documents):
            state = state._replace(source=state.source.write())
        state = come_to_rest(state)
        source = state.source
        true = {document: source.changes[seqno - 1] for document, seqno in source.newest.items()}
        record, _ = state.record
        indexed = {document: change for _, document, change in visible(record, state.entries, 0)}
        if indexed != true:
            raise PromiseBroken(f"the index has {indexed}, the source {true}")
        believed = {document: change for document, change in state.believed if document in true}
        if believed != true:
            raise PromiseBroken(f"the reader believes {believed}, the source has {true}")

    def walk(self) -> int:
        """Visit every state that can be reached, nearest first; how many there are."""
        first = self.essence(self.first())
        waiting, seen = deque([first]), {first}
        while waiting:
            for following in map(self.essence, self.steps(waiting.popleft())):
                if following not in seen:
                    self.check(following)
                    seen.add(following)
                    waiting.append(following)
        return len(seen)


def begin(state: State, *, anew: bool = False) -> State | None:
    """A new owner begins, *anew* from the beginning if need be; None where it is refused."""
    record, servers = state.record
    epoch = state.n_epochs + 1
    back: dict[int, Checkpoint] = {}
    if servers != state.present and epochs.keeps_any(record, {}):
        moments = [op for op in state.slots[1].log if isinstance(op, Moment)]
        left = timeline.surviving(moments, [slot.marks() for slot in state.slots])
        if not left and not anew:
            return None
        back = epochs.fall_back(record, left) if left else {0: ORIGIN}
    begun = epochs.begin(record, epoch, "owner", back)
    (checkpoint,) = begun.checkpoints
    owner = Owner(epoch, state.present, _saved(Stream(0, checkpoint, LIVE)), _saved(Position(checkpoint)))
    state = _appended(state, 1, ("record", begun, state.present))
    return state._replace(owner=owner, n_epochs=epoch)


def connect(state: State) -> State:
    """The owner asks for its stream, where it is; a rollback is a new epoch, and its end."""
    owner, log = state.owner, state.source.log
    assert owner
    stream, position = _stream(owner), _position(owner)
    stream.checkpoint = stream.position(stream.seqno)
    kept = state.source.answer(stream.checkpoint)
    if kept is None:
        stream.vbuuid, position.failover_log = log[0][0], log
        stream.snap_start, stream.snap_end = stream.checkpoint.snap_start, stream.checkpoint.snap_end
        owner = owner._replace(branch=log[0][0], to_come=(), stream=_saved(stream), position=_saved(position))
        return state._replace(owner=owner)
    record, _ = state.record
    state = state._replace(owner=None)
    if record.epoch != owner.epoch or state.present != owner.servers:
        return state
    to = position.rolled_back(Checkpoint(vbuuid_at(log, kept), kept, kept, kept) if kept else ORIGIN)
    begun = epochs.begin(record, state.n_epochs + 1, "owner", {0: to}, only_if=owner.epoch)
    return _appended(state._replace(n_epochs=begun.epoch), 1, ("record", begun, state.present))


def enter_snapshot(state: State, end: int) -> State:
    """The source announces a snapshot up to *end*."""
    owner = state.owner
    assert owner
    stream, position = _stream(owner), _position(owner)
    stream.snap_start, stream.snap_end = stream.seqno + 1, end
    position.enter_snapshot(*stream._snapshot_at(stream.seqno))
    to_come = tuple(state.source.sent(stream.seqno, end))
    return state._replace(owner=owner._replace(stream=_saved(stream), position=_saved(position), to_come=to_come))


def receive(state: State) -> State:
    """The owner receives a change, appends its entry to whatever server is there, and moves the stable clock."""
    owner = state.owner
    assert owner
    seqno, *to_come = owner.to_come
    stream, position = _stream(owner), _position(owner)
    stream.seqno = position.seqno = seqno
    owner = owner._replace(stream=_saved(stream), position=_saved(position), to_come=tuple(to_come))
    entry = ("entry", owner.epoch, seqno, state.source.changes[seqno - 1])
    return _advance(_appended(state._replace(owner=owner), 0, entry))


def _advance(state: State) -> State:
    """An owner whose servers are others, or that was replaced, ends."""
    owner, (record, servers) = state.owner, state.record
    assert owner
    if record.epoch != owner.epoch or state.present != owner.servers:
        return state._replace(owner=None)
    moved = epochs.advance(record, owner.epoch, {0: _position(owner).checkpoint()})
    return state if moved == record else _appended(state, 1, ("record", moved, servers))


def note(state: State) -> State:
    """The owner sets a mark in both slots and notes a moment."""
    owner, (record, _) = state.owner, state.record
    assert owner
    if record.epoch != owner.epoch or state.present != owner.servers:
        return state._replace(owner=None)
    number = owner.n_marks + 1
    for slot in (0, 1):
        state = _appended(state, slot, ("mark", owner.epoch, number))
    state = _appended(state, 1, Moment(0, owner.epoch, number, record.checkpoints))
    return state._replace(owner=owner._replace(n_marks=number))


def read(state: State, limit: int | None = None) -> State | None:
    """The reader reads on, all of it or *limit* documents; None if it has to wait."""
    record, _ = state.record
    answer = told(record, state.entries, state.token, limit)
    if answer is None:
        return None
    rows, at = answer
    return state._replace(token=at, believed=tuple(sorted({**dict(state.believed), **dict(rows)}.items())))


def snapshot_of(record: PartitionRecord) -> IndexSnapshot:
    """What a reader sees who has *record*."""
    return IndexSnapshot(META, list(record.stable), History([record], NO_ARCHIVES))


@lru_cache(maxsize=100_000)
def told(
    record: PartitionRecord, entries: tuple[Op, ...], since: tuple[int, int, int], limit: int | None
) -> tuple[list[tuple[str, Change]], tuple[int, int, int]] | None:
    """The documents that a reader is told who has the token *since*, and its next token; None if it has to wait."""
    snapshot = snapshot_of(record)
    epoch, seqno, horizon = since
    try:
        read = snapshot.resume(Token(0, 0, (epoch,), (seqno,), (horizon,)))
    except TokenAhead:
        return None
    scan = Scan(snapshot, read.seqnos)
    for _, written_by, at, (document, revision) in entries:
        packed = blocks.pack_entry(Entry(0, at, document.encode(), revision, 0))
        scan.add_tail(blocks.pack_frame(blocks.ENTRIES, written_by, packed), 0)
    page = next(Pager(QUERY, scan, NOTHING_READ).pages(read, limit))
    after = since_token.decode(page.since, META, QUERY.asked)
    rows = [(change.id, (change.id, change.rev)) for change in page.entries]
    return rows, (after.epochs[0], after.seqnos[0], after.horizons[0])


def visible(record: PartitionRecord, entries: tuple[Op, ...], since: int) -> list[tuple[int, str, Change]]:
    """(seqno, document, change) of what is visible above *since*, ascending, by the rule itself."""
    bounds = Bounds(record)
    return sorted(
        (seqno, change[0], change)
        for _, epoch, seqno, change in entries
        if since < seqno <= min(record.stable[0], bounds.bound(epoch, 0))
    )


def come_to_rest(state: State) -> State:
    """Return *state* after faults have ended: an owner streams to the end, the reader reads to the end."""
    for _ in range(4):
        state = begin(state, anew=True) or state
        state = connect(state)
        if state.owner:
            break
    while state.owner and state.owner.stream[0] < len(state.source.changes):
        state = receive(state) if state.owner.to_come else enter_snapshot(state, len(state.source.changes))
    after = read(state)
    if state.owner is None or after is None:
        raise PromiseBroken("it does not come to rest")
    return after


def _appended(state: State, number: int, op: Op) -> State:
    slot = state.slots[number]
    if op[0] == "entry" and op in slot.log:
        return state
    slots = list(state.slots)
    slots[number] = slot._replace(log=(*slot.log, op))
    return state._replace(slots=(slots[0], slots[1]))


def _saved(what: Stream | Position) -> tuple[Any, ...]:
    if isinstance(what, Stream):
        return what.seqno, what.snap_start, what.snap_end, what.vbuuid, what.checkpoint
    return what.seqno, what.snap_start, what.snap_end, what.failover_log, tuple(what._complete_at)


def _stream(owner: Owner) -> Stream:
    stream = Stream(0, owner.stream[4], LIVE)
    stream.seqno, stream.snap_start, stream.snap_end, stream.vbuuid = owner.stream[:4]
    return stream


def _position(owner: Owner) -> Position:
    position = Position(ORIGIN)
    position.seqno, position.snap_start, position.snap_end, position.failover_log = owner.position[:4]
    position._complete_at.clear()
    position._complete_at.extend(owner.position[4])
    return position


@pytest.fixture(autouse=True)
def _forget_answers() -> Iterator[None]:
    """What a broken rule has told is no answer of the next test."""
    told.cache_clear()
    yield
    told.cache_clear()


BLOCKS_ARE_LOST = World(n_epochs=2, losing=(0,))
RECORD_IS_LOST = World(n_epochs=2, losing=(1,))
A_SNAPSHOT_IS_LOST = World(documents="aab", n_epochs=2, noted=(2,), losing=(0,))


@pytest.mark.parametrize("world", [World(n_epochs=1), A_SNAPSHOT_IS_LOST], ids=["small", "a snapshot"])
def test_every_reachable_state_comes_to_rest_at_the_truth(world: World) -> None:
    assert world.walk() > 1_000


@pytest.mark.nightly
@pytest.mark.parametrize(
    "world",
    [
        BLOCKS_ARE_LOST,
        RECORD_IS_LOST,
        World(n_epochs=2, losing=(0,), pages=True),
        World(losing=(0,)),
        World(documents="ab", n_losses=2),
        World(n_epochs=2, losing=(0,), n_marks=1),
    ],
    ids=["blocks are lost", "the record is lost", "pages", "three owners", "two losses", "moments"],
)
def test_every_reachable_state_of_larger_worlds_comes_to_rest_at_the_truth(world: World) -> None:
    assert world.walk() > 5_000


Plant = Callable[[pytest.MonkeyPatch], None]


def _take_every_start_for_a_return(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Bounds, "reach_of", lambda self, epoch: (NO_BOUND,) * len(self.of(epoch)))


def _reach_further_than_the_record_knows(patch: pytest.MonkeyPatch) -> None:
    def planted(start: EpochStart) -> tuple[int, ...]:
        return (NO_BOUND,) * len(start.starts) if start.reaches else start.starts

    patch.setattr(EpochStart, "true_upto", property(planted))


def _stream_as_from_a_complete_position(patch: pytest.MonkeyPatch) -> None:
    asked = Source.answer
    patch.setattr(Source, "answer", lambda self, at: asked(self, Checkpoint(at.vbuuid, at.seqno, at.seqno, at.seqno)))


def _end_the_snapshot_with_the_next(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stream, "_snapshot_at", lambda self, _: (self.snap_start, self.snap_end))


def _be_complete_right_below(patch: pytest.MonkeyPatch) -> None:
    returned = epochs.returned
    patch.setattr(epochs, "returned", lambda present, to, _: returned(present, to, max(0, to.seqno - 1)))


@pytest.mark.parametrize(
    ("plant", "world"),
    [
        (_take_every_start_for_a_return, BLOCKS_ARE_LOST),
        (_reach_further_than_the_record_knows, RECORD_IS_LOST),
        (_stream_as_from_a_complete_position, BLOCKS_ARE_LOST),
        pytest.param(_end_the_snapshot_with_the_next, BLOCKS_ARE_LOST, marks=pytest.mark.nightly),
        (_be_complete_right_below, A_SNAPSHOT_IS_LOST),
    ],
)
def test_each_rule_that_is_planted_broken_is_found(plant: Plant, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(PromiseBroken):
        world.walk()
