"""What can be done to a store of several servers. Registered with the other kinds; each is healed before the next."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import redis

from tests.chaos.faults import KINDS, Act, Kind, Missed
from tests.chaos.replicated import AddressStore, ReplicatedStore, Unfit, kept_file, tear
from tests.chaos.world import World
from tests.support.redis_servers import kept_snapshot

LAG_S = 0.7
"""How long a replica stands still, at least, before its master dies: what the master took meanwhile is lost."""

YOUNG_S = 20.0
"""A store younger than that may have been restored from before its index had a moment."""

StoreAct = Callable[[ReplicatedStore, random.Random, int, int], Iterator[None]]


def store_kind(
    *stores: str, longest_s: float = 0.0, loses_tail: bool = True, weight: int = 1
) -> Callable[[StoreAct], StoreAct]:
    """Register a fault of a master and its replica. Replication is asynchronous: whatever is not planned may lose."""

    def register(act: StoreAct) -> StoreAct:
        KINDS[act.__name__] = Kind(_guarded(act, loses_tail=loses_tail), longest_s, False, stores, weight)
        return act

    return register


def _guarded(act: StoreAct, *, loses_tail: bool) -> Act:
    def guarded(world: World, rnd: random.Random) -> Iterator[None]:
        store = world.store
        assert isinstance(store, ReplicatedStore)
        try:
            with store.taken():
                master, replica = store.draw(rnd)
                store.await_role(replica, "slave")
                if loses_tail or store.hand_over_loses:
                    world.note_loss()
                elif store.hand_over_returns:
                    world.note_return()
                yield from act(store, rnd, master, replica)
        except (Unfit, redis.RedisError) as error:
            raise Missed from error

    return guarded


@store_kind("cluster", "sentinel", "address")
def kill_master(store: ReplicatedStore, rnd: random.Random, master: int, replica: int) -> Iterator[None]:
    """Its replica takes its place; it comes back as a replica."""
    with store.losing_tail(master, replica):
        store.kill(master)
        store.replace(replica)
        store.await_role(replica, "master")
    yield
    store.start(master, replica)
    store.await_replica(master, replica)


@store_kind("cluster", "sentinel", longest_s=6.0)
def hang_master(store: ReplicatedStore, rnd: random.Random, master: int, replica: int) -> Iterator[None]:
    """No FIN: it accepts connections and answers nothing, for a moment or until it was replaced."""
    store.signal(master, signal.SIGSTOP)
    yield
    store.signal(master, signal.SIGCONT)
    time.sleep(1.0)  # it takes a moment to learn that it was replaced


@store_kind("cluster", "sentinel", "address", weight=8)
def promote_stale_replica(store: ReplicatedStore, rnd: random.Random, master: int, replica: int) -> Iterator[None]:
    """The replica lacks what the master took last: it stood still, and its connection was cut.

    One that only stands still loses nothing: what its master sends waits in its socket.
    """
    store.signal(replica, signal.SIGSTOP)
    try:
        store.cut_replication(master)
        time.sleep(LAG_S)
        store.await_tail(master)
        with store.losing_tail(master, replica):
            store.kill(master)
            store.signal(replica, signal.SIGCONT)
            store.replace(replica)
            store.await_role(replica, "master")
    finally:
        store.signal(replica, signal.SIGCONT)
    yield
    store.start(master, replica)
    store.await_replica(master, replica)


@store_kind("address", longest_s=6.0)
def move_address(store: ReplicatedStore, rnd: random.Random, master: int, replica: int) -> Iterator[None]:
    """The address moves to the replica, by mistake or because the master hung: it lives on as one, with its clients."""
    assert isinstance(store, AddressStore)
    hangs = rnd.random() < 0.5
    if hangs:
        store.signal(master, signal.SIGSTOP)
    store.replace(replica)
    yield
    if hangs:
        store.signal(master, signal.SIGCONT)
        time.sleep(1.0)  # what waited on its connections, it takes
    store.demote(master)
    store.await_role(master, "slave")


@store_kind("cluster", "address")
def tear_append_file(store: ReplicatedStore, rnd: random.Random, master: int, replica: int) -> Iterator[None]:
    """A master comes back before anybody replaces it, without the last of its file."""
    store.kill(master)
    with suppress(FileNotFoundError):
        tear(store.folder(master), rnd)
    store.start(master, master)
    yield
    store.await_replica(master, replica)


@store_kind("cluster", "address")
def restore_older_file(store: ReplicatedStore, rnd: random.Random, master: int, replica: int) -> Iterator[None]:
    """A master and its replica come back with what the master's file was a while ago, as from a back-up.

    Of a cluster that is older than its index's first moment nobody knows what was there then: nodes ask for a rebuild.
    """
    if time.monotonic() < store.begun + YOUNG_S:
        raise Unfit
    with kept_file(store.folder(master)) as put_back:
        time.sleep(rnd.uniform(0.5, 3.0))
        store.kill(replica)
        store.kill(master)
        put_back()
    store.start(master, master)
    store.start(replica, master)
    yield
    store.await_replica(master, replica)


@store_kind("cluster", "address")
def restore_older_snapshot(store: ReplicatedStore, rnd: random.Random, master: int, replica: int) -> Iterator[None]:
    """The same with an RDB, which the master loads in place of its append-only file."""
    if time.monotonic() < store.begun + YOUNG_S:
        raise Unfit
    with kept_snapshot(store.client(master), store.folder(master)) as put_back:
        time.sleep(rnd.uniform(0.5, 3.0))
        store.kill(replica)
        store.kill(master)
        put_back()
    store.start(master, master, "appendonly no")
    store.write_append_file(master)
    store.start(replica, master)
    yield
    store.await_replica(master, replica)


@store_kind("cluster", "sentinel", "address", loses_tail=False)
def hand_over(store: ReplicatedStore, rnd: random.Random, master: int, replica: int) -> Iterator[None]:
    """A planned failover: but with Sentinels, nothing is lost."""
    store.hand_over(master, replica)
    store.await_role(replica, "master")
    yield
    store.await_replica(master, replica)
