"""Every interleaving of a small world whose store loses: two slots that lose suffixes independently, and their owners.

The rules are the program's own (`channelindex.epochs`, `channelindex.timeline`); the store is a list of what each slot
took. A loss cuts the list, and makes another server of the slot. It may come between any two steps: while an append or
a mark is on its way, between reply and commit, between commit and advance, before anybody has noticed the loss before
it. An owner never learns that it was replaced but by being refused; what it sent arrives all the same. A reply may be
lost whose request took effect in one slot, and arrives in the other one when its repetition has long been there.

The first owner has both partitions, the next ones have one each: what one of them does must not vouch for what the
other has lost. In every state that can be reached:

* an epoch that began in the servers that are there now has everything up to the stable clock;
* what the token of a reader covers, it was told.

Each rule that this rests on is planted broken, and found.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from channelindex import epochs, timeline
from channelindex.epochs import Bounds, PartitionRecord
from channelindex.errors import StaleEpoch
from channelindex.model import Checkpoint
from channelindex.timeline import Moment

PARTITIONS_OF = {1: ((0,),) * 3, 2: ((0, 1), (0,), (1,))}
"""By the number of partitions, those of each owner, in the order in which they begin."""

AT_THE_CLOCK = "begin at the stable clock"
OVER_ANYTHING = "mark over whatever is there"
ONE_CHAIN = "go on with the marks of the epoch before"
NO_LOOK = "no look at the servers after the marks"
READ_LATE = "checkpoints read after the marks"
BLIND_COMMIT = "commit of what other servers took"
SAME_NUMBER = "a number set again after a lost reply"
FULL_TOKEN = "a token beyond a start"

Op = tuple[str, int, int]
"""What a slot took: ("entry-<partition>", epoch, seqno) or ("mark", epoch, number)."""


class PromiseBroken(AssertionError):
    """A state that must not be reachable."""


class Slot(NamedTuple):
    """A slot: which server it has by now, and what this has."""

    server: int = 0
    log: tuple[Op, ...] = ()

    def mark(self, epoch: int) -> int:
        """The newest mark of *epoch*, 0 for none."""
        return max((number for kind, of, number in self.log if (kind, of) == ("mark", epoch)), default=0)


class Partition(NamedTuple):
    """A partition's record and timeline, and the servers in which its epoch began."""

    record: PartitionRecord
    servers: tuple[int, ...] = ()
    moments: tuple[Moment, ...] = ()


class Note(NamedTuple):
    """A moment that an owner is about to note: its mark, by partition what was stable, whether all slots have it."""

    number: int
    stable: tuple[int, ...]
    is_set: bool = False


class Owner(NamedTuple):
    """One owner. What it received last is on its way while `is_sending`; all up to `written` is committed.

    `is_taken` says whether what arrived last was taken by the servers in which its epoch began.

    `late` are (slot, lowest, number) of marks that arrive some time.
    """

    epoch: int
    partitions: tuple[int, ...]
    servers: tuple[int, ...]
    received: int
    written: int
    is_alive: bool = True
    is_sending: bool = False
    is_taken: bool = False
    note: Note | None = None
    attempted: int = 0
    confirmed: int = 0
    late: tuple[tuple[int, int, int], ...] = ()


class State(NamedTuple):
    """Everything at one moment."""

    partitions: tuple[Partition, ...]
    slots: tuple[Slot, ...] = (Slot(), Slot())
    owners: tuple[Owner, ...] = ()
    n_losses: int = 0
    token: tuple[int, int] = (0, 0)
    told: frozenset[tuple[int, int]] = frozenset()

    @property
    def present(self) -> tuple[int, ...]:
        """The servers that are there now."""
        return tuple(slot.server for slot in self.slots)


class World(NamedTuple):
    """How large the world is, and which rule is broken in it."""

    n_partitions: int = 1
    n_changes: int = 1
    n_owners: int = 2
    n_losses: int = 1
    n_marks: int = 2
    reads: bool = False
    replies_get_lost: bool = False
    is_stable: bool = False
    fault: str = ""

    def steps(self, state: State) -> Iterator[State]:
        """Everything that can happen next."""
        if state.n_losses < self.n_losses:
            for number, slot in enumerate(state.slots):
                for left in range(len(slot.log) + 1):
                    after = _with_slot(state, number, Slot(slot.server + 1, slot.log[:left]))
                    yield after._replace(n_losses=state.n_losses + 1)
        if len(state.owners) < self.n_owners:
            yield from self._begin(state, PARTITIONS_OF[self.n_partitions][len(state.owners)])
        for position, owner in enumerate(state.owners):
            yield from self._arrive(state, position, owner)
            if owner.is_alive:
                yield from self._write(state, position, owner)
                yield from self._note(state, position, owner)
        if self.reads:
            yield from self._read(state)

    def _begin(self, state: State, partitions: tuple[int, ...]) -> Iterator[State]:
        epoch = len(state.owners) + 1
        for number in partitions:
            record, servers, moments = state.partitions[number]
            rollback: dict[int, Checkpoint] = {}
            if servers != state.present and epochs.keeps_any(record, {}) and self.fault != AT_THE_CLOCK:
                marks = [{each: slot.mark(self._chain(each)) for each in range(1, epoch)} for slot in state.slots]
                left = timeline.surviving(moments, marks)
                if not left:
                    return  # refused
                rollback = epochs.fall_back(record, left)
            begun = epochs.begin(record, epoch, "owner", rollback)
            state = _with_partition(state, number, Partition(begun, state.present, moments))
        seqno = min(state.partitions[number].record.stable[0] for number in partitions)
        owner = Owner(epoch, partitions, state.present, seqno, seqno)
        yield state._replace(owners=(*state.owners, owner))

    def _arrive(self, state: State, position: int, owner: Owner) -> Iterator[State]:
        """What is on its way arrives, whatever became of its sender."""
        if owner.is_sending:
            is_taken = state.present == owner.servers
            after = _with_owner(state, position, owner._replace(is_sending=False, is_taken=is_taken))
            for slot, number in itertools.product(range(len(state.slots)), owner.partitions):
                after = _appended(after, slot, (f"entry-{number}", owner.epoch, owner.received))
            yield after
            if state.n_losses:  # a writer that is connected to a former server still
                yield _with_owner(state, position, owner._replace(is_sending=False, is_taken=False))
        for number, request in enumerate(owner.late):
            waiting = owner._replace(late=(*owner.late[:number], *owner.late[number + 1 :]))
            yield self._marked(_with_owner(state, position, waiting), owner, *request)[0]

    def _marked(self, state: State, owner: Owner, slot: int, lowest: int, number: int) -> tuple[State, bool]:
        """Run the script of a mark; whether it was set."""
        chain = self._chain(owner.epoch)
        found = state.slots[slot].mark(chain)
        is_next = lowest <= found < number or (self.fault == SAME_NUMBER and found == number)
        if is_next or self.fault == OVER_ANYTHING:
            return _appended(state, slot, ("mark", chain, number)), True
        return state, False

    def _write(self, state: State, position: int, owner: Owner) -> Iterator[State]:
        dead = _with_owner(state, position, owner._replace(is_alive=False, note=None))
        if owner.received < self.n_changes and owner.written == owner.received:
            yield _with_owner(state, position, owner._replace(received=owner.received + 1, is_sending=True))
        if owner.written < owner.received and not owner.is_sending:
            counts = owner.is_taken or self.fault == BLIND_COMMIT
            yield _with_owner(state, position, owner._replace(written=owner.received)) if counts else dead
        for number in owner.partitions:
            partition = state.partitions[number]
            if owner.written > partition.record.stable[0]:
                try:
                    moved = epochs.advance(partition.record, owner.epoch, {number: _at(owner.written)})
                except StaleEpoch:
                    yield dead
                else:
                    yield _with_partition(state, number, partition._replace(record=moved))

    def _note(self, state: State, position: int, owner: Owner) -> Iterator[State]:
        note, slots = owner.note, range(len(state.slots))
        dead = _with_owner(state, position, owner._replace(is_alive=False, note=None))
        if note is None:
            if owner.attempted < (self.n_marks if position == 0 else self.n_marks - 1):
                stable = tuple(partition.record.stable[0] for partition in state.partitions)
                note = Note(self._number(owner), stable)
                yield _with_owner(state, position, owner._replace(note=note, attempted=owner.attempted + 1))
            return
        if not note.is_set:
            after, are_set = _with_owner(state, position, owner._replace(note=note._replace(is_set=True))), True
            for slot in slots:
                after, is_set = self._marked(after, owner, slot, owner.confirmed, note.number)
                are_set &= is_set
            yield after if are_set else dead
            if self.replies_get_lost:
                for slot in slots:
                    yield self._lose_reply(state, position, owner, note, slot)
            return
        if state.present != owner.servers and self.fault != NO_LOOK:
            yield dead
            return
        after = _with_owner(state, position, owner._replace(note=None, confirmed=note.number))
        for number in owner.partitions:
            record, servers, moments = after.partitions[number]
            if record.epoch == owner.epoch:
                seqno = record.stable[0] if self.fault == READ_LATE else note.stable[number]
                new = Moment(0, owner.epoch, note.number, (_at(seqno),))
                after = _with_partition(after, number, Partition(record, servers, (*moments, new)))
        yield after

    def _lose_reply(self, state: State, position: int, owner: Owner, note: Note, slot: int) -> State:
        """The mark is set in the other slot now, and in *slot* some time."""
        request = (slot, owner.confirmed, note.number)
        after = _with_owner(state, position, owner._replace(note=None, late=(*owner.late, request)))
        return self._marked(after, owner, 1 - slot, owner.confirmed, note.number)[0]

    def _number(self, owner: Owner) -> int:
        """The next mark; with one chain for all, a number above all that may be there."""
        n_given_up = 1 if self.fault == SAME_NUMBER and owner.late else 0
        return owner.attempted + 1 - n_given_up + (owner.epoch * 10 if self.fault == ONE_CHAIN else 0)

    def _chain(self, epoch: int) -> int:
        return 0 if self.fault == ONE_CHAIN else epoch

    def _read(self, state: State) -> Iterator[State]:
        """The reader of partition 0 reads all that is visible above its token."""
        record = state.partitions[0].record
        since, (stable,) = self._since(state), record.stable
        visible = {(number, seqno) for number, slot in enumerate(state.slots) for seqno in _live(slot, record)}
        told = {(number, seqno) for number, seqno in visible if since < seqno <= stable}
        after = state._replace(token=(record.epoch, max(since, stable)), told=state.told | told)
        if after != state:
            yield after

    def _since(self, state: State) -> int:
        """The seqno that the token is lowered to: to the start of a return, to 0 where it is not known to be one."""
        epoch, seqno = state.token
        bounds = Bounds(state.partitions[0].record)
        (left,) = bounds.clamp(epoch, [seqno])
        if left == seqno or self.fault == FULL_TOKEN:
            return seqno
        return left if seqno <= bounds.reach_of(epoch)[0] else 0

    def check(self, state: State) -> None:
        """Hold the promises against *state*, of each partition whose epoch began in the servers that are there.

        Raises:
            PromiseBroken: which one.
        """
        for number, (record, servers, _) in enumerate(state.partitions):
            if servers != state.present:
                continue
            for slot_number, slot in enumerate(state.slots):
                missing = set(range(1, record.stable[0] + 1)) - _live(slot, record)
                if missing:
                    raise PromiseBroken(f"partition {number}: seqnos {missing} are lost in slot {slot_number}")
                covered = range(1, min(record.stable[0], self._since(state)) + 1) if number == 0 else range(0)
                if any((slot_number, seqno) not in state.told for seqno in covered):
                    raise PromiseBroken(f"the reader missed some of {covered} in slot {slot_number}")

    def first(self) -> State:
        """Return where the walk begins: the first owner has noted a moment; if *is_stable*, it has written since."""
        state = State(tuple(Partition(epochs.new_record(vb, 1)) for vb in range(self.n_partitions)))
        (state,) = self._begin(state, PARTITIONS_OF[self.n_partitions][0])
        for _ in range(3):  # begin the note, set the mark, note the moment
            state = next(self._note(state, 0, state.owners[0]))
        if self.is_stable:
            state = next(self._write(state, 0, state.owners[0]))
            state = next(self._arrive(state, 0, state.owners[0]))
            for _ in range(1 + self.n_partitions):  # commit, advance each
                *_, state = self._write(state, 0, state.owners[0])
        return state

    def walk(self) -> int:
        """Visit every state that can be reached, nearest first; how many there are."""
        first = self.first()
        waiting, seen = deque([first]), {first}
        while waiting:
            for following in self.steps(waiting.popleft()):
                if following not in seen:
                    self.check(following)
                    seen.add(following)
                    waiting.append(following)
        return len(seen)


def _at(seqno: int) -> Checkpoint:
    return Checkpoint(1, seqno, seqno, seqno)


def _live(slot: Slot, record: PartitionRecord) -> set[int]:
    """The seqnos of which *slot* has an entry of the partition that is live under *record*."""
    bounds = Bounds(record)
    entries = ((epoch, seqno) for kind, epoch, seqno in slot.log if kind == f"entry-{record.first_vb}")
    return {seqno for epoch, seqno in entries if seqno <= bounds.bound(epoch, record.first_vb)}


def _with_slot(state: State, number: int, slot: Slot) -> State:
    return state._replace(slots=(*state.slots[:number], slot, *state.slots[number + 1 :]))


def _with_partition(state: State, number: int, partition: Partition) -> State:
    return state._replace(partitions=(*state.partitions[:number], partition, *state.partitions[number + 1 :]))


def _appended(state: State, number: int, op: Op) -> State:
    slot = state.slots[number]
    return _with_slot(state, number, slot if op in slot.log else slot._replace(log=(*slot.log, op)))


def _with_owner(state: State, position: int, owner: Owner) -> State:
    """Put *owner* into its place. Of one that has ended, only what is on its way still matters."""
    if not owner.is_alive and not owner.is_sending and not owner.late:
        owner = Owner(owner.epoch, (), (), 0, 0, is_alive=False)
    return state._replace(owners=(*state.owners[:position], owner, *state.owners[position + 1 :]))


@pytest.mark.parametrize(
    ("world", "n_states"),
    [
        pytest.param(World(is_stable=True, n_marks=3), 10_000, id="marks"),
        pytest.param(World(is_stable=True, reads=True), 10_000, id="a reader"),
        pytest.param(World(is_stable=True, n_losses=2), 30_000, id="two losses"),
    ],
)
def test_every_reachable_state_keeps_the_promises(world: World, n_states: int) -> None:
    assert world.walk() > n_states


@pytest.mark.nightly
@pytest.mark.parametrize(
    "world",
    [
        pytest.param(World(), id="from the first moment on"),
        pytest.param(World(is_stable=True, n_owners=3), id="three owners"),
    ],
)
def test_every_reachable_state_of_larger_worlds_keeps_the_promises(world: World) -> None:
    assert world.walk() > 50_000


@pytest.mark.parametrize(
    "broken",
    [
        World(fault=AT_THE_CLOCK),
        World(fault=BLIND_COMMIT),
        World(fault=READ_LATE),
        World(is_stable=True, fault=NO_LOOK),
        World(is_stable=True, n_marks=3, fault=OVER_ANYTHING),
        World(is_stable=True, n_marks=3, replies_get_lost=True, fault=SAME_NUMBER),
        World(is_stable=True, n_partitions=2, n_owners=3, fault=ONE_CHAIN),
        World(is_stable=True, reads=True, fault=FULL_TOKEN),
    ],
    ids=lambda world: world.fault,
)
def test_each_rule_that_is_planted_broken_is_found(broken: World) -> None:
    with pytest.raises(PromiseBroken):
        broken.walk()
