"""What a node believes of its leases, from scripted answers: counted from before it asked, by its own clock."""

import pytest

from channelindex.errors import CoordinationUnavailable
from coordinator.membership import Membership
from coordinator.tick import Identity, LiveMember, TickAnswer, View

TTL_S = 12.0
ROUND_TRIP_S = 1.5


class ScriptedTicker:
    """Answers every request for node "n1" of one that holds what it took; each takes a while."""

    def __init__(self, others=()):
        self.now = 100.0
        self.held = set()
        self.others = tuple(others)
        self.requests = []
        self.error = None
        self.accepted = True
        self.woken = []

    def tick(self, request):
        self.requests.append(request)
        self.now += ROUND_TRIP_S
        if self.error:
            raise self.error
        if self.accepted:
            self.held = (self.held | set(request.take)) - set(request.release)
        me = LiveMember("n1", 1, request.leaving, tuple(sorted(self.held)))
        answer = TickAnswer(self.accepted, False, len(request.release), len(self.requests), 4000, -1, 0, 0)
        return answer, View((me, *self.others), (), ())

    def wake(self, nodes):
        self.woken += nodes


@pytest.fixture
def ticker():
    return ScriptedTicker()


class CheckedMembership(Membership):
    """Asserts after every tick what has to hold then."""

    def tick(self):
        wait_s = super().tick()
        self.check()
        return wait_s


def member(ticker, n_partitions=2):
    return CheckedMembership(ticker, Identity("n1", "i1", TTL_S), n_partitions, 8, lambda: ticker.now)


def test_lease_counts_from_before_the_request_was_sent(ticker):
    node = member(ticker)
    node.tick()
    sent_at = ticker.now - ROUND_TRIP_S
    assert node.book.unexpired(sent_at) == dict.fromkeys([0, 1], sent_at + TTL_S - node.timing.margin_s)


def test_lease_that_is_not_renewed_runs_out_by_our_own_clock(ticker):
    node = member(ticker)
    node.tick()
    deadline = ticker.now - ROUND_TRIP_S + TTL_S - node.timing.margin_s
    ticker.error = CoordinationUnavailable("away")
    with pytest.raises(CoordinationUnavailable):
        node.tick()
    assert node.book.unexpired(deadline - 0.01).keys() == {0, 1}
    assert node.book.unexpired(deadline) == {}
    assert node.book.expired(deadline) == {0, 1}


def test_renewal_asks_for_what_is_held_and_not_for_what_ran_out(ticker):
    node = member(ticker)
    node.tick()
    node.tick()
    assert ticker.requests[-1].take == [0, 1]
    ticker.now += TTL_S
    ticker.accepted = False
    node.tick()
    assert ticker.requests[-1].take == []


def test_what_is_released_is_given_up_at_once_and_asked_until_it_got_through(ticker):
    node = member(ticker)
    node.tick()
    node.release([1])
    assert node.book.unexpired(ticker.now).keys() == {0}, "nobody here works on it any more"
    ticker.error = CoordinationUnavailable("away")
    with pytest.raises(CoordinationUnavailable):
        node.tick()
    ticker.error = None
    node.tick()
    assert [request.release for request in ticker.requests if request.release] == [[1], [1]]


def test_name_that_is_somebody_elses_holds_nothing(ticker):
    ticker.accepted = False
    node = member(ticker)
    node.tick()
    assert node.book.unexpired(ticker.now) == {}
    assert node.refused_s == 4.0


def test_leases_are_lost_at_once_when_another_life_takes_over_our_name(ticker):
    node = member(ticker)
    node.tick()
    ticker.accepted = False
    node.tick()
    assert ticker.held == {0, 1}, "they are held under our name"
    assert node.book.unexpired(ticker.now) == {}


def test_leaving_node_takes_nothing_and_has_left_when_it_holds_nothing(ticker):
    node = member(ticker)
    node.tick()
    node.leaving = True
    node.tick()
    assert not node.has_left
    assert node.due_releases == (0, 1)
    node.release(node.due_releases)
    node.tick()
    assert node.has_left
    assert not ticker.held


def test_leases_beyond_the_index_are_given_back_and_never_worked_on(ticker):
    """Of an index that was lost and made anew with fewer partitions, while our name lived on."""
    ticker.held = {0, 1, 5, 7}
    node = member(ticker)
    node.tick()
    assert node.book.unexpired(ticker.now).keys() == {0, 1}
    node.tick()
    assert ticker.held == {0, 1}
