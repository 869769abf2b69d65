"""One node's part in sharing out, tick by tick, on the real scripts with the clock in our hands."""

from typing import Any

import pytest

from channelindex.redis.link import Link
from coordinator.lease_redis import CoordinationKeys, connect
from coordinator.membership import Membership
from coordinator.tick import Identity, Ticker, order

INDEX = "membership"
N_PARTITIONS = 12
TTL_S = 9.0
START_S = 1_700_000_000.0


class Rig:
    """Nodes on one clock, and whom they wake."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.now = 0.0
        self.woken: list[str] = []

    def node(self, name: str, max_moves: int = N_PARTITIONS, **identity: Any) -> Membership:
        rig = self

        class NotingTicker(Ticker):
            def wake(self, nodes):
                names = sorted(nodes)
                rig.woken += names
                super().wake(names)

        me = Identity(name, f"{name}-1", TTL_S, **identity)
        ticker = NotingTicker(self.link, INDEX, me, lambda: int((START_S + self.now) * 1000))
        return Membership(ticker, me, N_PARTITIONS, max_moves, lambda: self.now)

    def tick(self, node: Membership) -> tuple[float, list[str]]:
        """One tick; how long the next may wait, and who was woken."""
        self.woken.clear()
        wait_s = node.tick()
        node.check()
        return wait_s, list(self.woken)

    def give_back(self, node: Membership) -> list[str]:
        """Release what is wanted; who was woken."""
        node.release(node.due_releases)
        return self.tick(node)[1]


@pytest.fixture
def rig(redis_url):
    with connect(redis_url, 5.0) as link:
        yield Rig(link)


def _held(rig: Rig, node: Membership) -> set[int]:
    return set(node.book.unexpired(rig.now))


def test_joiner_wakes_the_holders_of_what_is_meant_for_it_and_they_wake_it(rig):
    a, b, c = rig.node("a"), rig.node("b"), rig.node("c")
    rig.tick(a)
    assert rig.tick(b)[1] == ["a"]
    rig.tick(a)
    assert rig.give_back(a) == ["b"]
    assert rig.tick(b)[1] == []
    assert (_held(rig, a), _held(rig, b)) == (set(range(6)), set(range(6, 12)))
    assert rig.tick(c)[1] == ["a", "b"]


def test_quiet_tick_wakes_nobody_and_waits_for_about_a_period(rig):
    a, b = rig.node("a"), rig.node("b")
    for node in (a, b, a):
        rig.tick(node)
    rig.give_back(a)
    rig.tick(b)
    rig.now += TTL_S / 3
    rig.tick(a)
    wait_s, woken = rig.tick(b)
    assert woken == []
    assert 0.8 * TTL_S / 3 <= wait_s <= TTL_S / 3


def test_who_sees_a_peer_die_wakes_those_who_take_what_it_had(rig):
    a, b, c = rig.node("a"), rig.node("b"), rig.node("c")
    for node in (a, b, c, a, b):
        rig.tick(node)
        if node.due_releases:
            rig.give_back(node)
    rig.tick(c)
    assert [len(_held(rig, node)) for node in (a, b, c)] == [4, 4, 4]
    rig.now += TTL_S * 0.9
    wait_s, _ = rig.tick(a)
    assert wait_s < TTL_S * 0.1 + 0.1, "be there when the others' time is over"
    rig.tick(b)
    rig.now += TTL_S * 0.1
    assert rig.tick(a)[1] == ["b"]
    rig.tick(b)
    assert _held(rig, a) | _held(rig, b) == set(range(N_PARTITIONS))


def test_no_more_move_at_a_time_than_allowed_and_those_that_do_stay_the_same(rig):
    a, b = rig.node("a", max_moves=2), rig.node("b")
    for node in (a, b, a):
        rig.tick(node)
    assert a.due_releases == (6, 7)
    a.release([7])
    rig.tick(a)
    assert a.due_releases == (6, 8)


def test_leaving_node_gives_everything_back_at_once_and_says_so_when_it_has(rig):
    a, b = rig.node("a", max_moves=2), rig.node("b")
    rig.tick(a)
    rig.tick(b)
    a.leaving = True
    rig.tick(a)
    assert len(a.due_releases) == N_PARTITIONS
    assert not a.has_left
    assert rig.give_back(a) == ["b"]
    assert a.has_left
    rig.tick(b)
    assert _held(rig, b) == set(range(N_PARTITIONS))


def test_heavier_node_gets_more(rig):
    a, b = rig.node("a"), rig.node("b", weight=2)
    for node in (a, b, a):
        rig.tick(node)
    rig.give_back(a)
    rig.tick(b)
    assert (len(_held(rig, a)), len(_held(rig, b))) == (4, 8)


def test_name_that_is_taken_holds_nothing_and_tells_for_how_long(rig):
    a = rig.node("a")
    rig.tick(a)
    rig.now += 4.0
    other = Membership(
        Ticker(rig.link, INDEX, Identity("a", "other", TTL_S), lambda: int((START_S + rig.now) * 1000)),
        Identity("a", "other", TTL_S),
        N_PARTITIONS,
        N_PARTITIONS,
        lambda: rig.now,
    )
    other.tick()
    assert other.refused_s == pytest.approx(TTL_S - 4.0)
    assert not other.book.unexpired(rig.now)


def test_asked_partition_is_given_up_and_taken_again(rig):
    a = rig.node("a")
    rig.tick(a)
    order(rig.link, INDEX, "release", [3], ["a"])
    rig.tick(a)
    assert a.due_releases == (3,)
    rig.give_back(a)
    assert a.due_releases == ()
    assert _held(rig, a) == set(range(N_PARTITIONS))
    assert rig.link.execute("HLEN", CoordinationKeys(INDEX).asked) == 0


def test_partitions_that_nobody_owns_are_known_with_their_age(rig):
    a = rig.node("a")
    rig.tick(a)
    order(rig.link, INDEX, "drain", ["a"], [])
    rig.tick(a)
    rig.give_back(a)
    since = rig.now
    rig.now += 5.0
    rig.tick(a)
    assert a.free_since == dict.fromkeys(range(N_PARTITIONS), since)
