"""What one tick does in Redis, with the clock in our hands, and how its errors come out."""

import socket
from typing import NamedTuple

import msgspec
import pytest
import redis

from channelindex.errors import AuthenticationFailed, ConfigInvalid, CoordinationUnavailable
from channelindex.redis.link import Link
from coordinator.cluster_state import MAX_EVENTS, PartitionState, read_cluster
from coordinator.lease_redis import CoordinationKeys, connect
from coordinator.tick import FORGET_AFTER_S, Identity, Ticker, TickRequest, View, order

INDEX = "test"
TTL_MS = 10_000
START_MS = 1_700_000_000_000


@pytest.fixture
def link(redis_url):
    with connect(redis_url, timeout_s=5.0) as link:
        yield link


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


class Ticked(NamedTuple):
    """What one tick answered; the view is always sent."""

    accepted: bool
    joined: bool
    own_remaining_ms: int
    next_end_ms: int
    live: dict[str, tuple[int, ...]]
    leases: dict[int, str]
    homes: dict[int, str]
    asked: tuple[int, ...]
    draining: list[str]


class Node:
    """One life of a node, with the clock in our hands."""

    def __init__(self, link: Link, identity: Identity) -> None:
        self.identity = identity
        self.now_ms: int | None = None
        self._ticker = Ticker(link, INDEX, identity)
        self._ticker._clock = lambda: self.now_ms  # type: ignore[assignment]  # None: Redis' own time

    def tick(self, request: TickRequest, now_ms: int | None = None) -> Ticked:
        self.now_ms = now_ms
        answer, view = self._ticker.tick(request)
        assert isinstance(view, View)
        return Ticked(
            answer.accepted,
            answer.joined,
            answer.own_remaining_ms,
            answer.next_end_ms,
            {member.node: member.partitions for member in view.live},
            view.leases,
            dict(view.homes),
            view.asked,
            [member.node for member in view.live if member.draining],
        )

    def answer(self, known_version: int, now_ms: int):
        self.now_ms = now_ms
        return self._ticker.tick(TickRequest(known_version=known_version))


@pytest.fixture
def node(link):
    """Makes a node: `node("a")`, of its next life: `node("a", "second")`."""

    def make(name: str, incarnation: str = "first", **more) -> Node:
        return Node(link, Identity(name, incarnation, TTL_MS / 1000, **more))

    return make


def _take(*partitions: int) -> TickRequest:
    return TickRequest(take=partitions)


NOTHING = TickRequest()


def test_lease_goes_to_the_first_who_asks(node):
    assert node("a").tick(_take(1, 2), START_MS).leases == {1: "a", 2: "a"}
    assert node("b").tick(_take(2, 3), START_MS).leases == {1: "a", 2: "a", 3: "b"}


def test_tick_renews_all_leases_of_the_node(node):
    node("a").tick(_take(1, 2), START_MS)
    node("a").tick(NOTHING, START_MS + TTL_MS - 1)
    view = node("b").tick(_take(1, 2), START_MS + 2 * TTL_MS - 2)
    assert view.leases == {1: "a", 2: "a"}
    assert view.live == {"a": (1, 2), "b": ()}
    assert view.next_end_ms == 1


def test_lease_that_ran_out_is_free_even_for_its_old_owner(node):
    node("a").tick(_take(1), START_MS)
    view = node("a").tick(NOTHING, START_MS + TTL_MS)
    assert view.joined
    assert view.leases == {}
    assert node("b").tick(_take(1), START_MS + TTL_MS).leases == {1: "b"}


def test_only_the_owner_can_release(node):
    node("a").tick(_take(1, 2), START_MS)
    assert node("b").tick(TickRequest(release=[1]), START_MS).leases == {1: "a", 2: "a"}
    assert node("a").tick(TickRequest(release=[1]), START_MS).leases == {2: "a"}


def test_name_belongs_to_the_incarnation_that_lives(node):
    node("a").tick(_take(1), START_MS)
    refused = node("a", "second").tick(TickRequest(release=[1], take=[2]), START_MS + TTL_MS - 1)
    assert not refused.accepted
    assert refused.own_remaining_ms == 1
    assert refused.leases == {1: "a"}


def test_next_incarnation_has_the_name_but_not_the_leases_of_one_that_ended(node):
    node("a").tick(_take(1), START_MS)
    view = node("a", "second").tick(NOTHING, START_MS + TTL_MS)
    assert view.accepted
    assert view.leases == {}
    late = node("a", "first").tick(_take(1), START_MS + TTL_MS)
    assert not late.accepted
    assert late.leases == {}


def test_lease_does_not_pass_on_with_a_name_whose_membership_was_lost(node, client):
    node("a").tick(_take(1), START_MS)
    client.hdel(CoordinationKeys(INDEX).members, "a")
    view = node("a", "second").tick(NOTHING, START_MS)
    assert view.accepted
    assert view.leases == {}


def test_draining_member_leaves_with_its_last_lease(node):
    node("a").tick(_take(1), START_MS)
    assert node("a").tick(TickRequest(leaving=True), START_MS).draining == ["a"]
    assert node("a").tick(TickRequest(leaving=True, release=[1]), START_MS).live == {}


def test_redis_clock_that_goes_back_does_not_lengthen_a_life(node):
    node("a").tick(_take(1), START_MS + 3_600_000)
    assert node("b").tick(NOTHING, START_MS).leases == {1: "a"}
    assert node("b").tick(_take(1), START_MS + TTL_MS).leases == {1: "b"}


def test_tick_without_a_clock_of_ours_uses_that_of_redis(node, link):
    node("a").tick(_take(1))
    (member,) = read_cluster(link, INDEX, 1).members
    assert member.alive


def test_who_is_woken_hears_it_and_nobody_else(node, link, client):
    with client.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(CoordinationKeys(INDEX).wake("a"))
        subscription.get_message(timeout=60.0)
        order(link, INDEX, "wake", (), ["b"])
        order(link, INDEX, "wake", (), ["a"])
        assert subscription.get_message(timeout=60.0)["data"] == b"wake"
        assert subscription.get_message(timeout=0.05) is None


def test_view_is_sent_only_to_those_who_do_not_know_it(node):
    a, b = node("a"), node("b")
    a.tick(_take(1), START_MS)
    answer, view = b.answer(0, START_MS)
    assert view is not None
    assert b.answer(answer.version, START_MS + 1) == (msgspec.structs.replace(answer, **_same(answer)), None)
    a.tick(TickRequest(release=[1]), START_MS + 2)
    later, view = b.answer(answer.version, START_MS + 3)
    assert later.version > answer.version
    assert view.leases == {}


def _same(answer):
    return {"joined": False, "own_remaining_ms": TTL_MS - 1, "next_end_ms": TTL_MS - 1}


def test_versions_rise_even_where_redis_lost_everything(node, client):
    first, _ = node("a").answer(0, START_MS)
    client.flushall()
    second, view = node("a").answer(first.version, START_MS + 1)
    assert second.version > first.version
    assert view.live[0].node == "a"


def test_successor_gets_the_leases_of_the_one_it_knows_to_be_dead(node):
    node("a").tick(_take(1, 2), START_MS)
    restarted = node("a", "second", predecessor="first").tick(NOTHING, START_MS + 1)
    assert (restarted.accepted, restarted.joined, restarted.leases) == (True, False, {1: "a", 2: "a"})
    assert not node("a", "first").tick(NOTHING, START_MS + 2).accepted
    assert not node("a", "third", predecessor="first").tick(NOTHING, START_MS + 2).accepted


def test_home_of_a_node_that_died_is_remembered(node):
    node("a").tick(_take(1), START_MS)
    node("b").tick(_take(1), START_MS + TTL_MS)
    again = node("a", "second").tick(NOTHING, START_MS + TTL_MS)
    assert (again.leases, again.homes) == ({1: "b"}, {1: "a"})
    node("b").tick(TickRequest(release=[1]), START_MS + TTL_MS)
    assert node("a", "second").tick(_take(1), START_MS + TTL_MS).homes == {}


def test_home_of_a_node_that_left_is_remembered_and_shown_once_it_is_back(node):
    a, b = node("a"), node("b")
    a.tick(_take(1), START_MS)
    a.tick(TickRequest(release=[1], leaving=True, reason="left"), START_MS)
    assert b.tick(_take(1), START_MS).homes == {}
    assert node("a", "second").tick(NOTHING, START_MS).homes == {1: "a"}


def test_home_of_a_drained_node_is_remembered(node):
    a, b = node("a"), node("b")
    a.tick(_take(1), START_MS)
    a.tick(TickRequest(release=[1], reason="drained"), START_MS)
    assert b.tick(_take(1), START_MS).homes == {1: "a"}


def test_home_is_forgotten_after_the_grace_time(node):
    a = node("a", grace_s=5.0)
    a.tick(_take(1, 2), START_MS)
    a.tick(TickRequest(release=[1, 2], leaving=True, reason="left"), START_MS)
    assert node("a", "second").tick(NOTHING, START_MS + 4_999).homes == {1: "a", 2: "a"}
    assert node("b").tick(_take(1), START_MS + 5_000).homes == {}


def test_rebalance_makes_nobody_a_home(node):
    node("a").tick(_take(1), START_MS)
    node("a").tick(TickRequest(release=[1]), START_MS)
    assert node("b").tick(_take(1), START_MS).homes == {}


def test_who_keeps_a_partition_for_another_does_not_become_its_home(node):
    a, b, c = node("a"), node("b"), node("c")
    a.tick(_take(1), START_MS)
    a.tick(TickRequest(release=[1], leaving=True, reason="left"), START_MS)
    b.tick(_take(1), START_MS)
    b.tick(TickRequest(release=[1], leaving=True, reason="left"), START_MS)
    c.tick(_take(1), START_MS)
    node("b", "second").tick(NOTHING, START_MS)
    assert node("a", "second").tick(NOTHING, START_MS).homes == {1: "a"}


def test_operators_drain_outlives_the_node_and_lasts_until_undone(node, link):
    a = node("a")
    a.tick(_take(1), START_MS)
    assert order(link, INDEX, "drain", ["a"], []) == 1
    assert order(link, INDEX, "drain", ["a"], []) == 0
    assert a.tick(NOTHING, START_MS + 1).draining == ["a"]
    later_ms = START_MS + 3 * TTL_MS
    assert node("a", "second").tick(NOTHING, later_ms).draining == ["a"]
    assert order(link, INDEX, "undrain", ["a"], []) == 1
    assert node("a", "second").tick(NOTHING, later_ms + 1).draining == []


def test_partition_that_is_asked_for_is_so_until_it_is_released(node, link):
    a = node("a")
    a.tick(_take(1, 2), START_MS)
    assert order(link, INDEX, "release", [1], []) == 1
    assert a.tick(NOTHING, START_MS + 1).asked == (1,)
    released = a.tick(TickRequest(release=[1]), START_MS + 2)
    assert (released.asked, released.leases) == ((), {2: "a"})
    assert read_cluster(link, INDEX, 3).partitions[1].reason == "asked"


def test_scale_is_for_one_life_of_a_node(node, link):
    a = node("a")
    a.tick(NOTHING, START_MS)
    order(link, INDEX, "scale", ["a", "first", 4, 3], [])
    answer, _ = a.answer(0, START_MS)
    assert answer.scale == (4, 3)
    later, _ = node("a", "second").answer(0, START_MS + TTL_MS)
    assert later.scale is None


def test_events_say_what_moved_and_why_and_are_bounded(node, link, client):
    now_ms = _now_ms(client)
    node("dead").tick(_take(0, 1), now_ms - 60_000)
    node("a").tick(_take(0), now_ms)
    node("a").tick(_take(1), now_ms)
    node("a").tick(TickRequest(release=[1]), now_ms)
    events = read_cluster(link, INDEX, 2, n_events=10).events
    found = [(e.kind, e.node, e.reason, [tuple(msgspec.structs.astuple(p)) for p in e.partitions]) for e in events]
    assert found == [
        ("lease.released", "a", "rebalance", [(1, "a", "rebalance")]),
        ("lease.taken", "a", "", [(1, "dead", "died")]),
        ("lease.taken", "a", "", [(0, "dead", "died")]),
        ("node.joined", "a", "", []),
        ("node.died", "dead", "", found[4][3]),
        ("lease.taken", "dead", "", [(0, "", ""), (1, "", "")]),
        ("node.joined", "dead", "", []),
    ]
    assert sorted(found[4][3]) == [(0, "dead", "died"), (1, "dead", "died")]
    for _ in range(MAX_EVENTS):
        node("a").tick(_take(0), now_ms)
        node("a").tick(TickRequest(release=[0]), now_ms)
    assert client.llen(CoordinationKeys(INDEX).events) == MAX_EVENTS


def test_cluster_state_names_owners_and_what_is_missing_since_when(node, link, client):
    now_ms = _now_ms(client)
    node("dead").tick(TickRequest(take=[0], status='{"lag": 7}'), now_ms - 60_000)
    node("a").tick(_take(1, 2), now_ms - 5_000)
    node("a").tick(TickRequest(release=[2]), now_ms)

    state = read_cluster(link, INDEX, 4)
    assert state.missing == (0, 2, 3)
    assert [partition.owner for partition in state.partitions] == ["", "a", "", ""]
    assert state.partitions[0].since_s == pytest.approx(60 - TTL_MS / 1000, abs=5)
    assert state.partitions[2].since_s == pytest.approx(0, abs=5)
    assert state.partitions[3] == PartitionState("", None)
    alive, dead = state.members
    assert (alive.node, alive.alive, alive.n_partitions) == ("a", True, 1)
    assert alive.joined_s >= 5 > alive.silent_s
    assert state.partitions[1].since_s == pytest.approx(alive.joined_s)
    assert (dead.node, dead.alive, dead.n_partitions, dead.status) == ("dead", False, 0, '{"lag": 7}')
    assert dead.silent_s == pytest.approx(60, abs=5)


def test_looking_says_the_same_before_and_after_a_tick_judged_the_leases(node, link, client):
    now_ms = _now_ms(client)
    node("dead").tick(_take(0), now_ms - 60_000)
    before = read_cluster(link, INDEX, 1).partitions[0]
    node("a").tick(NOTHING, now_ms)
    after = read_cluster(link, INDEX, 1).partitions[0]
    assert before.owner == after.owner == ""
    assert after.since_s == pytest.approx(before.since_s, abs=5)


def test_since_when_a_partition_is_free_is_unknown_if_the_membership_of_its_owner_was_lost(node, link, client):
    node("a").tick(_take(0))
    client.delete(CoordinationKeys(INDEX).members)
    assert read_cluster(link, INDEX, 1).partitions == (PartitionState("", None, "a", "died"),)


def test_node_that_died_long_ago_is_forgotten(node, link, client):
    node("dead").tick(TickRequest(take=[0], status="{}"), START_MS)
    end_ms = START_MS + TTL_MS + round(FORGET_AFTER_S * 1000)
    node("a").tick(NOTHING, end_ms - 1)
    assert [member.node for member in read_cluster(link, INDEX, 1).members] == ["a", "dead"]
    node("b").tick(TickRequest(status="{}"), end_ms)
    assert [member.node for member in read_cluster(link, INDEX, 1).members] == ["a", "b"]
    assert client.hkeys(CoordinationKeys(INDEX).status) == [b"b"]


def test_indexes_in_one_redis_do_not_meet(node, link):
    node("a").tick(_take(1), START_MS)
    _, view = Ticker(link, "other", Identity("b", "first", 10.0)).tick(_take(1))
    assert view is not None
    assert view.leases == {1: "b"}


def test_wrong_password_is_an_authentication_failure_that_hides_it(client, redis_url):
    client.acl_setuser("keeper", enabled=True, passwords=["+right"], categories=["+@all"], keys=["*"])
    url = redis_url.replace("unix://", "unix://keeper:wr0ng@")
    with (
        connect(url, 5.0) as wrong,
        pytest.raises(AuthenticationFailed, match=r"coordination\.redis unix:///") as caught,
    ):
        Ticker(wrong, INDEX, Identity("a", "first", 10.0)).tick(NOTHING)
    client.acl_deluser("keeper")
    assert "wr0ng" not in str(caught.value)


def test_missing_permission_is_an_authentication_failure(client, redis_url):
    client.acl_setuser("keeper", enabled=True, passwords=["+right"], commands=["+ping"], keys=["*"])
    url = redis_url.replace("unix://", "unix://keeper:right@")
    with connect(url, 5.0) as wrong, pytest.raises(AuthenticationFailed, match="permission"):
        Ticker(wrong, INDEX, Identity("a", "first", 10.0)).tick(NOTHING)
    client.acl_deluser("keeper")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:secret@127.0.0.1:1/0", "redis://127.0.0.1:1/0 cannot"),
        ("rediss://me:secret@127.0.0.1:1/0", "rediss://127.0.0.1:1/0 cannot"),
        ("unix://me:secret@/nowhere/redis.sock?db=1", "unix:///nowhere/redis.sock cannot"),
    ],
)
def test_unreachable_redis_is_named_without_its_password(url, shown):
    with connect(url, 1.0) as link, pytest.raises(CoordinationUnavailable, match=r"coordination\.redis") as caught:
        read_cluster(link, INDEX, 1)
    assert shown in str(caught.value)
    assert "secret" not in str(caught.value)


def test_silent_server_is_asked_once_for_no_longer_than_the_timeout():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}"
        with connect(url, 0.05) as link, pytest.raises(CoordinationUnavailable, match=r"[Tt]ime"):
            read_cluster(link, INDEX, 1)
        server.setblocking(False)
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "127.0.0.1:6379", "", "redis://host:port"])
def test_unusable_url_is_a_configuration_error(url):
    with pytest.raises(ConfigInvalid, match=r"coordination\.redis"):
        connect(url, 1.0)


def test_foreign_data_under_our_keys_is_reported_not_raised_raw(node, client):
    client.set(CoordinationKeys(INDEX).members, "not a hash")
    with pytest.raises(CoordinationUnavailable, match="WRONGTYPE"):
        node("a").tick(NOTHING)


def _now_ms(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000
