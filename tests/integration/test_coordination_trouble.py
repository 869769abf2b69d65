"""The Redis of the leases in every kind of trouble, as the nodes' own code meets it; and the locks in it."""

import time
from contextlib import ExitStack

import pytest
import redis

from channelindex.errors import AuthenticationFailed, CoordinationUnavailable
from channelindex.redis.link import Link
from coordinator.cluster_state import read_cluster
from coordinator.lease_redis import CoordinationKeys, connect
from coordinator.lock import job_lock
from coordinator.membership import Membership
from coordinator.tick import Identity, Ticker
from coordinator.wake import WakeSubscription
from devbucket.embedded_redis import EmbeddedRedis
from tests.chaos.proxy import Proxy
from tests.support.redis_cluster import ClusterOfThree
from tests.support.redis_sentinel import MasterAndReplica, SentinelAndMaster

INDEX = "trouble"
N_PARTITIONS = 16
TTL_S = 10.0
START_S = 1_700_000_000.0


class Cluster:
    """Nodes whose clocks are in our hands."""

    def __init__(self, link: Link) -> None:
        self.now = 0.0
        self.nodes: dict[str, Membership] = {}
        self._link = link

    def node(self, name: str) -> Membership:
        if name not in self.nodes:
            identity = Identity(name, f"{name}-1", TTL_S)
            ticker = Ticker(self._link, INDEX, identity, lambda: int((START_S + self.now) * 1000))
            self.nodes[name] = Membership(ticker, identity, N_PARTITIONS, N_PARTITIONS, lambda: self.now)
        return self.nodes[name]

    def turn(self, *names: str) -> None:
        """These nodes tick once, and drain at once what they are asked for."""
        for name in names:
            node = self.node(name)
            node.tick()
            if node.due_releases:
                node.release(node.due_releases)
                node.tick()
        self.now += 0.1

    def share(self, *names: str) -> dict[str, set[int]]:
        """Turns until these share everything; who has what."""
        for _ in range(5):
            self.turn(*names)
        held = self.held()
        assert set().union(*(held[name] for name in names)) == set(range(N_PARTITIONS))
        return held

    def held(self) -> dict[str, set[int]]:
        return {name: set(node.book.unexpired(self.now)) for name, node in self.nodes.items()}

    def switch(self, link: Link) -> None:
        """From now on Redis is another one."""
        for node in self.nodes.values():
            node._ticker._redis = link
        self._link = link


@pytest.fixture
def databases(redis_url):
    """Two databases of one server: a master, and what its replica had at some time."""
    with ExitStack() as stack:
        clients = [stack.enter_context(redis.Redis.from_url(f"{redis_url}?db={number}")) for number in (0, 1)]
        yield clients


@pytest.fixture
def links(redis_url):
    """A link to each of `databases`."""
    with connect(redis_url, 5.0) as master, connect(f"{redis_url}?db=1", 5.0) as replica:
        yield master, replica


def _replicate(master: redis.Redis, replica: redis.Redis) -> None:
    replica.flushdb()
    for key in master.scan_iter():
        replica.restore(key, 0, master.dump(key) or b"")


def test_replica_that_lacks_the_last_takes_costs_nobody_what_it_has(databases, links):
    master, replica = databases
    cluster = Cluster(links[0])
    cluster.share("a")
    _replicate(master, replica)
    held = cluster.share("a", "b")
    cluster.switch(links[1])
    cluster.turn("b", "a", "b", "a")
    after = cluster.share("a", "b")
    assert {name: len(mine) for name, mine in after.items()} == {"a": 8, "b": 8}
    assert not after["a"] & after["b"]
    assert held["a"] | held["b"] == set(range(N_PARTITIONS))


def test_replica_that_lags_by_renewals_gives_nobody_away(databases, links):
    master, replica = databases
    cluster = Cluster(links[0])
    held = cluster.share("a", "b")
    _replicate(master, replica)
    for _ in range(3):
        cluster.now += TTL_S / 3
        cluster.turn("a", "b")
    cluster.switch(links[1])  # where both look as if their time had run out
    cluster.turn("a", "b")
    cluster.turn("a", "b")
    assert cluster.share("a", "b") == held


def test_version_that_a_stale_replica_repeats_is_not_taken_for_one_that_is_known(databases, links):
    master, replica = databases
    cluster = Cluster(links[0])
    cluster.share("a")
    _replicate(master, replica)
    cluster.turn("a", "b", "a", "b")
    cluster.switch(links[1])
    cluster.turn("b", "a", "b", "a")
    views = {node._view.leases == cluster.node("a")._view.leases for node in cluster.nodes.values()}
    assert views == {True}


def test_nodes_stop_by_themselves_while_redis_is_away_and_go_on_when_it_is_back(tmp_path):
    with EmbeddedRedis(tmp_path) as server, connect(server.url, 1.0) as link:
        cluster = Cluster(link)
        cluster.share("a", "b")
        server.close()
        for name in ("a", "b"):
            with pytest.raises(CoordinationUnavailable):
                cluster.node(name).tick()
        assert len(cluster.held()["a"]) == 8, "a lease lasts as long as it was granted"
        cluster.now += TTL_S
        assert cluster.held() == {"a": set(), "b": set()}
        with EmbeddedRedis(tmp_path):
            held = cluster.share("a", "b")
            assert {name: len(mine) for name, mine in held.items()} == {"a": 8, "b": 8}


def test_scripts_that_were_flushed_are_sent_again(databases, links):
    client, _ = databases
    cluster = Cluster(links[0])
    held = cluster.share("a")
    client.script_flush()
    assert cluster.share("a") == held


@pytest.mark.parametrize("key", ["members", "ends", "leases", "state", "events", "drained", "asked", "scale"])
def test_wrong_type_under_a_key_is_reported_and_cured_by_its_removal(databases, links, key):
    client, _ = databases
    cluster = Cluster(links[0])
    cluster.share("a")
    name = getattr(CoordinationKeys(INDEX), key)
    client.delete(name)
    client.set(name, "foreign")
    with pytest.raises(CoordinationUnavailable, match="WRONGTYPE"):
        cluster.share("a", "b")
    client.delete(name)
    held = cluster.share("a", "b")
    assert held["a"]


KEYS = ("members", "ends", "leases", "status", "state", "events", "drained", "asked", "scale")


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_evicted_leaves_each_partition_with_one_owner(databases, links, key):
    """What an operator ordered has to be ordered again; all else is written anew by the next ticks."""
    client, _ = databases
    cluster = Cluster(links[0])
    cluster.share("a", "b")
    client.delete(getattr(CoordinationKeys(INDEX), key))
    for _ in range(5):
        cluster.turn("b", "a")
        held = cluster.held()
        assert not held["a"] & held["b"]
    assert {name: len(mine) for name, mine in cluster.share("a", "b").items()} == {"a": 8, "b": 8}


def test_every_key_of_the_leases_is_among_those_that_are_evicted_here():
    assert {getattr(CoordinationKeys(INDEX), key) for key in KEYS} == set(CoordinationKeys(INDEX).all)


def test_rights_that_are_taken_away_and_given_back(redis_url, databases):
    admin, _ = databases
    admin.acl_setuser("node", enabled=True, passwords=["+pw"], categories=["+@all"], keys=["*"], channels=["*"])
    url = redis_url.replace("unix://", "unix://node:pw@")
    with connect(url, 5.0) as link:
        cluster = Cluster(link)
        held = cluster.share("a")
        admin.acl_setuser("node", commands=["-evalsha"])
        with pytest.raises(AuthenticationFailed, match="permission"):
            cluster.turn("a")
        admin.acl_setuser("node", commands=["+evalsha"])
        assert cluster.share("a") == held
    admin.acl_deluser("node")


def test_leases_in_a_redis_cluster(cluster_url):
    with connect(cluster_url, 5.0) as link:
        cluster = Cluster(link)
        held = cluster.share("a", "b")
        assert {name: len(mine) for name, mine in held.items()} == {"a": 8, "b": 8}
        assert read_cluster(link, INDEX, N_PARTITIONS, n_events=1).events[0].kind == "lease.taken"
        _assert_wakes(cluster_url, cluster)


def test_leases_follow_their_slot_through_a_redis_cluster(cluster_of_three, cluster_url):
    with connect(cluster_url, 5.0) as link:
        cluster = Cluster(link)
        held = cluster.share("a", "b")
        slot = cluster_of_three.nodes[0].execute_command("CLUSTER", "KEYSLOT", CoordinationKeys(INDEX).leases)
        home = cluster_of_three.owner_of(slot)
        cluster_of_three.move("coordination", (home + 1) % 3)
        try:
            assert cluster.share("a", "b") == held
        finally:
            cluster_of_three.move("coordination", home)


def test_leases_behind_sentinels_survive_a_failover():
    with SentinelAndMaster() as servers, connect(servers.url, 2.0) as link:
        cluster = Cluster(link)
        held = cluster.share("a", "b")
        _assert_wakes(servers.url, cluster)
        servers.fail_over()
        _assert_shared_again(cluster, held)


def test_leases_survive_the_loss_of_their_master_in_a_redis_cluster():
    with ClusterOfThree(replicas=True) as servers, connect(servers.url, 2.0) as link:
        cluster = Cluster(link)
        held = cluster.share("a", "b")
        slot = servers.nodes[0].execute_command("CLUSTER", "KEYSLOT", CoordinationKeys(INDEX).leases)
        servers.kill(servers.owner_of(slot))
        _assert_shared_again(cluster, held)
        _assert_wakes(servers.url, cluster)


def test_leases_survive_a_planned_failover_behind_an_address():
    """The demoted master keeps its clients, and answers READONLY to them for ever."""
    with MasterAndReplica() as servers, Proxy() as proxy:
        address = proxy.link(servers.ports[0])
        with connect(address.url, 2.0) as link:
            cluster = Cluster(link)
            held = cluster.share("a", "b")
            servers.hand_over()
            address.upstream = servers.ports[1]
            _assert_shared_again(cluster, held)


def _assert_shared_again(cluster: Cluster, held: dict[str, set[int]]) -> None:
    """Both nodes come to have what they had, by the links that they have."""
    deadline = time.monotonic() + 60.0
    while True:
        try:
            assert cluster.share("a", "b") == held
        except CoordinationUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def _assert_wakes(url: str, cluster: Cluster) -> None:
    wake = WakeSubscription(connect(url, 5.0), CoordinationKeys(INDEX).wake("a"))
    deadline = time.monotonic() + 60.0
    while not wake.heard():  # that we have subscribed is no message
        assert time.monotonic() < deadline
        wake.ensure_open()  # before every tick, as the keeper does: the cluster may still be looking for its master
        cluster.node("b")._ticker.wake(["a"])
        time.sleep(0.01)
    assert wake.fileno() is not None
    wake.close()


def test_job_is_done_by_one_at_a_time(redis_url):
    with job_lock(redis_url, INDEX, "rebuild"):
        with pytest.raises(CoordinationUnavailable, match="another"), job_lock(redis_url, INDEX, "rebuild"):
            pass
        with job_lock(redis_url, INDEX, "rewind"), job_lock(redis_url, "another", "rebuild"):
            pass
    with job_lock(redis_url, INDEX, "rebuild"):
        pass


def test_lock_that_ran_out_is_no_error_and_takes_nothing_from_the_next(databases, redis_url):
    client, _ = databases
    key = CoordinationKeys(INDEX).lock("rebuild")
    with ExitStack() as stack:
        stack.enter_context(job_lock(redis_url, INDEX, "rebuild"))
        client.delete(key)
        with job_lock(redis_url, INDEX, "rebuild"):
            theirs = client.get(key)
            stack.close()
            assert client.get(key) == theirs
    assert client.get(key) is None


def test_lock_of_a_redis_that_is_away_is_an_error_of_ours():
    url = "redis://127.0.0.1:1/0"
    with pytest.raises(CoordinationUnavailable, match=r"coordination\.redis"), job_lock(url, INDEX, "rebuild"):
        pass
