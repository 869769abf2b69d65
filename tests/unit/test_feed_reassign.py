"""A feed worker lets go of partitions and takes more while it works, by the epoch rule."""

from contextlib import closing
from typing import cast

import pytest

from channelindex import blocks
from channelindex.errors import OutcomeUnknown, StaleEpoch, StoreUnavailable
from channelindex.feeds.base import MUTATION, ROLLBACK, SNAPSHOT
from channelindex.hashing import group_of
from channelindex.logs import get
from channelindex.model import ORIGIN, IndexMeta, Route
from channelindex.stores.memory import MemoryIndex, MemoryOwner
from workers.pipeline.assignment import assignment_link
from workers.pipeline.feed_worker import ROLLED_BACK, FeedWorker
from workers.pipeline.frames import decode_frame
from workers.pipeline.outbox import Outbox
from workers.pipeline.ring import Bell, Ring
from workers.pipeline.round import RoundBuilder
from workers.signals import StopFlag
from workers.telemetry.board import Board

META = IndexMeta(blocks.FORMAT_VERSION, n_vbuckets=8, n_partitions=4, source_uuid="s", index_uuid="i")


class FakeFeed:
    """Gives the events that the test puts into it; knows which vbuckets it is to stream, and from where."""

    def __init__(self):
        self.events = []
        self.streams = {}
        self.n_reads = 0
        self._bell = Bell()

    def start(self, checkpoints):
        self.streams = {vb: checkpoint.seqno for vb, checkpoint in checkpoints.items()}

    def add(self, checkpoints):
        assert not self.streams.keys() & checkpoints.keys()
        self.streams |= {vb: checkpoint.seqno for vb, checkpoint in checkpoints.items()}

    def drop(self, vbuckets):
        for vb in vbuckets:
            del self.streams[vb]

    def read(self, max_bytes):
        self.n_reads += 1
        taken, self.events = self.events, []
        return taken

    def fileno(self):
        return self._bell.fileno()

    def tick(self, now):
        return now

    def high_seqnos(self):
        return {}

    def connected(self):
        return True

    def acknowledge(self):
        pass

    def close(self):
        self._bell.close()


class Everything:
    """A decoder that puts every document into one channel."""

    def decode(self, kind, key, datatype, value):
        return Route("1-a", 0, 0, {"A": None})


class NeverStop(Bell):
    """Nobody tells this worker to stop."""

    def is_set(self):
        return False


class UnwillingOwner(MemoryOwner):
    """Begins no epoch of the partitions in `refused`, but of those that are asked for before them."""

    def __init__(self, index, index_name):
        super().__init__(index, index_name)
        self.refused = set()
        self.error = StoreUnavailable("away")

    def begin(self, partition, epoch, owner, rollback=None, only_if=None):
        if partition in self.refused:
            raise self.error
        return super().begin(partition, epoch, owner, rollback, only_if)


class Rig:
    """A worker with a ring to a writer that the test plays."""

    def __init__(self, partitions):
        self.index = MemoryIndex()
        self.owner = UnwillingOwner(self.index, "test")
        self.owner.create_or_check(META)
        self.feed = FakeFeed()
        self.ring = Ring(1 << 16)
        self.bells = Bell(), Bell()
        self.ours, self.its = assignment_link(frozenset(partitions))
        board = Board(META.n_partitions)
        self.worker = FeedWorker(
            owner="n1",
            partitions=partitions,
            meta=META,
            store=self.owner,
            feed=self.feed,
            new_builder=lambda checkpoints: RoundBuilder(Everything(), 1, 0, checkpoints),
            outbox=Outbox([self.ring], [self.bells[0]]),
            space_bell=self.bells[1],
            stats=board.feeds[0],
            rows=board.partitions,
            stop=cast("StopFlag", NeverStop()),
            link=self.its,
            log=get("test"),
        )
        checkpoints = self.worker._begin_epochs()
        assert checkpoints is not None
        self.worker._start(checkpoints)

    def brings(self, vb, seqno):
        self.feed.events += [(SNAPSHOT, vb, seqno, seqno), (MUTATION, vb, seqno, b"k%d" % seqno, 1, b"{}")]

    def turn(self, n=1):
        for _ in range(n):
            self.worker._advance_at = self.worker._joiner.retry_at = 0.0
            self.worker._turn()
            self.ours.poll()

    def indexes(self, vb, seqno):
        """Whether what comes now is stable once it is written."""
        self.brings(vb, seqno)
        self.turn()
        self.write()
        self.turn()
        partition = vb // META.partition_width
        return self.record(partition).stable[vb % META.partition_width] == seqno

    def write(self):
        """The writer writes and commits all that is in the ring; the frames."""
        frames = [decode_frame(payload) for payload in self.ring.take(1 << 20)]
        if frames:
            self.ring.commit()
        return frames

    def record(self, partition):
        return self.index.records[partition]

    def close(self):
        self.feed.close()
        self.ours.close()
        self.its.close()
        for bell in self.bells:
            bell.close()


@pytest.fixture
def rig():
    with closing(Rig([0, 1])) as made:
        yield made


def test_partition_that_goes_is_let_go_when_all_of_it_is_stable_and_the_others_go_on(rig):
    rig.brings(0, 1)
    rig.brings(2, 1)
    rig.turn()
    rig.ours.want(frozenset({1}))
    rig.turn(2)
    assert rig.feed.streams.keys() == {2, 3}, "its streams are closed at once"
    assert rig.ours.working == {0, 1}, "it is worked on until what came of it is in the index"
    (frame,) = rig.write()
    rig.turn(2)
    assert rig.record(0).stable == (1, 0)
    assert rig.ours.working == {1}
    rig.brings(2, 2)
    rig.turn()
    (later,) = rig.write()
    rig.turn()
    assert rig.record(1).stable == (2, 0)
    assert (later.epoch, later.group) == (frame.epoch, frame.group), "the others notice nothing"


def test_partition_that_comes_begins_in_a_new_epoch_of_all_when_nothing_is_in_flight(rig):
    before = rig.record(0).epoch
    rig.brings(0, 7)
    rig.turn()
    rig.ours.want(frozenset({0, 1, 3}))
    n_reads = rig.feed.n_reads
    rig.brings(0, 9)
    rig.turn(3)
    assert rig.feed.n_reads == n_reads, "nothing is read while something is in flight"
    assert [rig.record(p).epoch == before for p in (0, 1, 3)] == [True, True, False]
    (old,) = rig.write()
    rig.turn(2)
    epoch = rig.record(3).epoch
    assert epoch > before
    assert [rig.record(p).epoch for p in (0, 1, 3)] == [epoch] * 3
    assert rig.record(0).history[-1].starts == (7, 0), "it starts where the stable clock is: no entry dies"
    assert rig.feed.streams.keys() == {0, 1, 2, 3, 6, 7}
    assert rig.ours.working == {0, 1, 3}
    rig.turn()
    (new,) = rig.write()
    assert (old.epoch, old.group) == (before, group_of([0, 1], META.n_partitions))
    assert (new.epoch, new.group) == (epoch, group_of([0, 1, 3], META.n_partitions))


def test_others_go_on_while_a_partition_that_comes_cannot_be_begun(rig):
    before = rig.record(0).epoch
    rig.owner.refused = {3}
    rig.ours.want(frozenset({0, 1, 3}))
    for seqno in range(1, 20):
        assert rig.indexes(0, seqno)
        assert rig.indexes(2, seqno)
    assert (rig.record(0).epoch, rig.record(3).epoch) == (before, 0)
    rig.owner.refused = set()
    rig.turn()
    assert rig.ours.working == {0, 1, 3}
    assert rig.record(0).epoch == rig.record(1).epoch == rig.record(3).epoch > before
    assert rig.indexes(0, 20)
    assert rig.indexes(6, 1)


def test_partition_that_a_former_owner_begins_once_more_is_begun_again_and_the_others_go_on(rig):
    rig.owner.refused, rig.owner.error = {3}, StaleEpoch(3, 7, 8)
    rig.ours.want(frozenset({0, 1, 3}))
    assert rig.indexes(0, 1)
    rig.owner.refused = set()
    rig.turn()
    assert rig.feed.streams.keys() == {0, 1, 2, 3, 6, 7}


def test_others_are_paused_for_no_longer_than_what_was_read_takes_to_get_stable(rig, monkeypatch):
    waits = []
    monkeypatch.setattr(rig.worker, "_wait", lambda now, wake_at: waits.append(rig.record(0).epoch))
    before = rig.record(0).epoch
    rig.brings(0, 1)
    rig.turn()
    rig.ours.want(frozenset({0, 1, 3}))
    rig.turn()
    assert waits == [before], "for the writer"
    rig.write()
    rig.brings(0, 2)
    rig.turn(2)
    assert waits == [before], "it reads on without another wait"
    (frame,) = rig.write()
    assert frame.epoch == rig.record(0).epoch > before


def test_all_come_into_the_next_epoch_even_if_the_store_goes_away_half_way(rig):
    rig.owner.refused, rig.owner.error = {1}, OutcomeUnknown("no reply")
    rig.ours.want(frozenset({0, 1, 3}))
    rig.turn()
    rig.worker._check_at = 0.0
    rig.turn()
    epoch = rig.record(3).epoch
    assert [rig.record(p).epoch == epoch for p in (0, 1, 3)] == [True, False, True]
    rig.ours.want(frozenset({0, 1, 2}))
    rig.turn()
    assert rig.ours.working == {0, 1, 2, 3}, "what is half-way in is still worked on"
    rig.owner.refused = set()
    rig.turn(4)
    assert rig.ours.working == {0, 1, 2}
    assert rig.feed.streams.keys() == {0, 1, 2, 3, 4, 5}
    assert rig.indexes(0, 1)
    assert rig.indexes(2, 1)
    assert rig.indexes(4, 1)


def test_partition_that_is_withdrawn_before_it_was_joined_is_not_worked_on(rig):
    rig.brings(0, 1)
    rig.turn()
    rig.ours.want(frozenset({0, 1, 3}))
    rig.turn()
    rig.ours.want(frozenset({0, 1}))
    rig.turn()
    assert rig.ours.working == {0, 1}
    theirs = rig.owner.begin(3, rig.owner.next_epoch(), "n2").epoch
    rig.ours.want(frozenset({0, 1, 3}))
    rig.turn()
    rig.write()
    rig.turn(2)
    assert rig.record(3).epoch == rig.record(0).epoch > theirs


def test_nothing_is_begun_any_more_after_a_rollback(rig):
    before = rig.record(0).epoch
    rig.feed.events += [(ROLLBACK, 0, ORIGIN)]
    rig.turn()
    rig.ours.want(frozenset({0, 1, 3}))
    n_reads = rig.feed.n_reads
    rig.turn(2)
    assert rig.feed.n_reads == n_reads + 2, "other vbuckets may roll back too"
    assert (rig.record(0).epoch, rig.record(3).epoch) == (before, 0)
    assert rig.worker._roll_back() == ROLLED_BACK
    assert rig.record(0).epoch > rig.record(1).epoch == before


def test_partition_that_goes_and_comes_again_begins_anew(rig):
    rig.brings(0, 1)
    rig.turn()
    rig.ours.want(frozenset({1}))
    rig.turn()
    rig.ours.want(frozenset({0, 1}))
    rig.turn()
    rig.write()
    rig.turn(4)
    assert rig.ours.working == {0, 1}
    assert rig.feed.streams == {0: 1, 1: 0, 2: 0, 3: 0}
    assert rig.record(0).stable == (1, 0)


def test_worker_whose_partition_somebody_else_has_begun_stops_when_it_gains_another(rig):
    rig.owner.begin(1, rig.owner.next_epoch(), "n2")
    rig.ours.want(frozenset({0, 1, 2}))
    rig.worker._check_at = float("inf")
    with pytest.raises(StaleEpoch):
        rig.turn()
    assert rig.record(1).owner == "n2"
