"""A lease counts from before it was asked for, and stops counting before anybody else may have it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.lease import ATTEMPTS, LeaseBook, LeaseTiming

TIMING = LeaseTiming(12.0)
DEADLINE_AFTER_S = 11.0


@given(st.floats(0.1, 600.0))
def test_time_budget_leaves_room_for_a_lost_renewal(ttl_s):
    timing = LeaseTiming(ttl_s)
    needed_s = ATTEMPTS * timing.period_s + timing.request_timeout_s + timing.margin_s
    assert needed_s < ttl_s
    assert timing.period_s == pytest.approx(ttl_s / 3)


def test_deadline_counts_from_when_the_request_was_sent():
    book = LeaseBook(TIMING)
    book.renew([1, 2], sent_at=100.0)
    assert book.unexpired(now=105.0) == {1: 100.0 + DEADLINE_AFTER_S, 2: 100.0 + DEADLINE_AFTER_S}


def test_lease_is_not_held_from_its_deadline_on():
    book = LeaseBook(TIMING)
    book.renew([1], sent_at=100.0)
    deadline = 100.0 + DEADLINE_AFTER_S
    assert book.unexpired(deadline - 0.001) == {1: deadline}
    assert book.expired(deadline - 0.001) == set()
    assert book.unexpired(deadline) == {}
    assert book.expired(deadline) == {1}


def test_reply_that_arrives_after_its_own_deadline_grants_nothing():
    book = LeaseBook(TIMING)
    book.renew([1], sent_at=100.0)
    assert book.unexpired(now=500.0) == {}


def test_renewal_replaces_what_was_held_before():
    book = LeaseBook(TIMING)
    book.renew([1, 2], sent_at=100.0)
    book.renew([2, 3], sent_at=104.0)
    assert book.unexpired(now=105.0) == {2: 104.0 + DEADLINE_AFTER_S, 3: 104.0 + DEADLINE_AFTER_S}


def test_what_was_given_up_is_neither_held_nor_expired():
    book = LeaseBook(TIMING)
    book.renew([1, 2], sent_at=100.0)
    book.give_up([1, 9])
    assert book.unexpired(now=105.0) == {2: 100.0 + DEADLINE_AFTER_S}
    assert book.expired(now=200.0) == {2}


@given(
    st.lists(
        st.tuples(st.floats(0, 20), st.floats(0, 20), st.floats(0, 20)),
        max_size=20,
    )
)
def test_nothing_is_held_once_redis_may_have_given_it_away(steps):
    """Against an oracle that knows when the script ran: after asking, before the reply, after any delay of either."""
    book = LeaseBook(TIMING)
    now = 0.0
    for until_run_s, until_reply_s, until_look_s in steps:
        sent_at, ran_at = now, now + until_run_s
        now = ran_at + until_reply_s
        book.renew([1], sent_at)
        now += until_look_s
        if now >= ran_at + TIMING.ttl_s:
            assert book.unexpired(now) == {}
