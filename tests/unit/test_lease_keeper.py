"""What the lease keeper makes of a Redis that fails and of the supervisor's orders; nothing listens where it asks."""

import time
from contextlib import closing

import pytest

from channelindex import exits
from channelindex.errors import AuthenticationFailed, CoordinationUnavailable
from coordinator.keeper import LeaseKeeper
from coordinator.keeper_link import keeper_link
from coordinator.tick import Identity

NOBODY = "redis://127.0.0.1:1"


@pytest.fixture
def ends():
    ours, its = keeper_link()
    with closing(ours), closing(its):
        yield ours, its


@pytest.fixture
def keeper(ends):
    return LeaseKeeper(NOBODY, "test", 4, Identity("n1", "i1", 6.0), ends[1])


def fails(keeper, monkeypatch, error):
    def tick():
        raise error

    monkeypatch.setattr(keeper._membership, "tick", tick)
    keeper._tick()


def report(keeper, ends):
    keeper._report()
    held = ends[0].poll()
    assert held is not None
    return held


def test_redis_that_is_not_there_is_reported_as_trouble_and_asked_again_soon(keeper, ends):
    keeper._tick()
    trouble = report(keeper, ends).trouble
    assert trouble is not None
    assert trouble.exit_code == exits.COORDINATION
    assert "coordination.redis" in trouble.message
    assert keeper._next_tick_at < time.monotonic() + 1.0


def test_each_failure_in_a_row_waits_longer_up_to_half_a_period(keeper, monkeypatch):
    for _ in range(20):
        fails(keeper, monkeypatch, CoordinationUnavailable("away"))
        assert keeper._next_tick_at <= time.monotonic() + keeper._membership.timing.period_s / 2


def test_rights_that_were_never_there_are_a_wrong_setting_and_lost_ones_may_come_back(keeper, ends, monkeypatch):
    fails(keeper, monkeypatch, AuthenticationFailed("refused"))
    first = report(keeper, ends).trouble
    monkeypatch.setattr(keeper._membership, "tick", lambda: 1.0)
    keeper._tick()
    assert report(keeper, ends).trouble is None
    fails(keeper, monkeypatch, AuthenticationFailed("refused"))
    later = report(keeper, ends).trouble
    assert (first.exit_code, later.exit_code) == (exits.AUTH, exits.COORDINATION)


def test_leases_that_ran_out_meanwhile_are_named_and_not_reported_as_held(keeper, ends, monkeypatch):
    keeper._membership.book.renew([1, 2], time.monotonic() - 100.0)
    fails(keeper, monkeypatch, CoordinationUnavailable("away"))
    held = report(keeper, ends)
    assert held.leases == {}
    assert "2 leases have expired meanwhile" in held.trouble.message


def test_orders_are_taken_over_and_a_release_cannot_wait(keeper, ends):
    keeper._membership.book.renew([1, 2], time.monotonic())
    ends[0].publish_status('{"a": 1}')
    assert not keeper._obey()
    assert keeper._membership.status == '{"a": 1}'
    ends[0].release([1])
    assert keeper._obey()
    assert keeper._membership.book.unexpired(time.monotonic()).keys() == {2}
    ends[0].drain()
    assert keeper._obey()
    assert keeper._membership.leaving
