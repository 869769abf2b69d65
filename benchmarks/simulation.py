"""Many nodes on simulated clocks, sharing out partitions by the real code and the real scripts in a real Redis.

Each node is a `coordinator.membership.Membership`, as in a lease keeper; what a keeper's process adds is played here:
it waits between ticks, wakes when it is woken, and drains what it is to give up. Everything that is random has a seed.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import redis

from channelindex.redis.link import Link
from coordinator.membership import Membership
from coordinator.plan import Target
from coordinator.tick import Identity, TickAnswer, Ticker, TickRequest, View

INDEX = "simulation"
START_MS = 1_700_000_000_000
ZONES = 3
DRAIN_S = 0.2
"""How long a node takes to drain a partition."""
WAKE_S = 0.002
"""How long a message takes."""
DOWN_S = 5.0
"""How long a restarting node is away."""


class SharedView:
    """A `View` that is decoded, and planned from, once for all nodes that see it: only Redis' part is measured."""

    def __init__(self, view: View) -> None:
        self.live = view.live
        self.homes = view.homes
        self.asked = view.asked
        self._view = view
        self._partitions = {member.node: member.partitions for member in view.live}
        self._targets: dict[int, Target] = {}

    @cached_property
    def leases(self) -> dict[int, str]:
        return self._view.leases

    def owned_by(self, node: str) -> tuple[int, ...]:
        return self._partitions.get(node, ())

    def target(self, n_partitions: int) -> Target:
        if n_partitions not in self._targets:
            self._targets[n_partitions] = self._view.target(n_partitions)
        return self._targets[n_partitions]


class SimulatedTicker(Ticker):
    """A ticker whose wakes reach the simulation too."""

    def __init__(self, world: "World", identity: Identity) -> None:
        super().__init__(world.link, INDEX, identity, world.clock_ms)
        self._world = world

    def tick(self, request: TickRequest) -> tuple[TickAnswer, Any]:
        self._world.n_ticks += 1
        answer, view = super().tick(request)
        return answer, None if view is None else self._world.shared_view(answer.version, view)

    def wake(self, nodes: Iterable[str]) -> None:
        names = list(nodes)
        self._world.n_wakes += len(names)
        super().wake(names)
        for name in names:
            self._world.wake(name)


class SimulatedNode:
    """One life of a node."""

    def __init__(self, world: "World", name: str, incarnation: int) -> None:
        self.name = name
        self.identity = Identity(name, f"{name}-{incarnation}", world.ttl_s, zone=f"z{int(name[1:]) % ZONES}")
        ticker = SimulatedTicker(world, self.identity)
        self.membership = Membership(ticker, self.identity, world.n_partitions, world.max_moves, world.clock_s)
        self.due = 0
        """The number of the scheduled tick that counts; one that was scheduled before does not."""
        self.draining: set[int] = set()
        self.held: frozenset[int] = frozenset()


class Cost(NamedTuple):
    """What Redis had to do, and the simulation's own counts."""

    ticks: int
    wakes: int
    moves: int
    bytes_in: int
    bytes_out: int
    cpu_s: float

    def since(self, before: "Cost") -> "Cost":
        """The difference to an earlier one."""
        return Cost(*(now - then for now, then in zip(self, before, strict=True)))  # type: ignore[arg-type]


class World:
    """The nodes, their clock and what happens when."""

    def __init__(
        self, client: redis.Redis, link: Link, n_partitions: int, seed: int, ttl_s: float = 10.0, max_moves: int = 8
    ) -> None:
        self.client = client
        self.link = link
        self.n_partitions = n_partitions
        self.ttl_s = ttl_s
        self.max_moves = max_moves
        self.rnd = random.Random(seed)
        self.now = 0.0
        self.nodes: dict[str, SimulatedNode] = {}
        self.n_ticks = self.n_wakes = self.n_moves = 0
        self.owner: dict[int, str] = {}
        """Who worked on each partition last."""
        self.n_doubly_owned = 0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count(1)
        self._views: dict[int, SharedView] = {}
        self.newest: SharedView | None = None

    def clock_s(self) -> float:
        return self.now

    def clock_ms(self) -> int:
        return START_MS + int(self.now * 1000)

    def shared_view(self, version: int, view: View) -> SharedView:
        if version not in self._views:
            self._views.clear()
            self._views[version] = self.newest = SharedView(view)
        return self._views[version]

    # -- what happens

    def at(self, when: float, action: Callable[[], None]) -> int:
        """Do *action* at *when*; its number."""
        number = next(self._numbers)
        heapq.heappush(self._agenda, (when, number, action))
        return number

    def start(self, name: str, when: float) -> None:
        """Start the node *name* at *when*."""

        def begin() -> None:
            node = self.nodes[name] = SimulatedNode(self, name, next(self._numbers))
            self._tick(node)

        self.at(when, begin)

    def crash(self, names: Iterable[str]) -> None:
        """These nodes are gone, now."""
        for name in names:
            del self.nodes[name]

    def restart(self, name: str) -> None:
        """Stop the node as SIGTERM would, now; it comes back `DOWN_S` after it has left."""
        node = self.nodes[name]
        node.membership.leaving = True
        self._tick(node)

    def wake(self, name: str) -> None:
        """The node has been told that there is something to do."""
        node = self.nodes.get(name)
        if node is not None:
            self._schedule(node, self.now + WAKE_S)

    def _schedule(self, node: SimulatedNode, when: float) -> None:
        def tick() -> None:
            if self.nodes.get(node.name) is node and node.due == number:
                self._tick(node)

        node.due = number = self.at(when, tick)

    def _tick(self, node: SimulatedNode) -> None:
        wait_s = node.membership.tick()
        self._note_held(node)
        if node.membership.has_left:
            del self.nodes[node.name]
            self.start(node.name, self.now + DOWN_S)
            return
        to_drain = set(node.membership.due_releases) - node.draining
        if to_drain:
            node.draining |= to_drain
            self.at(self.now + DRAIN_S * self.rnd.uniform(0.5, 1.5), lambda: self._give_back(node, to_drain))
        self._schedule(node, self.now + wait_s)

    def _give_back(self, node: SimulatedNode, partitions: set[int]) -> None:
        if self.nodes.get(node.name) is not node:
            return
        node.draining -= partitions
        node.membership.release(partitions)
        self._tick(node)

    def _note_held(self, node: SimulatedNode) -> None:
        held = frozenset(node.membership.book.unexpired(self.now))
        for partition in held - node.held:
            before = self.owner.get(partition)
            other = self.nodes.get(before) if before else None
            if other is not None and other is not node and partition in other.membership.book.unexpired(self.now):
                self.n_doubly_owned += 1
            self.n_moves += before != node.name
            self.owner[partition] = node.name
        node.held = held

    # -- running

    def run_until(self, done: Callable[[], bool], limit_s: float) -> float:
        """Let time pass until *done*; the seconds that took."""
        begun = self.now
        while not done():
            if self.now - begun > limit_s:
                raise AssertionError(f"not done after {limit_s:.0f} s of simulated time")
            self._step()
        return self.now - begun

    def run_for(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while self._agenda and self._agenda[0][0] <= end:
            self._step()
        self.now = end

    def _step(self) -> None:
        self.now, _, action = heapq.heappop(self._agenda)
        action()

    def n_to_move(self) -> int:
        """The fewest moves that make things right as they are now, whatever the nodes know of it."""
        live = tuple(member for member in self.newest.live if member.node in self.nodes) if self.newest else ()
        leaving = {name for name, node in self.nodes.items() if node.membership.leaving}
        view = View(
            tuple(type(m)(m.node, m.weight, m.draining or m.node in leaving, m.partitions) for m in live),
            self.newest.homes if self.newest else (),
            (),
        )
        return view.target(self.n_partitions).n_moves()

    def is_balanced(self) -> bool:
        """Whether everything is owned, fairly, by live nodes, and all nodes are members."""
        if self.newest is None or {member.node for member in self.newest.live} != self.nodes.keys():
            return False
        return self.newest.target(self.n_partitions).n_moves() == 0

    def cost(self) -> Cost:
        """What it all has cost so far."""
        info: dict[str, Any] = self.client.info()
        cpu_s = info["used_cpu_user"] + info["used_cpu_sys"]
        bytes_in, bytes_out = info["total_net_input_bytes"], info["total_net_output_bytes"]
        return Cost(self.n_ticks, self.n_wakes, self.n_moves, bytes_in, bytes_out, cpu_s)
