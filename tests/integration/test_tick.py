"""What one tick does in Redis, with the clock in our hands, and how its errors come out."""

import socket

import pytest
import redis

from channelindex.errors import AuthenticationFailed, ConfigInvalid, CoordinationUnavailable
from coordinator.cluster import MemberState, PartitionState, read_cluster
from coordinator.connection import connect
from coordinator.tick import FORGET_AFTER_S, Identity, Keys, Ticker, TickRequest

INDEX = "test"
TTL_MS = 10_000
START_MS = 1_700_000_000_000


@pytest.fixture
def client(redis_url):
    with connect(redis_url, timeout_s=5.0) as client:
        yield client


@pytest.fixture
def node(client, redis_url):
    """Makes the ticker of a node: `node("a")`, of its next life: `node("a", "second")`."""

    def make(name: str, incarnation: str = "first") -> Ticker:
        return Ticker(client, redis_url, INDEX, Identity(name, incarnation, TTL_MS / 1000))

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
    assert [(member.node, member.remaining_ms) for member in sorted(view.live, key=str)] == [("a", 1), ("b", TTL_MS)]


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
    assert [(member.incarnation, member.remaining_ms) for member in refused.live] == [("first", 1)]
    assert refused.leases == {1: "a"}
    assert refused.held_by(Identity("a", "second", 10.0)) == ()


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
    client.hdel(Keys(INDEX).members, "a")
    view = node("a", "second").tick(NOTHING, START_MS)
    assert view.accepted
    assert view.leases == {}


def test_draining_member_leaves_with_its_last_lease(node):
    node("a").tick(_take(1), START_MS)
    draining = node("a").tick(TickRequest(draining=True), START_MS)
    assert [member.draining for member in draining.live] == [True]
    assert node("a").tick(TickRequest(draining=True, release=[1]), START_MS).live == ()


def test_redis_clock_that_goes_back_does_not_lengthen_a_life(node):
    node("a").tick(_take(1), START_MS + 3_600_000)
    assert node("b").tick(NOTHING, START_MS).leases == {1: "a"}
    assert node("b").tick(_take(1), START_MS + TTL_MS).leases == {1: "b"}


def test_tick_without_a_clock_of_ours_uses_that_of_redis(node, client, redis_url):
    node("a").tick(_take(1))
    (member,) = read_cluster(client, redis_url, INDEX, 1).members
    assert member.alive


@pytest.mark.parametrize(
    ("request_of_a", "heard"),
    [(_take(2), []), (TickRequest(release=[1]), [b"first"]), (TickRequest(release=[9]), [])],
)
def test_releases_are_announced_and_nothing_else_is(node, client, request_of_a, heard):
    node("a").tick(_take(1), START_MS)
    with client.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(Keys(INDEX).changed)
        subscription.get_message(timeout=5.0)
        node("a").tick(request_of_a, START_MS)
        client.publish(Keys(INDEX).changed, "end")
        messages = []
        while b"end" not in messages:
            messages.append(subscription.get_message(timeout=5.0)["data"])
    assert messages == [*heard, b"end"]


def test_newcomer_is_announced(node, client):
    with client.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(Keys(INDEX).changed)
        subscription.get_message(timeout=5.0)
        node("a").tick(NOTHING, START_MS)
        assert subscription.get_message(timeout=5.0)["data"] == b"first"


def test_cluster_state_names_owners_and_what_is_missing_since_when(node, client, redis_url):
    now_ms = _now_ms(client)
    node("dead").tick(TickRequest(take=[0], status='{"lag": 7}'), now_ms - 60_000)
    node("a").tick(_take(1, 2), now_ms - 5_000)
    node("a").tick(TickRequest(release=[2]), now_ms)

    state = read_cluster(client, redis_url, INDEX, 4)
    assert state.missing == (0, 2, 3)
    assert [partition.owner for partition in state.partitions] == ["", "a", "", ""]
    assert state.partitions[0].since_s == pytest.approx(60 - TTL_MS / 1000, abs=5)
    assert state.partitions[2].since_s == pytest.approx(0, abs=5)
    assert state.partitions[3] == PartitionState("", None)
    alive, dead = state.members
    assert (alive.node, alive.alive, alive.n_partitions) == ("a", True, 1)
    assert alive.joined_s >= 5 > alive.silent_s
    assert state.partitions[1].since_s == pytest.approx(alive.joined_s)
    assert dead == MemberState("dead", False, False, dead.joined_s, dead.silent_s, 0, '{"lag": 7}')
    assert dead.silent_s == pytest.approx(60, abs=5)


def test_looking_says_the_same_before_and_after_a_tick_judged_the_leases(node, client, redis_url):
    now_ms = _now_ms(client)
    node("dead").tick(_take(0), now_ms - 60_000)
    before = read_cluster(client, redis_url, INDEX, 1).partitions[0]
    node("a").tick(NOTHING, now_ms)
    after = read_cluster(client, redis_url, INDEX, 1).partitions[0]
    assert before.owner == after.owner == ""
    assert after.since_s == pytest.approx(before.since_s, abs=5)


def test_since_when_a_partition_is_free_is_unknown_if_the_membership_of_its_owner_was_lost(node, client, redis_url):
    node("a").tick(_take(0))
    client.delete(Keys(INDEX).members)
    assert read_cluster(client, redis_url, INDEX, 1).partitions == (PartitionState("", None),)


def test_node_that_died_long_ago_is_forgotten(node, client, redis_url):
    node("dead").tick(TickRequest(take=[0], status="{}"), START_MS)
    end_ms = START_MS + TTL_MS + round(FORGET_AFTER_S * 1000)
    node("a").tick(NOTHING, end_ms - 1)
    assert [member.node for member in read_cluster(client, redis_url, INDEX, 1).members] == ["a", "dead"]
    node("a").tick(NOTHING, end_ms)
    assert [member.node for member in read_cluster(client, redis_url, INDEX, 1).members] == ["a"]
    assert client.hkeys(Keys(INDEX).status) == [b"a"]


def test_indexes_in_one_redis_do_not_meet(node, client, redis_url):
    node("a").tick(_take(1), START_MS)
    other = Ticker(client, redis_url, "other", Identity("b", "first", 10.0))
    assert other.tick(_take(1), START_MS).leases == {1: "b"}


def test_wrong_password_is_an_authentication_failure_that_hides_it(redis_url, client):
    client.acl_setuser("keeper", enabled=True, passwords=["+right"], categories=["+@all"], keys=["*"])
    url = redis_url.replace("unix://", "unix://keeper:wr0ng@")
    with (
        connect(url, 5.0) as wrong,
        pytest.raises(AuthenticationFailed, match=r"coordination\.redis unix:///") as caught,
    ):
        Ticker(wrong, url, INDEX, Identity("a", "first", 10.0)).tick(NOTHING)
    client.acl_deluser("keeper")
    assert "wr0ng" not in str(caught.value)


def test_missing_permission_is_an_authentication_failure(redis_url, client):
    client.acl_setuser("keeper", enabled=True, passwords=["+right"], commands=["+ping"], keys=["*"])
    url = redis_url.replace("unix://", "unix://keeper:right@")
    with connect(url, 5.0) as wrong, pytest.raises(AuthenticationFailed, match="permission"):
        Ticker(wrong, url, INDEX, Identity("a", "first", 10.0)).tick(NOTHING)
    client.acl_deluser("keeper")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:secret@127.0.0.1:1/0", "redis://127.0.0.1:1/0: "),
        ("rediss://me:secret@127.0.0.1:1/0", "rediss://127.0.0.1:1/0: "),
        ("unix://me:secret@/nowhere/redis.sock?db=1", "unix:///nowhere/redis.sock: "),
    ],
)
def test_unreachable_redis_is_named_without_its_password(url, shown):
    with connect(url, 1.0) as client, pytest.raises(CoordinationUnavailable, match=r"coordination\.redis") as caught:
        read_cluster(client, url, INDEX, 1)
    assert shown in str(caught.value)
    assert "secret" not in str(caught.value)


def test_silent_server_is_asked_once_for_no_longer_than_the_timeout():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}"
        with connect(url, 0.05) as client, pytest.raises(CoordinationUnavailable, match=r"[Tt]ime"):
            read_cluster(client, url, INDEX, 1)
        server.setblocking(False)
        server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "127.0.0.1:6379", "", "redis://host:port"])
def test_unusable_url_is_a_configuration_error(url):
    with pytest.raises(ConfigInvalid, match=r"coordination\.redis"):
        connect(url, 1.0)


def test_foreign_data_under_our_keys_is_reported_not_raised_raw(node, client):
    client.set(Keys(INDEX).members, "not a hash")
    with pytest.raises(CoordinationUnavailable, match="WRONGTYPE"):
        node("a").tick(NOTHING)


def _now_ms(client: redis.Redis) -> int:
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000
