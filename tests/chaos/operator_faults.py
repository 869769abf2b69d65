"""What operators do: stop, reload, drain and scale a node, release partitions. Registered with the other kinds."""

import random
import signal
from collections.abc import Iterator

from tests.chaos.faults import Missed, kind
from tests.chaos.world import NODES, World, descendants, send


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
