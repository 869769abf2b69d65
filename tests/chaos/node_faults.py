"""What can be done to the processes of a node and to the service of the readers. Registered with the other kinds."""

import random
import resource
import signal
from collections.abc import Iterator
from contextlib import suppress

import psutil

from tests.chaos.faults import Missed, kind, stopped
from tests.chaos.world import World, descendants, send


def _child(world: World, rnd: random.Random, role: str) -> psutil.Process:
    child = world.child(rnd, role)
    if child is None:
        raise Missed
    return child


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
    yield from stopped([_child(world, rnd, "compactor")])


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
    yield from stopped([_child(world, rnd, "feed_worker")])


@kind(longest_s=9.0)
def pause_batch_writer(world: World, rnd: random.Random) -> Iterator[None]:
    yield from stopped([_child(world, rnd, "batch_writer")])


@kind(longest_s=4.0)
def pause_lease_keeper(world: World, rnd: random.Random) -> Iterator[None]:
    yield from stopped([_child(world, rnd, "lease_keeper")])


@kind(longest_s=5.0)
def pause_supervisor(world: World, rnd: random.Random) -> Iterator[None]:
    """Its workers go on without it, beyond the leases of the node."""
    node = world.node(rnd)
    yield from stopped(descendants(node.pid)[:1] if node.running else [])


@kind(longest_s=6.0)
def pause_node(world: World, rnd: random.Random) -> Iterator[None]:
    """All its processes stand still, beyond its leases; its writes are on the wire."""
    node = world.node(rnd)
    yield from stopped(descendants(node.pid) if node.running else [])


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
    yield from stopped([psutil.Process(world.service.pid)] if world.service.running else [])
