"""What can be done to the bucket that holds an index. Registered with the other kinds; one at a time."""

import random
from collections.abc import Callable, Iterator

from devbucket import DevBucket
from tests.chaos.bucket_store import N_NODES, N_VBUCKETS, BucketStore
from tests.chaos.faults import KINDS, Act, Kind, Missed
from tests.chaos.world import World

MOST_LOST = 50
"""Seqnos of each vbucket that a failover or a crash takes back, unless they were written durably."""

BucketAct = Callable[[DevBucket, random.Random], Iterator[None]]


def index_bucket_kind(longest_s: float = 0.0) -> Callable[[BucketAct], BucketAct]:
    """Register a fault of the index's bucket. Without a length it is over at once."""

    def register(act: BucketAct) -> BucketAct:
        KINDS[act.__name__] = Kind(_guarded(act), longest_s, alone=False, stores=("couchbase",))
        return act

    return register


def _guarded(act: BucketAct) -> Act:
    def guarded(world: World, rnd: random.Random) -> Iterator[None]:
        store = world.store
        assert isinstance(store, BucketStore)
        with store.taken() as is_ours:
            if not is_ours:
                raise Missed
            yield from act(store.bucket, rnd)

    return guarded


@index_bucket_kind(longest_s=2.0)
def fail_over_index_node(bucket: DevBucket, rnd: random.Random) -> Iterator[None]:
    """The others take its vbuckets, without what was not written durably; it comes back empty."""
    node = rnd.randrange(N_NODES)
    bucket.failover_node(node, rnd.randrange(MOST_LOST))
    yield
    bucket.start_node(node)
    bucket.rebalance()


@index_bucket_kind(longest_s=2.0)
def crash_index_node(bucket: DevBucket, rnd: random.Random) -> Iterator[None]:
    """A node dies and comes back from its disk."""
    node = rnd.randrange(N_NODES)
    bucket.crash_node(node, rnd.randrange(MOST_LOST))
    yield
    bucket.start_node(node)


@index_bucket_kind(longest_s=2.0)
def restart_index_node(bucket: DevBucket, rnd: random.Random) -> Iterator[None]:
    node = rnd.randrange(N_NODES)
    bucket.stop_node(node)
    yield
    bucket.start_node(node)


@index_bucket_kind(longest_s=2.0)
def restart_whole_index_bucket(bucket: DevBucket, rnd: random.Random) -> Iterator[None]:
    nodes = rnd.sample(range(N_NODES), N_NODES)
    for node in nodes:
        bucket.stop_node(node)
    yield
    for node in nodes:
        bucket.start_node(node)


@index_bucket_kind(longest_s=2.0)
def move_index_vbuckets(bucket: DevBucket, rnd: random.Random) -> Iterator[None]:
    bucket.move(rnd.sample(range(N_VBUCKETS), rnd.randrange(1, N_VBUCKETS)), rnd.randrange(N_NODES))
    yield
    bucket.rebalance()


@index_bucket_kind(longest_s=2.0)
def take_index_vbuckets_away(bucket: DevBucket, rnd: random.Random) -> Iterator[None]:
    """Vbuckets are active nowhere for a while."""
    vbs = rnd.sample(range(N_VBUCKETS), rnd.randrange(1, 8))
    for vb in vbs:
        bucket.set_state(vb, "pending")
    yield
    for vb in vbs:
        bucket.set_state(vb, "active")


@index_bucket_kind()
def cut_index_connections(bucket: DevBucket, rnd: random.Random) -> Iterator[None]:
    bucket.drop_connections(node=rnd.choice((None, *range(N_NODES))))
    yield


@index_bucket_kind(longest_s=3.0)
def slow_index_bucket(bucket: DevBucket, rnd: random.Random) -> Iterator[None]:
    """All answers come late and in pieces."""
    bucket.fragment(rnd.choice((7, 100)))
    bucket.delay(rnd.choice((5, 50, 300)))
    yield
    bucket.fragment(0)
    bucket.delay(0)
