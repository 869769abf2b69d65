"""Keys that a store in Redis loses for themselves, by eviction or by hand. Registered with the other kinds.

Some are there again by themselves. Of the others the product has to name the loss, and `channelindex repair` has to
make it good (`World.await_recovery`). Channels that are followed keep theirs: who was told of a channel that lost
something reads it from its beginning.
"""

import random
from collections.abc import Iterator
from contextlib import closing

import redis

from tests.chaos.faults import IN_REDIS, Missed, kind
from tests.chaos.lost_key import LostKey
from tests.chaos.raw_layouts import AWAY, RedisLayout
from tests.chaos.replicated import Unfit
from tests.chaos.world import TOLD_CHANNELS, World

HEALING = ("{i}:epoch", "{i}:stable", "{*}:n", "{i}:principals", "{i}:quarantine", "{i}:quarantined")
"""Patterns of keys without which nothing is lost."""

VOUCHING = ("{i}:t:*", "{*}:m")
"""Patterns of keys by which a cluster knows where it was complete: until it knows again, no other fault hits it."""

LEASE_KEYS = ("members", "ends", "leases", "status", "state", "events")
"""Those that the nodes write anew. The others are orders, which have to be ordered again."""


def _open(world: World) -> RedisLayout:
    return RedisLayout(world.store.url, "channels", 2.0)


def _evict_one(layout: RedisLayout, rnd: random.Random, patterns: tuple[str, ...]) -> None:
    if not layout.delete(_any_key(layout, rnd, patterns)):
        raise Missed


def _any_key(layout: RedisLayout, rnd: random.Random, patterns: tuple[str, ...]) -> bytes:
    """A key of one of some kinds, each as likely as the others that have any."""
    keys_by_kind = [keys for pattern in patterns if (keys := layout.keys(pattern))]
    if not keys_by_kind:
        raise Missed
    return rnd.choice(rnd.choice(keys_by_kind))


@kind(stores=IN_REDIS)
def evict_key_that_heals(world: World, rnd: random.Random) -> Iterator[None]:
    """Counters, names, the quarantine."""
    try:
        with closing(_open(world)) as layout:
            _evict_one(layout, rnd, HEALING)
    except AWAY as error:
        raise Missed from error
    yield


@kind(stores=IN_REDIS)
def evict_key_that_vouches(world: World, rnd: random.Random) -> Iterator[None]:
    """A timeline, or the marks of a slot."""
    try:
        world.hold_store()
        with closing(_open(world)) as layout:
            _evict_one(layout, rnd, VOUCHING)
    except (Unfit, *AWAY) as error:
        raise Missed from error
    yield


@kind(stores=IN_REDIS)
def evict_key_that_is_missed(world: World, rnd: random.Random) -> Iterator[None]:
    """The meta record, the stable view, a partition record, an archive, a directory, a block."""
    if world.lost_key is not None:
        raise Missed
    try:
        world.hold_store()
        with closing(_open(world)) as layout:
            lost = rnd.choice((_own_record, _own_record, _directory, _block))(layout, rnd)
            world.note_loss()
            world.lost_key = lost
            if not layout.delete(lost.key):
                world.lost_key = None
                raise Missed
    except (Unfit, *AWAY) as error:
        raise Missed from error
    yield


def _own_record(layout: RedisLayout, rnd: random.Random) -> LostKey:
    key = _any_key(layout, rnd, ("{i}:meta", "{i}:view", "{i}:p:*", "{i}:h:*"))
    return LostKey(key, key.decode(), is_surely_missed=b":h:" not in key)


def _channel(layout: RedisLayout, rnd: random.Random) -> str:
    channels = [channel for channel in layout.channels() if channel not in TOLD_CHANNELS]
    if not channels:
        raise Missed
    return rnd.choice(channels)


def _directory(layout: RedisLayout, rnd: random.Random) -> LostKey:
    key = layout.directory_key(_channel(layout, rnd))
    return LostKey(key, key.decode())


def _block(layout: RedisLayout, rnd: random.Random) -> LostKey:
    channel = _channel(layout, rnd)
    groups = list(layout.groups(channel))
    if not groups:
        raise Missed
    group = rnd.choice(groups)
    number = rnd.randint(group.first, group.active)
    name = f"{group.name}:{number}:{channel}"
    return LostKey(layout.block_key(channel, group.name, number), name, True, channel, group.name, number)


@kind()
def evict_lease_key(world: World, rnd: random.Random) -> Iterator[None]:
    """Nodes that tick write it anew."""
    try:
        with world.leases.client() as client:
            names = [f"ci:channels:{{coordination}}:{name}" for name in LEASE_KEYS]
            there = [name for name in names if client.exists(name)]
            if not there or not client.delete(rnd.choice(there)):
                raise Missed
    except redis.RedisError as error:
        raise Missed from error
    yield
