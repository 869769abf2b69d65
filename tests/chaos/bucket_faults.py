"""What can be done to the bucket that is indexed and to the connections to it. Registered with the other kinds."""

import random
import time
from collections.abc import Iterator

from devbucket.vbucket import COMPRESSION_MODES
from tests.chaos.faults import Missed, kind
from tests.chaos.world import N_BUCKET_NODES, N_VBUCKETS, World

FEED = "channelindex"
"""What the names of the nodes' connections to the bucket begin with: the writers' have none."""


MOST_BUCKET_NODES = 8


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
