"""What a feed worker read is in the index before anything counts on it, whatever happens in between."""

import time
from contextlib import closing

import pytest

from channelindex.errors import OutcomeUnknown, StaleEpoch, StoreUnavailable
from channelindex.feeds.base import ROLLBACK
from channelindex.model import ORIGIN
from tests.support.feed_rig import FeedRig
from workers.pipeline import feed_worker
from workers.pipeline.feed_worker import BUSY_ROUNDS, EPOCH_CHECK_S, MUCH_EVENTS, ReadPace


@pytest.fixture
def rig():
    with closing(FeedRig([0, 1])) as made:
        yield made


def test_stable_clock_moves_when_the_writer_has_committed_and_no_sooner(rig):
    rig.brings(0, 5)
    rig.turn(2)
    assert rig.record(0).stable == (0, 0)
    rig.write()
    rig.turn()
    assert rig.record(0).stable == (5, 0)


def test_what_is_committed_but_not_stable_yet_holds_a_join_back(rig):
    """Else the next epoch would start below it, and the entry be dead though the clock moves over it."""
    before = rig.record(0).epoch
    rig.brings(0, 5)
    rig.turn(advances=False)
    rig.write()
    rig.ours.assign(frozenset({0, 1, 3}))
    rig.turn(2, advances=False)
    assert rig.record(0).epoch == before
    rig.turn()
    assert rig.record(0).epoch > before
    assert rig.record(0).history[-1].starts == (5, 0)


def test_document_in_quarantine_that_the_store_does_not_have_yet_holds_a_join_back(rig):
    before = rig.record(0).epoch
    rig.brings(0, 5, key=b"k" * 300)
    rig.turn(advances=False)
    assert rig.worker._quarantined
    rig.ours.assign(frozenset({0, 1, 3}))
    rig.turn(2, advances=False)
    assert rig.record(0).epoch == before
    rig.turn(2)
    assert rig.record(0).epoch > before


def test_what_was_committed_of_a_history_that_is_no_more_does_not_move_the_stable_clock(rig):
    rig.brings(0, 5)
    rig.brings(2, 7)
    rig.turn(advances=False)
    rig.write()
    rig.turn(advances=False)
    rig.feed.events += [(ROLLBACK, 0, ORIGIN)]
    rig.turn()
    assert rig.record(0).stable == (0, 0)
    assert rig.record(1).stable == (7, 0), "other vbuckets go on"


def test_partition_is_not_let_go_while_what_is_committed_of_it_is_not_stable(rig):
    rig.brings(0, 5)
    rig.turn(advances=False)
    rig.write()
    rig.ours.assign(frozenset({1}))
    rig.turn(2, advances=False)
    assert rig.ours.working == {0, 1}
    rig.turn()
    assert rig.ours.working == {1}
    assert rig.record(0).stable == (5, 0)


def test_worker_that_is_the_owner_no_more_rolls_nothing_back(rig):
    theirs = rig.owner.begin(0, rig.owner.next_epoch(), "n2")
    rig.feed.events += [(ROLLBACK, 0, ORIGIN)]
    rig.worker._check_at = float("inf")
    rig.turn()
    with pytest.raises(StaleEpoch):
        rig.worker._roll_back()
    assert rig.record(0) == theirs


def test_partition_is_not_let_go_while_the_round_that_is_built_has_a_change_of_it(rig):
    for seqno in range(1, BUSY_ROUNDS + 1):
        rig.brings(2, seqno)
        rig.turn()
    rig.brings(0, 1)
    rig.turn()
    assert rig.worker._builder.n_events == 1, "the writer is busy, so the next round grows"
    rig.ours.assign(frozenset({1}))
    rig.turn(2)
    assert rig.ours.working == {0, 1}
    for _ in range(2):
        rig.write()
        rig.turn(2)
    assert rig.ours.working == {1}
    assert rig.record(0).stable == (1, 0)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), OutcomeUnknown("no reply")])
def test_stable_clock_that_the_store_refused_to_move_is_moved_later(rig, monkeypatch, error):
    def refuse(*_arguments):
        raise error

    rig.brings(0, 5)
    rig.turn()
    rig.write()
    with monkeypatch.context() as patch:
        patch.setattr(rig.owner, "advance", refuse)
        rig.turn()
    assert rig.record(0).stable == (0, 0)
    rig.turn()
    assert rig.record(0).stable == (5, 0)


def test_nothing_is_acknowledged_while_a_ring_has_no_room(rig, monkeypatch):
    acknowledged = []
    monkeypatch.setattr(rig.feed, "acknowledge", lambda: acknowledged.append(True))
    while rig.ring.try_publish(bytes(1000)):
        pass
    rig.brings(0, 1)
    rig.turn(2)
    assert not acknowledged
    assert rig.worker._stats.get("stalls") > 0
    rig.ring.take(1 << 20)
    rig.ring.commit()
    rig.turn()
    assert acknowledged


def test_drain_waits_until_all_that_was_read_is_stable(rig):
    rig.brings(0, 5)
    rig.turn()
    beats = []

    def beat():
        beats.append(rig.record(0).stable)
        if len(beats) == 3:
            rig.write()
            rig.worker._advance_at = time.monotonic() + 0.05
            rig.worker._space_bell.ring()

    rig.worker._stats = _Beating(rig.worker._stats, beat)
    rig.worker._drain()
    assert beats[:3] == [(0, 0)] * 3
    assert rig.record(0).stable == (5, 0)


class _Beating:
    """The worker's words, with something that happens at each beat."""

    def __init__(self, stats, beat):
        self._stats = stats
        self.beat = beat

    def __getattr__(self, name):
        return getattr(self._stats, name)


def test_what_comes_within_a_beat_is_one_read_and_one_round(rig, monkeypatch):
    rig.worker._pace = ReadPace(beat_s=3600.0)
    monkeypatch.setattr(rig.worker, "_wait", lambda now: None)
    rig.brings(0, 1)
    rig.turn()
    assert rig.feed.n_reads == 1, "the first change of a quiet source does not wait"
    for seqno in range(2, 52):
        rig.brings(0, seqno)
        rig.turn()
    assert rig.feed.n_reads == 1
    rig.worker._pace.read_at = 0.0  # the beat
    rig.turn()
    assert rig.feed.n_reads == 2
    rig.write()
    rig.turn()
    assert rig.record(0).stable == (51, 0)


def test_what_is_committed_becomes_stable_though_the_next_read_is_not_due(rig):
    rig.worker._pace = ReadPace(beat_s=3600.0)
    assert rig.indexes(0, 5)
    assert rig.feed.n_reads == 1


def test_stable_clock_moves_less_often_while_the_writers_are_behind(rig):
    due = rig.worker._advance_due
    for seqno in range(1, BUSY_ROUNDS + 1):
        assert rig.worker._advance_due == due
        rig.brings(0, seqno)
        rig.turn()
        due = rig.worker._advance_at
    assert rig.worker._advance_due > due
    rig.write()
    rig.turn()
    assert rig.record(0).stable == (BUSY_ROUNDS, 0), "all of it, when it is due"


def test_a_look_at_the_epochs_goes_with_the_move_that_is_on_its_way(rig):
    """On its own, it would have that wait until the stable clock may move again."""
    rig.worker._check_at = 100.0
    assert rig.worker._check_due(100.0)
    rig.brings(0, 5)
    rig.turn()
    rig.worker._check_at = 100.0
    assert not rig.worker._check_due(100.0)
    assert rig.worker._check_due(100.0 + EPOCH_CHECK_S), "the writers may be behind for long"
    rig.write()
    rig.worker._unadvanced.update(rig.outbox.pop_committed())
    assert rig.worker._check_due(100.0)


def lingering(rig, monkeypatch, wakes):
    """A worker that has read and has handed over, and will be woken by what happens in *wakes*."""
    rig.worker._pace = ReadPace(beat_s=3600.0)
    with monkeypatch.context() as patches:
        patches.setattr(rig.worker, "_wait", lambda now: None)
        rig.brings(0, 5)
        rig.turn()
    rig.worker._advance_at = 0.0
    waking = iter(wakes)

    def wait(sources, timeout_s):
        assert [*sources] == [rig.worker._space_bell]
        happens = next(waking, None)
        if happens is not None:
            happens()
        return happens is not None

    monkeypatch.setattr(feed_worker, "wait_readable", wait)


def test_between_beats_the_clock_moves_once_all_writers_have_committed(rig, monkeypatch):
    """And that is no turn: nothing else is looked at."""
    lingering(rig, monkeypatch, wakes=[lambda: None, lambda: None, rig.write])
    stable = []
    monkeypatch.setattr(time, "sleep", lambda left_s: stable.append(rig.record(0).stable))  # nothing is on its way
    monkeypatch.setattr(rig.worker, "_turn", lambda: pytest.fail("a turn before the next read"))
    rig.worker._wait(time.monotonic())
    assert stable
    assert set(stable) == {(5, 0)}


def test_between_beats_a_lost_bell_is_made_up_for_when_the_next_read_is_due(rig, monkeypatch):
    lingering(rig, monkeypatch, wakes=[])
    rig.write()
    rig.worker._wait(time.monotonic())  # until the next read is due, or MAX_WAIT_S: the heartbeat must go on
    assert rig.record(0).stable == (5, 0)


@pytest.mark.parametrize("reason", ["room", "round"])
def test_between_beats_what_waits_for_the_writers_is_handed_over_as_soon_as_they_go_on(rig, monkeypatch, reason):
    lingering(rig, monkeypatch, wakes=[lambda: None])
    if reason == "room":
        monkeypatch.setattr(type(rig.outbox), "holds_back", True)
    else:
        rig.worker._builder.n_events = 1
    rig.worker._wait(time.monotonic())  # would wait for another bell, and fail


def test_much_is_read_on_at_once(rig):
    rig.worker._pace = ReadPace(beat_s=3600.0)
    for seqno in range(1, MUCH_EVENTS + 1):
        rig.brings(0, seqno)
    rig.turn(2)
    assert rig.feed.n_reads == 2


@pytest.fixture
def growing(rig, monkeypatch):
    """Has rounds of ten changes grow, up to twenty, and for an hour."""
    for name, value in (("LARGE_ROUND_EVENTS", 10), ("ROUND_EVENTS", 20), ("LARGE_ROUND_S", 3600.0), ("GROW_S", 0.0)):
        monkeypatch.setattr(feed_worker, name, value)
    return rig


def brings_changes(rig, first, last):
    for seqno in range(first, last + 1):
        rig.brings(0, seqno)


def test_a_large_round_grows_until_it_is_full(growing):
    for first, last in ((1, 10), (11, 19)):
        brings_changes(growing, first, last)
        growing.turn(2)
        assert growing.outbox.empty
    growing.brings(0, 20)
    growing.turn()
    assert (growing.outbox.n_rounds, growing.outbox.n_events) == (1, 20)


def test_a_large_round_grows_only_for_a_while(growing):
    brings_changes(growing, 1, 10)
    growing.turn()
    assert growing.outbox.empty
    growing.worker._round_until = 0.0
    growing.turn()
    assert growing.outbox.n_events == 10
    brings_changes(growing, 11, 19)
    growing.turn()
    assert (growing.outbox.n_rounds, growing.outbox.n_events) == (2, 19), "nine are few"


def test_while_a_round_grows_the_source_may_send_on(growing, monkeypatch):
    """Else one whose window is smaller than a large round would wait until that is handed over."""
    acknowledged = []
    monkeypatch.setattr(growing.feed, "acknowledge", lambda: acknowledged.append(growing.worker._builder.n_events))
    brings_changes(growing, 1, 10)
    growing.turn()
    assert growing.outbox.empty
    assert acknowledged == [10]


def test_a_round_grows_no_more_once_a_read_brings_little(growing):
    growing.worker._pace = ReadPace(beat_s=3600.0)
    growing.worker._pace.note = lambda now, *_: setattr(growing.worker._pace, "read_at", now)
    brings_changes(growing, 1, 10)
    growing.turn()
    assert growing.outbox.empty
    growing.worker._pace.note = lambda now, *_: setattr(growing.worker._pace, "read_at", now + 3600.0)
    growing.worker._linger = lambda now: None
    growing.brings(0, 11)
    growing.turn()
    assert growing.outbox.n_events == 11


def test_a_round_grows_no_more_once_partitions_come(growing):
    brings_changes(growing, 1, 10)
    growing.turn()
    growing.ours.assign(frozenset({0, 1, 3}))
    growing.turn()
    assert growing.outbox.n_events == 10
    growing.write()
    growing.turn(2)
    assert growing.ours.working == {0, 1, 3}


@pytest.mark.parametrize(("interval_s", "n_ticks"), [(float("inf"), 1), (0.0, 4)])
def test_feed_whose_reads_all_bring_something_is_ticked_from_time_to_time(rig, monkeypatch, interval_s, n_ticks):
    monkeypatch.setattr(feed_worker, "LOOK_INTERVAL_S", interval_s)
    rig.feed.asks_for_ticks = False
    for seqno in range(1, 5):
        rig.brings(0, seqno)
        rig.turn()
    assert rig.feed.n_ticks == n_ticks, "the first read had nothing before it"


def test_feed_that_brings_nothing_is_ticked_at_each_read_and_so_is_one_that_asks_for_it(rig, monkeypatch):
    monkeypatch.setattr(feed_worker, "LOOK_INTERVAL_S", float("inf"))
    monkeypatch.setattr(rig.worker, "_wait", lambda now: None)
    rig.feed.asks_for_ticks = False
    rig.turn(3)
    assert rig.feed.n_ticks == 3
    rig.feed.asks_for_ticks = True
    for seqno in range(1, 4):
        rig.brings(0, seqno)
        rig.turn()
    assert rig.feed.n_ticks == 6
