"""A feed worker lets go of partitions and takes more while it works, by the epoch rule."""

from contextlib import closing

import pytest

from channelindex.errors import OutcomeUnknown, StaleEpoch
from channelindex.feeds.base import ROLLBACK
from channelindex.hashing import group_of
from channelindex.model import ORIGIN
from tests.support.feed_rig import META, FeedRig
from workers.pipeline.feed_worker import ROLLED_BACK


@pytest.fixture
def rig():
    with closing(FeedRig([0, 1])) as made:
        yield made


def test_partition_that_goes_is_let_go_when_all_of_it_is_stable_and_the_others_go_on(rig):
    rig.brings(0, 1)
    rig.brings(2, 1)
    rig.turn()
    rig.ours.assign(frozenset({1}))
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
    rig.ours.assign(frozenset({0, 1, 3}))
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
    rig.ours.assign(frozenset({0, 1, 3}))
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
    rig.ours.assign(frozenset({0, 1, 3}))
    assert rig.indexes(0, 1)
    rig.owner.refused = set()
    rig.turn()
    assert rig.feed.streams.keys() == {0, 1, 2, 3, 6, 7}


def test_others_are_paused_for_no_longer_than_what_was_read_takes_to_get_stable(rig, monkeypatch):
    waits = []
    monkeypatch.setattr(rig.worker, "_wait", lambda now: waits.append(rig.record(0).epoch))
    before = rig.record(0).epoch
    rig.brings(0, 1)
    rig.turn()
    rig.ours.assign(frozenset({0, 1, 3}))
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
    rig.ours.assign(frozenset({0, 1, 3}))
    rig.turn()
    rig.worker._check_at = 0.0
    rig.turn()
    epoch = rig.record(3).epoch
    assert [rig.record(p).epoch == epoch for p in (0, 1, 3)] == [True, False, True]
    rig.ours.assign(frozenset({0, 1, 2}))
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
    rig.ours.assign(frozenset({0, 1, 3}))
    rig.turn()
    rig.ours.assign(frozenset({0, 1}))
    rig.turn()
    assert rig.ours.working == {0, 1}
    theirs = rig.owner.begin(3, rig.owner.next_epoch(), "n2").epoch
    rig.ours.assign(frozenset({0, 1, 3}))
    rig.turn()
    rig.write()
    rig.turn(2)
    assert rig.record(3).epoch == rig.record(0).epoch > theirs


def test_nothing_is_begun_any_more_after_a_rollback(rig):
    before = rig.record(0).epoch
    rig.feed.events += [(ROLLBACK, 0, ORIGIN)]
    rig.turn()
    rig.ours.assign(frozenset({0, 1, 3}))
    n_reads = rig.feed.n_reads
    rig.turn(2)
    assert rig.feed.n_reads == n_reads + 2, "other vbuckets may roll back too"
    assert (rig.record(0).epoch, rig.record(3).epoch) == (before, 0)
    assert rig.worker._roll_back() == ROLLED_BACK
    assert rig.record(0).epoch > rig.record(1).epoch == before


def test_partition_that_goes_and_comes_again_begins_anew(rig):
    rig.brings(0, 1)
    rig.turn()
    rig.ours.assign(frozenset({1}))
    rig.turn()
    rig.ours.assign(frozenset({0, 1}))
    rig.turn()
    rig.write()
    rig.turn(4)
    assert rig.ours.working == {0, 1}
    assert rig.feed.streams == {0: 1, 1: 0, 2: 0, 3: 0}
    assert rig.record(0).stable == (1, 0)


def test_worker_whose_partition_somebody_else_has_begun_stops_when_it_gains_another(rig):
    rig.owner.begin(1, rig.owner.next_epoch(), "n2")
    rig.ours.assign(frozenset({0, 1, 2}))
    rig.worker._check_at = float("inf")
    with pytest.raises(StaleEpoch):
        rig.turn()
    assert rig.record(1).owner == "n2"
