"""The last writer to commit wakes a feed worker, however commits and what the worker does come between each other."""

import select
from contextlib import closing

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from channelindex.model import Checkpoint
from workers.pipeline.outbox import RingOutbox
from workers.pipeline.ring import Bell, CommitBell, Ring
from workers.pipeline.round import Round

N_WRITERS = 3
EPOCH = 5


def is_rung(bell):
    return bool(select.select([bell], [], [], 0)[0])


def a_round(seqno, sizes):
    """A round of vbucket 1 with an entry of some size for each writer, none for those where it is 0."""
    sections = [{"a": [b"\0\1" + seqno.to_bytes(8, "big") + bytes(size)]} if size else {} for size in sizes]
    return Round(sections, [[] for _ in sizes], {1: Checkpoint(7, seqno, seqno, seqno)}, [], 1, N_WRITERS)


def commit(ring):
    ring.take(1 << 20)
    ring.commit()


@pytest.fixture
def bell():
    with closing(Bell()) as made:
        yield made


@pytest.fixture
def rings():
    return [Ring(1 << 10) for _ in range(N_WRITERS)]


@pytest.fixture
def outbox(rings):
    bells = [Bell() for _ in rings]
    made = RingOutbox(rings, bells)
    made.begin(EPOCH)
    yield made
    for each in bells:
        each.close()


def test_of_the_writers_that_commit_a_round_only_the_last_one_rings(outbox, rings, bell):
    outbox.put(a_round(1, [1, 1, 1]), EPOCH, "g")
    assert outbox.flush()
    rung = []
    for ring in reversed(rings):
        commit(ring)
        CommitBell(bell, rings).ring_if_awaited()
        rung.append(is_rung(bell))
    assert rung == [False, False, True]


def test_of_two_rounds_each_is_reported(outbox, rings, bell):
    for seqno in (1, 2):
        outbox.put(a_round(seqno, [1, 1, 0]), EPOCH, "g")
        assert outbox.flush()
    for ring in rings[:2]:
        ring.take(1)  # one frame
        ring.commit()
        CommitBell(bell, rings).ring_if_awaited()
    assert is_rung(bell)
    bell.clear()
    assert outbox.pop_committed()[1].seqno == 1
    for n_committed, ring in enumerate(rings[:2]):
        assert is_rung(bell) == (n_committed > 1)
        commit(ring)
        CommitBell(bell, rings).ring_if_awaited()
    assert is_rung(bell)
    assert outbox.pop_committed()[1].seqno == 2


def test_who_waits_for_room_is_woken_by_each_commit(outbox, rings, bell):
    outbox.put(a_round(1, [400, 1, 1]), EPOCH, "g")
    assert outbox.flush()
    outbox.put(a_round(2, [400, 400, 1]), EPOCH, "g")
    assert outbox.flush()
    outbox.put(a_round(3, [400, 1, 1]), EPOCH, "g")
    assert not outbox.flush()
    assert outbox.holds_back
    commit(rings[1])
    CommitBell(bell, rings).ring_if_awaited()
    assert is_rung(bell)


def test_an_epoch_that_begins_awaits_nothing(outbox, rings):
    outbox.put(a_round(1, [1, 1, 1]), EPOCH, "g")
    assert outbox.flush()
    assert all(ring.awaited for ring in rings)
    RingOutbox(rings, [Bell() for _ in rings]).begin(EPOCH + 1)
    assert not any(ring.awaited for ring in rings)


class CommittingRing(Ring):
    """A ring whose writers may commit whenever the producer has published a frame, or found no room, or looked."""

    __slots__ = ("commits",)

    def __init__(self, capacity):
        super().__init__(capacity)
        self.commits = []

    def try_publish(self, payload):
        position = super().try_publish(payload)
        self._run_next()
        return position

    @property
    def committed(self):
        position = super().committed
        self._run_next()
        return position

    def _run_next(self):
        if self.commits:
            self.commits.pop()()


def test_room_that_comes_while_the_bell_is_told_to_ring_for_it_is_used():
    rings = [CommittingRing(1 << 10) for _ in range(2)]
    outbox = RingOutbox(rings, [Bell() for _ in rings])
    outbox.begin(EPOCH)
    for seqno in (1, 2):
        outbox.put(a_round(seqno, [400, 1]), EPOCH, "g")
        assert outbox.flush()
    rings[0].commits = [
        lambda: commit(rings[0])
    ]  # before it is told, so no bell rings: the other one has not committed
    outbox.put(a_round(3, [400, 1]), EPOCH, "g")
    assert outbox.flush()


class Waking(RuleBasedStateMachine):
    """Whatever the worker could do after a commit, a bell rings for it."""

    def __init__(self):
        super().__init__()
        self.rings = [CommittingRing(1 << 10) for _ in range(N_WRITERS)]
        self.bell = Bell()
        self.data_bells = [Bell() for _ in self.rings]
        self.outbox = RingOutbox(self.rings, self.data_bells)
        self.outbox.begin(EPOCH)
        self.seqno = 0

    def teardown(self):
        for bell in (self.bell, *self.data_bells):
            bell.close()

    def _commit(self, writer, max_bytes=1 << 20):
        if self.rings[writer].take(max_bytes):
            self.rings[writer].commit()
            CommitBell(self.bell, self.rings).ring_if_awaited()

    @rule(sizes=st.lists(st.sampled_from([0, 1, 400]), min_size=N_WRITERS, max_size=N_WRITERS), early=st.data())
    def read(self, sizes, early):
        """A turn that reads: some writers commit in the middle of it."""
        for ring in self.rings:
            ring.commits = [
                lambda writer=writer: self._commit(writer)
                for writer in early.draw(st.lists(st.integers(0, N_WRITERS - 1), max_size=2))
            ]
        if self.outbox.flush():
            self.seqno += 1
            self.outbox.put(a_round(self.seqno, sizes), EPOCH, "g")
            self.outbox.flush()
        self.outbox.pop_committed()
        for ring in self.rings:
            ring.commits = []

    @rule(writer=st.integers(0, N_WRITERS - 1), max_bytes=st.sampled_from([1, 1 << 20]))
    def commit(self, writer, max_bytes):
        self._commit(writer, max_bytes)

    @rule()
    def wake(self):
        """A turn, or what the worker does between beats."""
        if is_rung(self.bell):
            self.bell.clear()
            self.outbox.flush()
            self.outbox.pop_committed()

    @invariant()
    def a_bell_rings_for_what_can_be_done(self):
        committed = [ring.committed for ring in self.rings]
        first = self.outbox._in_flight
        if first and all(one <= other for one, other in zip(first.first, committed, strict=True)):
            assert is_rung(self.bell), "a round could become stable"
        if self.outbox.holds_back:
            writer, frame = self.outbox._pending[0]
            assert is_rung(self.bell) or not fits(self.rings[writer], frame), "there is room"
        self.outbox.check()


def fits(ring, frame):
    """Whether a frame could be published now."""
    room_to_end = ring.capacity - ring.written % ring.capacity
    size = 8 + (len(frame) + 7) // 8 * 8
    return ring.free >= (size if size <= room_to_end else size + room_to_end)


TestWaking = Waking.TestCase
TestWaking.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
