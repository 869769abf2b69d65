"""Real keepers in real processes share partitions through a real Redis; the test plays their supervisors."""

import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import msgspec
import pytest
import redis

from channelindex import exits
from coordinator.cluster_state import read_cluster
from coordinator.keeper import LeaseKeeper
from coordinator.keeper_link import KeeperLink, KeeperReport, SupervisorLink, keeper_link
from coordinator.lease import LeaseTiming
from coordinator.lease_redis import CoordinationKeys, connect
from coordinator.tick import Identity
from coordinator.wake import WakeSubscription
from devbucket.embedded_redis import EmbeddedRedis
from tests.support.node import until

INDEX = "test"
N_PARTITIONS = 64
ALL = set(range(N_PARTITIONS))
SHORT_TTL_S = 1.0
MEDIUM_TTL_S = 12.0
LONG_TTL_S = 900.0  # renewed so rarely that within a test's patience only messages can move anything
PATIENCE_S = 120.0
NOTHING_YET = KeeperReport(leases={}, due_releases=[])


class Node:
    """A keeper process and the supervisor's view of it; drains a partition the moment it is asked to."""

    def __init__(self, url: str, name: str, ttl_s: float, others: list["Node"], incarnation: str) -> None:
        self.name = name
        self.identity = Identity(name, incarnation, ttl_s)
        self.link, keeper_end = keeper_link()
        self.last = NOTHING_YET
        self.drains = True
        self.exit_code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _be_keeper(url, self.identity, keeper_end, [self.link, *(node.link for node in others)])
        keeper_end.close()

    def step(self) -> None:
        """What a supervisor's loop does with its keeper."""
        held = self.link.poll()
        if held:
            self.last = held
            if self.drains and held.due_releases:
                self.release(held.due_releases)
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.exit_code = os.waitstatus_to_exitcode(status) if pid else None

    def release(self, partitions: list[int]) -> None:
        """What a supervisor does once it has drained *partitions*."""
        leases = {partition: at for partition, at in self.last.leases.items() if partition not in partitions}
        self.last = msgspec.structs.replace(self.last, leases=leases)
        self.link.release(partitions)

    @property
    def working_on(self) -> set[int]:
        """The partitions that the node may work on now, by the deadlines that it was told."""
        now = time.monotonic()
        return {partition for partition, deadline in self.last.leases.items() if now < deadline}

    def kill(self) -> None:
        """End the keeper as a crash would."""
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGKILL)
            _, status = os.waitpid(self.pid, 0)
            self.exit_code = os.waitstatus_to_exitcode(status)
        self.link.close()


def _be_keeper(url: str, identity: Identity, end: SupervisorLink, not_ours: list[KeeperLink]) -> None:
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for link in not_ours:
            link.close()
        LeaseKeeper(url, INDEX, N_PARTITIONS, identity, end, max_moves=N_PARTITIONS).run()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


class Cluster:
    """The nodes of one test."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.nodes: list[Node] = []
        self._incarnations = count(1)

    def start(self, name: str, ttl_s: float = LONG_TTL_S) -> Node:
        node = Node(self.url, name, ttl_s, self.nodes, f"incarnation-{next(self._incarnations)}")
        self.nodes.append(node)
        return node

    def close(self) -> None:
        """End all keepers."""
        for node in self.nodes:
            node.kill()

    def until(self, condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        """Run all supervisors until *condition* holds; fail if it does not in time."""
        deadline = time.monotonic() + patience_s
        while True:
            for node in self.nodes:
                node.step()
            if condition():
                return
            state = {node.name: (len(node.working_on), node.last.trouble) for node in self.nodes}
            assert time.monotonic() < deadline, f"in vain; working on, trouble: {state}"
            time.sleep(0.005)


@pytest.fixture
def cluster(redis_url: str) -> Iterator[Cluster]:
    cluster = Cluster(redis_url)
    yield cluster
    cluster.close()


def _shares(*nodes: Node) -> list[int]:
    """How many partitions each works on; empty where two work on the same one or one is worked on by nobody."""
    together = set().union(*(node.working_on for node in nodes))
    shares = [len(node.working_on) for node in nodes]
    return sorted(shares) if together == ALL and sum(shares) == N_PARTITIONS else []


def test_one_node_takes_all_partitions(cluster):
    node = cluster.start("a")
    cluster.until(lambda: node.working_on == ALL)
    assert node.last.trouble is None
    assert (node.last.n_members, node.last.n_to_move, node.last.unowned) == (1, 0, {})


def test_nodes_that_join_get_fair_shares_long_before_any_lease_ends(cluster):
    first = cluster.start("a")
    cluster.until(lambda: first.working_on == ALL)
    second = cluster.start("b")
    cluster.until(lambda: _shares(first, second) == [32, 32])
    third = cluster.start("c")
    cluster.until(lambda: _shares(first, second, third) == [21, 21, 22])


def test_a_partition_stays_leased_until_the_supervisor_has_drained_it(cluster):
    first = cluster.start("a")
    cluster.until(lambda: first.working_on == ALL)
    first.drains = False
    second = cluster.start("b")
    cluster.until(lambda: len(first.last.due_releases) == 32)
    assert first.working_on == ALL
    wanted = first.last.due_releases
    first.release(wanted[:10])
    cluster.until(lambda: second.working_on == set(wanted[:10]))
    assert first.working_on == ALL - set(wanted[:10])


def test_status_is_shown_to_whoever_looks_until_there_is_a_newer_one(cluster):
    node = cluster.start("a")
    node.link.publish_status('{"lag": 7}')
    with connect(cluster.url, 5.0) as link:
        for partition in (3, 5):
            cluster.until(lambda: node.working_on == ALL)
            node.release([partition])
        cluster.until(lambda: node.working_on == ALL)
        (member,) = read_cluster(link, INDEX, N_PARTITIONS).members
    assert member.status == '{"lag": 7}'


def test_partition_released_without_need_comes_back_for_good(cluster):
    node = cluster.start("a")
    cluster.until(lambda: node.working_on == ALL)
    with redis.Redis.from_url(cluster.url) as client:
        node.release([3])
        cluster.until(lambda: node.working_on == ALL)
        lease = client.hget(CoordinationKeys(INDEX).leases, "3")
        node.release([5])
        cluster.until(lambda: node.working_on == ALL)
        assert client.hget(CoordinationKeys(INDEX).leases, "3") == lease


def test_partitions_of_a_killed_node_are_taken_after_its_ttl(cluster):
    first, second = cluster.start("a", SHORT_TTL_S), cluster.start("b", LONG_TTL_S)
    cluster.until(lambda: _shares(first, second) == [32, 32])
    first.kill()
    orphans = dict(first.last.leases)
    cluster.until(lambda: second.working_on == ALL)
    assert all(time.monotonic() >= deadline for deadline in orphans.values())


def test_drained_node_hands_over_without_waiting_for_its_ttl_and_leaves(cluster):
    first, second = cluster.start("a"), cluster.start("b")
    cluster.until(lambda: _shares(first, second) == [32, 32])
    end_of_leases = min(first.last.leases.values())
    first.link.drain()
    cluster.until(lambda: second.working_on == ALL and first.exit_code == 0)
    assert time.monotonic() < end_of_leases
    assert first.last.leases == {}
    with connect(cluster.url, 5.0) as link:
        assert [member.node for member in read_cluster(link, INDEX, N_PARTITIONS).members] == ["b"]


def test_paused_keeper_never_reports_a_lease_that_has_run_out(cluster):
    first, second = cluster.start("a", SHORT_TTL_S), cluster.start("b", SHORT_TTL_S)
    cluster.until(lambda: _shares(first, second) == [32, 32])
    os.kill(first.pid, signal.SIGSTOP)
    cluster.until(lambda: second.working_on == ALL)
    assert first.working_on == set()
    os.kill(first.pid, signal.SIGCONT)

    def nobody_works_on_what_another_has() -> bool:
        assert not first.working_on & second.working_on
        return _shares(first, second) == [32, 32]

    cluster.until(nobody_works_on_what_another_has)


def test_restarted_name_waits_for_the_end_of_the_one_before_it(cluster):
    first = cluster.start("a", SHORT_TTL_S)
    cluster.until(lambda: first.working_on == ALL)
    second = cluster.start("a", SHORT_TTL_S)
    cluster.until(lambda: second.last is not NOTHING_YET)
    assert second.last.trouble.exit_code == exits.COORDINATION
    assert "node.name 'a' belongs to another process" in second.last.trouble.message
    assert second.working_on == set()
    first.kill()
    end_of_leases = max(first.last.leases.values())
    cluster.until(lambda: second.working_on == ALL)
    assert time.monotonic() >= end_of_leases
    assert second.last.trouble is None


def test_new_keeper_of_the_same_supervisor_goes_on_with_its_leases(cluster):
    first = cluster.start("a")
    cluster.until(lambda: first.working_on == ALL)
    first.kill()
    successor = Node(cluster.url, "a", LONG_TTL_S, cluster.nodes, first.identity.incarnation)
    cluster.nodes.append(successor)
    cluster.until(lambda: successor.working_on == ALL)
    assert time.monotonic() < min(first.last.leases.values())


def test_keeper_ends_with_its_supervisor(cluster):
    node = cluster.start("a")
    cluster.until(lambda: node.working_on == ALL)
    node.link.close()
    cluster.until(lambda: node.exit_code == 0)


def test_keeper_with_orders_it_cannot_read_does_not_block_the_supervisor(cluster):
    node = cluster.start("a")
    cluster.until(lambda: node.working_on == ALL)
    os.kill(node.pid, signal.SIGSTOP)
    for number in range(2000):
        node.link.publish_status(f'{{"number": {number}, "padding": "{"x" * 1000}"}}')
    os.kill(node.pid, signal.SIGCONT)
    node.link.drain()
    cluster.until(lambda: node.exit_code == 0)


def test_redis_that_lost_data_and_scripts_costs_nobody_a_partition(cluster):
    first, second = cluster.start("a", MEDIUM_TTL_S), cluster.start("b", MEDIUM_TTL_S)
    cluster.until(lambda: _shares(first, second) == [32, 32])
    shares = first.working_on, second.working_on
    with redis.Redis.from_url(cluster.url) as client:
        client.flushall()
        client.script_flush()
    renewed_from = time.monotonic() + MEDIUM_TTL_S - LeaseTiming(MEDIUM_TTL_S).margin_s

    def both_have_renewed() -> bool:
        assert (first.working_on, second.working_on) == shares
        return all(deadline > renewed_from for node in (first, second) for deadline in node.last.leases.values())

    cluster.until(both_have_renewed)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    """A redis-server for one test, to be hurt."""
    with EmbeddedRedis(tmp_path) as server:
        yield server


@pytest.fixture
def own_cluster(own_server: EmbeddedRedis) -> Iterator[Cluster]:
    """A cluster on the test's own server."""
    cluster = Cluster(own_server.url)
    yield cluster
    cluster.close()


def test_keepers_survive_a_restart_of_redis(own_server, own_cluster):
    first, second = own_cluster.start("a", SHORT_TTL_S), own_cluster.start("b", SHORT_TTL_S)
    own_cluster.until(lambda: _shares(first, second) == [32, 32])
    own_server.close()
    own_cluster.until(lambda: first.last.trouble is not None and not first.last.leases)
    assert first.last.trouble.exit_code == exits.COORDINATION
    assert f"coordination.redis unix://{own_server.socket}" in first.last.trouble.message
    assert "32 leases have expired" in first.last.trouble.message
    with EmbeddedRedis(own_server.folder):
        own_cluster.until(lambda: _shares(first, second) == [32, 32])
        assert first.last.trouble is None


def test_keeper_of_a_redis_that_hangs_says_so_and_still_ends_with_its_supervisor(own_server, own_cluster):
    first = own_cluster.start("a", SHORT_TTL_S)
    own_cluster.until(lambda: first.working_on == ALL)
    first.drains = False
    second = own_cluster.start("b", SHORT_TTL_S)
    own_cluster.until(lambda: len(first.last.due_releases) == 32)
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        own_cluster.until(lambda: first.last.trouble is not None and not first.last.leases)
        assert first.last.due_releases == []
        first.link.close()
        own_cluster.until(lambda: first.exit_code == 0)
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    own_cluster.until(lambda: second.working_on == ALL)


def test_wake_hears_what_is_for_it(redis_url):
    with redis.Redis.from_url(redis_url) as client, closing(WakeSubscription(connect(redis_url, 5.0), "ours")) as wake:
        wake.ensure_open()
        client.publish("theirs", "wake")
        assert not _heard_in_time(wake)
        client.publish("ours", "wake")
        until(wake.heard, "the wake")
        assert not wake.heard()


def test_wake_that_lost_its_connection_closes_and_opens_anew(redis_url):
    with redis.Redis.from_url(redis_url) as client, closing(WakeSubscription(connect(redis_url, 5.0), "ours")) as wake:
        wake.ensure_open()
        client.client_kill_filter(_type="pubsub")

        def is_closed() -> bool:
            assert not wake.heard()
            return wake.fileno() is None

        until(is_closed, "the end of the connection")
        wake.ensure_open()
        client.publish("ours", "wake")
        until(wake.heard, "the wake")


def _heard_in_time(wake: WakeSubscription) -> bool:
    """What the subscription says of everything that comes until it is quiet for a moment."""
    heard = False
    while (descriptor := wake.fileno()) is not None and select.select([descriptor], [], [], 0.2)[0]:
        heard |= wake.heard()
    return heard
