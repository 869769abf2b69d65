"""The store moves to another server, and everybody who was connected finds it again, in the process that it was."""

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import pytest

from channelindex.compaction.compactor import Compactor
from channelindex.errors import OwnershipLost
from channelindex.redis.endpoints import server_of
from channelindex.redis.watchful import WatchfulConnection
from channelindex.redis_url import parse_redis_url
from channelindex.settings import CompactionSettings
from channelindex.stores import open_compaction, open_compaction_reader
from tests.chaos.proxy import Link, Proxy
from tests.support.node import eventually, until
from tests.support.redis_cluster import N_MASTERS, ClusterOfThree
from tests.support.redis_sentinel import MasterAndReplica, SentinelAndMaster
from tests.support.stores import META, Backend, all_entries, append, checkpoints, entry

pytestmark = pytest.mark.slow

DEADLINE_S = 120.0
PATIENT = "?socket_timeout=3600"
"""Whoever waits out a reply that does not come waits longer than any test."""
CHANNELS = [f"channel-{number}" for number in range(40)]


class Users:
    """One of each who uses a store, connected, with a first entry in every channel and the stable clock on it."""

    def __init__(self, url: str) -> None:
        self.backend = Backend(url)
        self.owner, self.writer, self.reader = self.backend.owner(), self.backend.writer(), self.backend.reader()
        self.owner.create_or_check(META)
        self.epoch = self.owner.next_epoch()
        self.owner.begin(0, self.epoch, "n1")
        self.seqno = 0
        self.write()
        self.advance()
        assert self.reader.stable_counter() > 0

    def write(self) -> None:
        """One more entry in every channel."""
        batch = [append(channel, self.epoch, entry(0, self.seqno + 1)) for channel in CHANNELS]
        eventually(lambda: self.writer.write(batch))
        self.seqno += 1

    def advance(self) -> None:
        """Move the stable clock over what was written."""
        eventually(lambda: self.owner.advance(self.epoch, checkpoints({0: self.seqno})))
        eventually(lambda: self.owner.note_moments(self.epoch, [0], time.time()))

    def find_the_store_again(self) -> None:
        """Write, begin a new epoch, advance and wait for it: all that a running node and its readers do."""
        self.write()
        counter = eventually(self.reader.stable_counter)
        with suppress(OwnershipLost):  # it is another server, and may have forgotten
            self.advance()
        eventually(self.owner.next_epoch)  # also of one that has lost its partitions: it may be the supervisor's
        self.owner = self.backend.owner()
        before, self.epoch = self.epoch, eventually(self.owner.next_epoch)
        assert self.epoch > before
        eventually(lambda: self.owner.begin(0, self.epoch, "n1"))
        self.write()
        self.advance()
        assert eventually(lambda: self.reader.wait_stable(counter, timeout_s=1)) > counter
        for channel in CHANNELS:
            found = {each.seqno for _, each in eventually(partial(all_entries, self.reader, channel))}
            assert found == set(range(1, self.seqno + 1))


@pytest.fixture
def users() -> Iterator[Callable[[str], Users]]:
    opened: list[Users] = []

    def connected(url: str) -> Users:
        opened.append(Users(url))
        return opened[-1]

    yield connected
    for each in opened:
        each.backend.close()


@pytest.fixture
def looks(monkeypatch) -> list[bool]:
    """What each look for another server found, of those that were done while one was silent; many of them."""
    found: list[bool] = []
    has_successor = WatchfulConnection.has_successor

    def noted(connection: WatchfulConnection) -> bool:
        found.append(has_successor(connection))
        return found[-1]

    monkeypatch.setattr(WatchfulConnection, "has_successor", noted)
    return found


@contextmanager
def standing_still(server: subprocess.Popen[bytes]) -> Iterator[None]:
    """In here *server* accepts connections and answers nothing, unless it is woken."""
    server.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.send_signal(signal.SIGCONT)


@pytest.fixture
def address() -> Iterator[Callable[[int], Link]]:
    """An address that leads to a port, and can be moved to another one."""
    with Proxy() as proxy:
        yield proxy.link


def test_masters_that_die_for_good_are_found_again_at_their_replicas(users):
    """Row 1: the promoted replica has another port, and nobody ever answers at the old one."""
    with ClusterOfThree(replicas=True) as cluster:
        connected = users(cluster.url)
        for number in range(N_MASTERS):
            cluster.await_offset(number)  # what a failover loses, a feed brings again: there is none
            cluster.kill(number)
            connected.find_the_store_again()
            assert cluster.is_master(number + N_MASTERS)
            cluster.await_agreement(gone=number)


def test_a_master_of_a_cluster_that_hangs_is_found_again_at_its_replica(users):
    """It accepts connections and answers nothing; when it wakes up it is a replica, and is not taken for the master."""
    with ClusterOfThree(replicas=True) as cluster:
        connected = users(cluster.url + PATIENT)
        cluster.await_offset(0)
        with standing_still(cluster.process(0)):
            connected.find_the_store_again()
        connected.write()
        connected.advance()


def test_a_master_that_hangs_and_that_the_sentinel_replaces_is_found_again(users):
    with SentinelAndMaster() as servers:
        connected = users(servers.url + PATIENT)
        servers.await_replica()
        with standing_still(servers.process(0)):
            connected.find_the_store_again()


def test_a_master_that_hangs_and_whose_address_moves_is_found_again(users, address):
    with MasterAndReplica() as servers:
        link = address(servers.ports[0])
        connected = users(link.url + PATIENT)
        servers.await_replica()
        with standing_still(servers.process(0)):
            servers.promote()
            link.upstream = servers.ports[1]
            connected.find_the_store_again()


def test_an_owner_stays_with_its_master_until_the_replica_that_the_address_leads_to_is_promoted(users, address, looks):
    """The address was moved too early, or is a name of replicas, too. A replica takes no writes."""
    with MasterAndReplica() as servers:
        link = address(servers.ports[0])
        connected = users(link.url)
        link.upstream = servers.ports[1]
        n_looks = len(looks)

        def looked() -> bool:
            connected.owner.advance(connected.epoch, checkpoints({0: connected.seqno}))
            return len(looks) > n_looks

        until(looked, "the owner to have looked where the address leads")
        assert not any(looks)
        servers.await_replica()
        servers.promote()
        with pytest.raises(OwnershipLost, match="failed over"):
            until(lambda: looked() and any(looks), "the owner to follow the address")


@pytest.fixture(params=["address", "sentinel", "cluster"])
def unreplaced(request, address) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Where a store is, and a server of it whose place nobody takes however long it is silent."""
    if request.param == "cluster":
        with ClusterOfThree(replicas=True) as cluster:
            cluster.allow_no_failover()
            yield cluster.url, cluster.process(0)
    elif request.param == "sentinel":
        with SentinelAndMaster() as servers:
            servers.allow_no_failover()
            yield servers.url, servers.process(0)
    else:
        with MasterAndReplica() as servers:
            yield address(servers.ports[0]).url, servers.process(0)


def test_a_server_that_is_silent_and_has_no_successor_is_waited_for(users, unreplaced, looks):
    """It is busy, or its machine swaps: it answers nobody, and nobody was put in its place."""
    url, server = unreplaced
    connected = users(url + PATIENT)
    session = connected.writer.servers(), connected.owner.next_epoch()
    with standing_still(server), ThreadPoolExecutor(1) as pool:
        batch = [append(channel, connected.epoch, entry(0, connected.seqno + 1)) for channel in CHANNELS]
        written = pool.submit(connected.writer.write, batch)
        until(lambda: len(looks) >= 3, "the writer to have looked out for another server")
        assert not written.done()
        server.send_signal(signal.SIGCONT)
        assert written.result(DEADLINE_S) == set(), "it was answered, by whom it asked"
    assert not any(looks)
    assert connected.writer.servers() == session[0]


def test_a_look_asks_one_sentinel_and_the_next_look_another_where_that_does_not_answer():
    """Each takes its time to be given up; who looks does not have that much."""
    with SentinelAndMaster() as servers, socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        sentinel = servers.url.removeprefix("redis+sentinel://").partition("/")[0]
        rest = servers.url.removeprefix(f"redis+sentinel://{sentinel}")
        others = f"127.0.0.1:{silent.getsockname()[1]}"
        url = f"redis+sentinel://{sentinel},{others}{rest}"
        connection = server_of(parse_redis_url(url))()
        assert not connection.has_successor()
        with standing_still(servers.process(2)):
            assert not connection.has_successor()
            with pytest.raises(BlockingIOError):
                silent.accept()
            assert not connection.has_successor()
            silent.accept()[0].close()


def test_a_name_server_that_does_not_answer_holds_up_nobody_who_waits_for_a_slow_server(users, looks, monkeypatch):
    asked, answers = threading.Event(), threading.Event()
    look_up = socket.getaddrinfo

    def stalled(host, port, *arguments, **options):
        if port is None and "flags" not in options:  # in a look, which asks for a name alone
            asked.set()
            assert answers.wait(DEADLINE_S)
        return look_up(host, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", stalled)
    with MasterAndReplica() as servers, ThreadPoolExecutor(1) as pool:
        connected = users(f"redis://localhost:{servers.ports[0]}{PATIENT}")
        with standing_still(servers.process(0)):
            written = pool.submit(connected.writer.write, [append("A", connected.epoch, entry(0, 2))])
            until(lambda: asked.is_set() and looks, "the writer to have looked out for another server")
        assert written.result(DEADLINE_S) == set()
        answers.set()
    assert not any(looks)


def test_a_server_that_answers_others_is_not_given_up_for_being_slow_to_us(users, address, looks):
    """Writes are paused, as before a planned failover: whoever connects meanwhile is told that it is still the same."""
    with MasterAndReplica() as servers:
        connected = users(address(servers.ports[0]).url + PATIENT)
        servers.client(0).execute_command("CLIENT", "PAUSE", 600_000, "WRITE")
        with ThreadPoolExecutor(1) as pool:
            batch = [append("A", connected.epoch, entry(0, 2))]
            written = pool.submit(connected.writer.write, batch)
            until(lambda: len(looks) >= 3, "the writer to have looked out for another server")
            servers.client(0).execute_command("CLIENT", "UNPAUSE")
            assert written.result(DEADLINE_S) == set()
    assert not any(looks)


def test_a_master_that_the_sentinel_replaces_is_found_again(users):
    with SentinelAndMaster() as servers:
        connected = users(servers.url)
        servers.await_replica()
        servers.fail_over()
        connected.find_the_store_again()


def test_planned_failover_of_one_redis_is_found_again_at_its_address(users, address):
    """Row 5: the demoted master keeps its clients, and answers READONLY to them for ever."""
    with MasterAndReplica() as servers:
        link = address(servers.ports[0])
        connected = users(link.url)
        servers.hand_over()
        link.upstream = servers.ports[1]
        connected.find_the_store_again()


def test_readers_find_the_new_master_though_the_old_one_lives_and_keeps_them(users, address, monkeypatch):
    """The address moved, and nothing tells those who are connected: a follower has to ask anew by itself."""
    monkeypatch.setattr("channelindex.redis.link.MAX_AGE_S", 0.5)
    with MasterAndReplica() as servers:
        link = address(servers.ports[0])
        connected = users(link.url)
        servers.await_replica()
        servers.promote()
        link.upstream = servers.ports[1]
        elsewhere, counter = Backend(link.url), connected.reader.stable_counter()
        owner = elsewhere.owner()
        epoch = owner.next_epoch()
        owner.begin(0, epoch, "n2")
        owner.advance(epoch, checkpoints({0: 2}))
        deadline = time.monotonic() + DEADLINE_S
        while connected.reader.wait_stable(counter, timeout_s=0.1) <= counter:
            assert time.monotonic() < deadline
        assert connected.reader.partition_records()[0].epoch == epoch
        elsewhere.close()


def test_a_compactor_judges_by_the_server_that_it_changes_though_the_old_one_lives(users, address):
    """An epoch that ended in the old one goes on in the new one: what is appended there must not leave unread."""
    with MasterAndReplica() as servers:
        link = address(servers.ports[0])
        connected = users(link.url)
        connected.writer.write([append("A", connected.epoch, entry(0, seqno, "doc-1")) for seqno in range(2, 10)])
        connected.seqno = 9
        connected.advance()
        store = open_compaction(connected.backend.settings)
        reader = open_compaction_reader(connected.backend.settings, store)
        in_an_hour_s = time.time() + 3600.0
        compactor = Compactor(store, reader, CompactionSettings(min_lag_s=1.0), 65536, clock=lambda: in_an_hour_s)
        assert reader.stable_counter() > 0
        servers.client(0).set("all", "before")
        until(lambda: servers.client(1).get("all") is not None, "the replica to have all")
        servers.promote()
        link.upstream = servers.ports[1]
        compactor.compact(CHANNELS[0])
        connected.owner.begin(0, connected.epoch + 1, "n2")  # it is still connected to the old one
        elsewhere = Backend(link.url)
        elsewhere.writer().write([append("A", connected.epoch, entry(0, 10, "doc-2"))])
        compactor.compact("A")
        assert 10 in {each.seqno for _, each in all_entries(elsewhere.reader(), "A")}
        for each in (store, reader, elsewhere):
            each.close()


def test_a_compactor_finds_what_is_due_at_an_address_that_moved_though_the_old_one_lives(users, address, monkeypatch):
    monkeypatch.setattr("channelindex.stores.redis.compaction.MAX_AGE_S", 0.0)
    with MasterAndReplica() as servers:
        link = address(servers.ports[0])
        store = users(link.url).backend.compaction()
        assert store.sizes(["new"]) == [None]
        servers.promote()
        link.upstream = servers.ports[1]
        elsewhere = Backend(link.url)
        elsewhere.writer().write([append("new", 1, entry(0, 1))])
        assert store.sizes(["new"]) != [None]
        elsewhere.close()
