"""What can be done to a world, one function per kind of fault.

Each is a generator: up to its `yield` it does harm, after it it heals. Whatever it chooses, it chooses by the `Random`
that it is given, so that a schedule repeats it. One that finds nobody to harm raises `Missed` and does not count.
"""

import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import psutil
import redis

from devbucket.vbucket import COMPRESSION_MODES
from tests.chaos.proxy import Link
from tests.chaos.world import N_BUCKET_NODES, N_VBUCKETS, NODES, RedisPart, World, descendants, send

FEED = "channelindex"
"""What the names of the nodes' connections to the bucket begin with: the writers' have none."""


MOST_BUCKET_NODES = 8


STORES = ("redis", "cluster", "sentinel", "address", "couchbase")
"""The kinds of store that a world can have."""


IN_REDIS = tuple(store for store in STORES if store != "couchbase")
"""Those whose keys can be evicted one by one."""


class Missed(Exception):
    """There was nobody to harm."""


Act = Callable[[World, random.Random], Iterator[None]]


class Kind(NamedTuple):
    """A kind of fault: what it does, and how long it may last.

    Of those that take the bucket from its writers (`alone`) there is one at a time: what a second one costs could not
    be told.
    """

    act: Act
    longest_s: float
    alone: bool
    stores: tuple[str, ...] = STORES
    """The kinds of store that it can hit."""
    weight: int = 1
    """How often it is drawn, in comparison with others of its store."""


KINDS: dict[str, Kind] = {}


def kind(longest_s: float = 0.0, *, alone: bool = False, stores: tuple[str, ...] = STORES) -> Callable[[Act], Act]:
    """Register a kind of fault under the name of its function. Without a length it is over at once."""

    def register(act: Act) -> Act:
        KINDS[act.__name__] = Kind(act, longest_s, alone, stores)
        return act

    return register


# -- processes of the nodes


def _child(world: World, rnd: random.Random, role: str) -> psutil.Process:
    child = world.child(rnd, role)
    if child is None:
        raise Missed
    return child


def _stopped(processes: list[psutil.Process]) -> Iterator[None]:
    if not processes:
        raise Missed
    for process in processes:
        send(process, signal.SIGSTOP)
    yield
    for process in processes:
        send(process, signal.SIGCONT)


@kind()
def kill_feed_worker(world: World, rnd: random.Random) -> Iterator[None]:
    send(_child(world, rnd, "feed_worker"), signal.SIGKILL)
    yield


@kind()
def kill_batch_writer(world: World, rnd: random.Random) -> Iterator[None]:
    """What the kernel does when memory is short, too."""
    send(_child(world, rnd, "batch_writer"), signal.SIGKILL)
    yield


@kind()
def kill_compactor(world: World, rnd: random.Random) -> Iterator[None]:
    """Whatever it is in the middle of; those of the other nodes go on."""
    send(_child(world, rnd, "compactor"), signal.SIGKILL)
    yield


@kind(longest_s=6.0)
def pause_compactor(world: World, rnd: random.Random) -> Iterator[None]:
    """It goes on by a view that is old by then, in channels that others may have compacted."""
    yield from _stopped([_child(world, rnd, "compactor")])


@kind()
def kill_lease_keeper(world: World, rnd: random.Random) -> Iterator[None]:
    send(_child(world, rnd, "lease_keeper"), signal.SIGKILL)
    yield


@kind(longest_s=6.0)
def kill_supervisor(world: World, rnd: random.Random) -> Iterator[None]:
    """The whole node dies, and comes back after a while."""
    node = world.node(rnd)
    if not node.running:
        raise Missed
    node.signal_all(signal.SIGCONT)  # one that stands still cannot die of its parent's death
    node.kill()
    yield
    world.start(node)


@kind(longest_s=9.0)
def pause_feed_worker(world: World, rnd: random.Random) -> Iterator[None]:
    yield from _stopped([_child(world, rnd, "feed_worker")])


@kind(longest_s=9.0)
def pause_batch_writer(world: World, rnd: random.Random) -> Iterator[None]:
    yield from _stopped([_child(world, rnd, "batch_writer")])


@kind(longest_s=4.0)
def pause_lease_keeper(world: World, rnd: random.Random) -> Iterator[None]:
    yield from _stopped([_child(world, rnd, "lease_keeper")])


@kind(longest_s=5.0)
def pause_supervisor(world: World, rnd: random.Random) -> Iterator[None]:
    """Its workers go on without it, beyond the leases of the node."""
    node = world.node(rnd)
    yield from _stopped(descendants(node.pid)[:1] if node.running else [])


@kind(longest_s=6.0)
def pause_node(world: World, rnd: random.Random) -> Iterator[None]:
    """All its processes stand still, beyond its leases; its writes are on the wire."""
    node = world.node(rnd)
    yield from _stopped(descendants(node.pid) if node.running else [])


@kind(longest_s=2.0)
def starve_of_memory(world: World, rnd: random.Random) -> Iterator[None]:
    """A worker gets no more memory."""
    victim = _child(world, rnd, rnd.choice(("feed_worker", "batch_writer")))
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    try:
        resource.prlimit(victim.pid, resource.RLIMIT_AS, (victim.memory_info().vms, resource.RLIM_INFINITY))
    except (ProcessLookupError, psutil.NoSuchProcess) as error:
        raise Missed from error
    yield
    with suppress(ProcessLookupError):
        resource.prlimit(victim.pid, resource.RLIMIT_AS, unlimited)


@kind(longest_s=8.0)
def jump_clock(world: World, rnd: random.Random) -> Iterator[None]:
    """The wall clock of a node jumps by up to a day, back or ahead, and back to the truth."""
    node = world.node(rnd)
    node.jump(rnd.choice((-1, 1)) * rnd.choice((1.0, 60.0, 3600.0, 86400.0)))
    yield
    node.jump(0.0)


# -- the service of the readers over HTTP


@kind()
def kill_service(world: World, rnd: random.Random) -> Iterator[None]:
    """It forgets all that it had kept for its readers, and is started again once all is healed."""
    if not world.service.running:
        raise Missed
    world.service.stop(signal.SIGKILL)
    yield


@kind(longest_s=5.0)
def pause_service(world: World, rnd: random.Random) -> Iterator[None]:
    yield from _stopped([psutil.Process(world.service.pid)] if world.service.running else [])


# -- the two Redis


@kind(stores=("redis",))
def kill_store(world: World, rnd: random.Random) -> Iterator[None]:
    world.single_store.kill()
    yield


@kind()
def kill_leases(world: World, rnd: random.Random) -> Iterator[None]:
    """It comes back empty."""
    world.leases.kill()
    yield


@kind(longest_s=4.0, stores=("redis",))
def pause_store(world: World, rnd: random.Random) -> Iterator[None]:
    yield from _stopped([world.single_store.process])


@kind(longest_s=4.0)
def pause_leases(world: World, rnd: random.Random) -> Iterator[None]:
    yield from _stopped([world.leases.process])


@kind(longest_s=3.0, stores=("redis",))
def full_disk(world: World, rnd: random.Random) -> Iterator[None]:
    """The index's Redis can write little more to its file, and ends, because it must have on disk what it says."""
    with _operator(world.single_store) as client:
        size = client.info("persistence")["aof_current_size"]
    process = world.single_store.process
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size + rnd.randrange(4096), resource.RLIM_INFINITY))
    yield
    with suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    world.store.revive()


@kind(longest_s=3.0, stores=("redis",))
def store_out_of_memory(world: World, rnd: random.Random) -> Iterator[None]:
    """The index's Redis answers writes with an error."""
    with _operator(world.single_store) as client:
        client.config_set("maxmemory", 1)
    world.single_store.limited = True
    yield
    world.store.lift_limit()


@kind()
def forget_scripts(world: World, rnd: random.Random) -> Iterator[None]:
    parts = (world.store if isinstance(world.store, RedisPart) else world.leases, world.leases)
    with _operator(rnd.choice(parts)) as client:
        client.script_flush()
    yield


class _operator:  # noqa: N801 - reads as a function
    """A client of a Redis, for a moment; one that cannot be reached has been hit by another fault."""

    def __init__(self, part: RedisPart) -> None:
        self._client = part.client()

    def __enter__(self) -> redis.Redis:
        return self._client

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._client.close()
        if isinstance(error, redis.RedisError):
            raise Missed from error


# -- the links to them


def _store_link(world: World, rnd: random.Random) -> Link:
    return world.store_links[rnd.choice(NODES)]


def _any_link(world: World, rnd: random.Random) -> Link:
    return rnd.choice((world.store_links or world.leases_links, world.leases_links))[rnd.choice(NODES)]


@kind()
def cut_link(world: World, rnd: random.Random) -> Iterator[None]:
    _any_link(world, rnd).cut()
    yield


@kind(longest_s=5.0)
def stall_link(world: World, rnd: random.Random) -> Iterator[None]:
    link = _any_link(world, rnd)
    link.stall(on=True)
    yield
    link.stall(on=False)


@kind()
def half_open_link(world: World, rnd: random.Random) -> Iterator[None]:
    """What is sent on the connections there are is swallowed, and no answer comes."""
    _any_link(world, rnd).become_half_open()
    yield


@kind(longest_s=4.0)
def slow_link(world: World, rnd: random.Random) -> Iterator[None]:
    link = _any_link(world, rnd)
    link.delay_s = rnd.choice((0.02, 0.1, 0.4))
    yield
    link.delay_s = 0.0


@kind(longest_s=3.0, stores=("redis", "address"))
def lose_requests(world: World, rnd: random.Random) -> Iterator[None]:
    """Every so-many-th request to the store is not carried out, and the connection cut."""
    yield from _losing(_store_link(world, rnd), rnd, reply_only=False)


@kind(longest_s=3.0, stores=("redis", "address"))
def lose_replies(world: World, rnd: random.Random) -> Iterator[None]:
    """Every so-many-th request to the store is carried out and the connection cut before the answer."""
    yield from _losing(_store_link(world, rnd), rnd, reply_only=True)


def _losing(link: Link, rnd: random.Random, *, reply_only: bool) -> Iterator[None]:
    link.lose(rnd.choice((2, 5, 20)), reply_only=reply_only)
    yield
    link.lose(0, reply_only=reply_only)


@kind(longest_s=6.0)
def split_from_leases(world: World, rnd: random.Random) -> Iterator[None]:
    """A node reaches the store, but not the leases, beyond their end."""
    yield from _refusing(world.leases_links[rnd.choice(NODES)])


@kind(longest_s=6.0, stores=("redis", "address"))
def split_from_redis(world: World, rnd: random.Random) -> Iterator[None]:
    """A node reaches neither the store nor the leases."""
    name = rnd.choice(NODES)
    yield from _refusing(world.store_links[name], world.leases_links[name])


@kind(longest_s=5.0, stores=("redis", "address"))
def starve_readers(world: World, rnd: random.Random) -> Iterator[None]:
    """All readers stand still, or their connections are cut."""
    if rnd.random() < 0.5:
        yield from _refusing(_readers_link(world))
        return
    _readers_link(world).stall(on=True)
    yield
    _readers_link(world).stall(on=False)


def _readers_link(world: World) -> Link:
    assert world.readers_link
    return world.readers_link


def _refusing(*links: Link) -> Iterator[None]:
    for link in links:
        link.refuse(on=True)
    yield
    for link in links:
        link.refuse(on=False)


# -- the nodes' connections to the bucket


def _hit(n_connections: int) -> None:
    if n_connections == 0:
        raise Missed


@kind()
def drop_feed(world: World, rnd: random.Random) -> Iterator[None]:
    _hit(world.bucket.drop_connections(FEED, rnd.choice((None, *range(N_BUCKET_NODES)))))
    yield


@kind(longest_s=5.0)
def stall_feed(world: World, rnd: random.Random) -> Iterator[None]:
    """The bucket sends nothing of its streams, but answers."""
    node = rnd.randrange(N_BUCKET_NODES)
    _hit(world.bucket.stall(on=True, name=FEED, node=node))
    yield
    world.bucket.stall(on=False, name=FEED, node=node)


@kind()
def half_open_feed(world: World, rnd: random.Random) -> Iterator[None]:
    """Connections to a node of the bucket stand without a word until the feed gives them up."""
    _hit(world.bucket.half_open(FEED, rnd.randrange(N_BUCKET_NODES)))
    yield


@kind(longest_s=3.0)
def fragment_feed(world: World, rnd: random.Random) -> Iterator[None]:
    """All comes late and in pieces."""
    _hit(world.bucket.fragment(rnd.choice((7, 100)), FEED))
    world.bucket.delay(rnd.choice((5, 50)), FEED)
    yield
    world.bucket.fragment(0, FEED)
    world.bucket.delay(0, FEED)


@kind()
def cut_frame(world: World, rnd: random.Random) -> Iterator[None]:
    _hit(world.bucket.cut_frame(FEED, rnd.randrange(N_BUCKET_NODES)))
    yield


@kind()
def flip_byte(world: World, rnd: random.Random) -> Iterator[None]:
    """The first byte of a frame comes wrong."""
    _hit(world.bucket.flip_byte(0, FEED, rnd.randrange(N_BUCKET_NODES)))
    yield


@kind()
def close_streams(world: World, rnd: random.Random) -> Iterator[None]:
    """The bucket ends streams, for reasons that it has and one that it has not."""
    _hit(sum(world.bucket.close_stream(vb, rnd.choice((0, 1, 2, 3, 4, 5, 6, 99)), FEED) for vb in _some_vbs(rnd)))
    yield


@kind()
def new_checkpoints(world: World, rnd: random.Random) -> Iterator[None]:
    """Snapshots are cut elsewhere, and what is resumed comes from disk."""
    for vb in _some_vbs(rnd):
        world.bucket.new_checkpoint(vb)
        world.bucket.settle(vb)
    yield


def _some_vbs(rnd: random.Random) -> list[int]:
    return rnd.sample(range(N_VBUCKETS), rnd.randrange(1, N_VBUCKETS))


# -- the bucket itself


@kind()
def move_vbuckets(world: World, rnd: random.Random) -> Iterator[None]:
    world.bucket.move(_some_vbs(rnd), rnd.randrange(N_BUCKET_NODES))
    yield
    if rnd.random() < 0.5 and any(node["running"] for node in world.bucket.nodes()):  # all end in another fault
        world.bucket.rebalance()


@kind(longest_s=2.0, alone=True)
def restart_bucket_node(world: World, rnd: random.Random) -> Iterator[None]:
    node = rnd.randrange(N_BUCKET_NODES)
    world.bucket.stop_node(node)
    yield
    world.bucket.start_node(node)


@kind(longest_s=2.0, alone=True)
def take_vbuckets_away(world: World, rnd: random.Random) -> Iterator[None]:
    """Vbuckets are active nowhere for a while."""
    vbs = _some_vbs(rnd)
    for vb in vbs:
        world.bucket.set_state(vb, rnd.choice(("replica", "pending", "dead")))
    yield
    for vb in vbs:
        world.bucket.set_state(vb, "active")


@kind(longest_s=4.0, alone=True)
def refuse_logins(world: World, rnd: random.Random) -> Iterator[None]:
    world.bucket.refuse_logins(on=True)
    world.bucket.drop_connections(FEED)
    yield
    world.bucket.refuse_logins(on=False)


@kind(longest_s=4.0, alone=True)
def warm_up(world: World, rnd: random.Random) -> Iterator[None]:
    world.bucket.warm_up(on=True)
    world.bucket.drop_connections(FEED)
    yield
    world.bucket.warm_up(on=False)


@kind(alone=True)
def fail_over_vbuckets(world: World, rnd: random.Random) -> Iterator[None]:
    """Vbuckets get a new history that lacks their last seqnos."""
    vbs = _some_vbs(rnd)
    with world.losing(vbs):
        for vb in vbs:
            try:
                world.bucket.failover(vb, lose=rnd.randrange(6))
            except ValueError:  # the dev bucket has forgotten how it was before
                world.bucket.failover(vb)
    yield


@kind(alone=True)
def crash_bucket_node(world: World, rnd: random.Random) -> Iterator[None]:
    """A node of the bucket dies, lacks its last seqnos and comes back."""
    node = rnd.randrange(N_BUCKET_NODES)
    with world.losing(_owned_by(world, node)):
        world.bucket.crash_node(node, rnd.randrange(6))
        time.sleep(rnd.uniform(0.0, 0.5))
        world.bucket.start_node(node)
    yield


@kind(longest_s=2.0, alone=True)
def fail_over_bucket_node(world: World, rnd: random.Random) -> Iterator[None]:
    """The others take its vbuckets, without their last seqnos; it comes back empty."""
    node = rnd.randrange(N_BUCKET_NODES)
    with world.losing(_owned_by(world, node)):
        world.bucket.failover_node(node, rnd.randrange(6))
    yield
    world.bucket.start_node(node)
    world.bucket.rebalance()


def _owned_by(world: World, node: int) -> list[int]:
    return [vb for vb, owner in enumerate(world.bucket.owners()) if owner == node]


# -- how the bucket holds what it has


@kind()
def evict_documents(world: World, rnd: random.Random) -> Iterator[None]:
    """Memory is short: values are on disk only, compressed, and whoever resumes is sent them from there."""
    for vb in _some_vbs(rnd):
        world.bucket.evict(vb, rnd.choice((1, 2, 5)))
    _hit(world.bucket.drop_connections(FEED))
    yield


@kind()
def change_compression(world: World, rnd: random.Random) -> Iterator[None]:
    world.bucket.set_compression(rnd.choice(COMPRESSION_MODES))
    yield


@kind(longest_s=2.0, alone=True)
def restart_bucket_from_disk(world: World, rnd: random.Random) -> Iterator[None]:
    """All nodes of the bucket end and begin again: tombstones are on disk only."""
    nodes = [node["node"] for node in world.bucket.nodes() if node["running"]]
    rnd.shuffle(nodes)
    for node in nodes:
        world.bucket.stop_node(node)
    yield
    for node in nodes:
        world.bucket.start_node(node)


@kind(longest_s=3.0)
def join_bucket_node(world: World, rnd: random.Random) -> Iterator[None]:
    """A node joins the bucket without a vbucket, and gets some after a while."""
    if len(world.bucket.nodes()) >= MOST_BUCKET_NODES:
        raise Missed
    joined = world.bucket.add_node()
    yield
    world.bucket.move(_some_vbs(rnd), joined)


@kind()
def resync_documents(world: World, rnd: random.Random) -> Iterator[None]:
    """Sync Gateway puts documents into other channels, under the sequence and revision that they have."""
    for writer in world.writers:
        writer.resync_soon(rnd.getrandbits(32), rnd.randrange(1, 20))
    yield


# -- what operators do


@kind(longest_s=5.0)
def stop_node(world: World, rnd: random.Random) -> Iterator[None]:
    """SIGTERM: it drains, gives its leases back and ends; then it comes back."""
    node = world.node(rnd)
    if not node.running:
        raise Missed
    stopped = node.pid
    node.signal(signal.SIGTERM)
    yield
    if node.pid == stopped:  # nobody else has started it anew
        for process in descendants(stopped):
            send(process, signal.SIGCONT)  # who stands still by another fault would not end before that is healed
        node.wait()
    world.start(node)


@kind(longest_s=4.0)
def reload_node(world: World, rnd: random.Random) -> Iterator[None]:
    node = world.node(rnd)
    if not node.running:
        raise Missed
    node.signal(signal.SIGHUP)
    yield


@kind(longest_s=5.0)
def drain_node(world: World, rnd: random.Random) -> Iterator[None]:
    """It is ordered to own nothing, and after the episode to share again."""
    name = rnd.choice(NODES)
    world.drained.add(name)  # even if it is not told to have worked; undone after the episode, when the leases are back
    _order(world, "drain", name)
    yield


@kind()
def scale_node(world: World, rnd: random.Random) -> Iterator[None]:
    counts = ("--feed-workers", rnd.randrange(1, 3), "--batch-writers", rnd.randrange(1, 4))
    _order(world, "scale", "--node", rnd.choice(NODES), *counts)
    yield


@kind()
def release_partitions(world: World, rnd: random.Random) -> Iterator[None]:
    _order(world, "release", *rnd.sample(range(8), rnd.randrange(1, 5)))
    yield


def _order(world: World, *arguments: object) -> None:
    if world.operate(*arguments) != 0:
        raise Missed
