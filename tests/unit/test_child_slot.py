"""One child after the other in a slot: when the next one may start, what a late one costs, what its words say."""

import signal
from contextlib import closing

import pytest

from channelindex import exits
from workers.node.child_slot import RESTART_FIRST_S, RESTART_MAX_S, SETTLED_S, STALE_MAX_S, ChildSlot
from workers.node.decide import Name
from workers.pipeline.assignment import assignment_link
from workers.pipeline.batch_writer import TORN
from workers.pipeline.feed_worker import REWOUND, ROLLED_BACK, STALE
from workers.telemetry.board import FEED_WORKER, Board
from workers.telemetry.monitor import NOT_LISTENING


class FakeChild:
    """A child that ends when the test says so."""

    pid = 4711

    def __init__(self):
        self.signals = []
        self.code = None

    def signal(self, signum):
        self.signals.append(signum)

    def reap(self):
        return self.code

    def fileno(self):
        return -1


@pytest.fixture
def slot():
    return ChildSlot(Name(FEED_WORKER, 0), Board(1).feeds[0])


def lives(slot, born_at, ends_at, code):
    """A whole life of a child; the slot after it."""
    child = FakeChild()
    slot.attach(child, born_at)
    assert slot.reap(born_at) is None
    assert slot.view(born_at).is_alive
    child.code = code
    assert slot.reap(ends_at) == code
    return slot.view(ends_at)


def test_empty_slot_may_start_and_has_nothing_to_reap(slot):
    view = slot.view(0.0)
    assert (view.may_start, view.is_alive, view.working, view.silent_s) == (True, False, frozenset(), 0.0)
    assert slot.reap(0.0) is None
    slot.stop(1.0)
    slot.kill("nobody is there")
    assert not slot.view(2.0).is_overdue


def waits_after(slot, code, times, now):
    """Seconds until the next one may start, for each of so many children that end young with *code* from *now* on."""
    waits = []
    for _ in range(times):
        assert not lives(slot, now, now, code).may_start
        waits.append(next(w / 100 for w in range(1, 10_000) if slot.view(now + w / 100).may_start))
        now += waits[-1]
    return waits


def test_child_that_dies_young_is_replaced_later_and_later(slot):
    waits = waits_after(slot, exits.INTERNAL, 12, 100.0)
    assert waits[0] <= RESTART_FIRST_S + 0.01
    assert waits[-1] <= RESTART_MAX_S + 0.01
    assert max(waits[6:]) > 10 * waits[0]
    assert slot.restarts == 12


def test_worker_that_lost_its_epoch_is_replaced_within_a_second_however_often(slot):
    """But never at once: a store that fails over without end must not cost a core."""
    waits = waits_after(slot, STALE, 12, 100.0)
    assert waits[0] <= RESTART_FIRST_S + 0.01
    assert max(waits) <= STALE_MAX_S + 0.01
    assert min(waits[6:]) >= STALE_MAX_S / 2
    assert slot.restarts == 12


def test_lost_epochs_and_faults_do_not_delay_each_other(slot):
    waits_after(slot, STALE, 12, 100.0)
    assert waits_after(slot, exits.INTERNAL, 12, 200.0)[0] <= RESTART_FIRST_S + 0.01
    assert max(waits_after(slot, STALE, 12, 400.0)) <= STALE_MAX_S + 0.01


def test_worker_that_lived_long_before_it_lost_its_epoch_is_replaced_soon(slot):
    waits_after(slot, STALE, 12, 100.0)
    lives(slot, 200.0, 200.0 + SETTLED_S, STALE)
    assert slot.view(200.0 + SETTLED_S + RESTART_FIRST_S).may_start


def test_child_that_lived_long_ends_the_backoff(slot):
    for _ in range(8):
        lives(slot, 100.0, 100.0, exits.INTERNAL)
    lives(slot, 200.0, 200.0 + SETTLED_S, exits.INTERNAL)
    assert slot.view(200.0 + SETTLED_S + RESTART_FIRST_S).may_start


@pytest.mark.parametrize("code", [exits.OK, ROLLED_BACK, REWOUND])
def test_child_that_has_done_its_work_is_followed_at_once_and_is_no_restart(slot, code):
    assert lives(slot, 100.0, 100.0, code).may_start
    assert slot.restarts == 0


def test_child_that_was_asked_to_stop_is_followed_at_once_and_is_no_restart(slot):
    child = FakeChild()
    slot.attach(child, 100.0)
    slot.stop(130.0)
    slot.stop(999.0)
    assert child.signals == [signal.SIGTERM]
    assert not slot.view(129.9).is_overdue
    assert slot.view(130.0).is_overdue
    slot.kill("late")
    slot.kill("late")
    assert child.signals == [signal.SIGTERM, signal.SIGKILL], "once is enough"
    child.code = -9
    slot.reap(130.1)
    assert slot.restarts == 0
    view = slot.view(130.1)
    assert (view.may_start, view.is_stopping, view.is_overdue) == (True, False, False)


def test_what_a_feed_worker_may_work_on_is_known_until_it_is_reaped(slot):
    ours, its = assignment_link(frozenset({1, 2}))
    with closing(its):
        child = FakeChild()
        slot.attach(child, 100.0, ours)
        slot.assign(frozenset({2, 3}))
        assert slot.view(100.0).working == {1, 2, 3}
        child.code = -9
        slot.reap(101.0)
        assert slot.view(101.0).working == frozenset()
        assert ours.closed


def test_machine_without_a_process_to_spare_is_asked_again_later(slot):
    slot.failed_to_start(OSError("no process"), 100.0)
    assert not slot.view(100.0).may_start
    assert slot.view(100.0 + RESTART_FIRST_S).may_start


def test_new_child_is_not_taken_for_silent_because_of_the_one_before(slot):
    slot.stats.set(beat_ns=1)
    slot.attach(FakeChild(), 100.0)
    assert slot.view(100.0).silent_s < 60.0


def test_children_end_for_different_reasons_with_different_codes():
    own = [ROLLED_BACK, STALE, REWOUND, TORN, NOT_LISTENING]
    assert len({*own, *exits.MEANING_BY_CODE}) == len(own) + len(exits.MEANING_BY_CODE)
