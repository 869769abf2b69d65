"""What can be done to the two Redis, and to the links to them and to other stores. Registered with the other kinds."""

import random
import resource
from collections.abc import Iterator
from contextlib import suppress

import redis

from tests.chaos.faults import Missed, kind, stopped
from tests.chaos.proxy import Link
from tests.chaos.world import NODES, RedisPart, World

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
    yield from stopped([world.single_store.process])


@kind(longest_s=4.0)
def pause_leases(world: World, rnd: random.Random) -> Iterator[None]:
    yield from stopped([world.leases.process])


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
