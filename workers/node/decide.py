"""Decides what a node should do, given what it knows: pure, so that every case can be walked without a process.

`NodeState` is what the supervisor knows and has decided. `signalled`, `child_ended`, `keeper_reported`, `reload` take
in news; `decide` chooses once a turn what to do, from the state and from a view of the children. They return actions,
which the supervisor carries out in their order. Actions are safe to repeat: a child that is to be killed is to be
killed again on the next turn, until it has ended. What should run follows from the state, never from the event that
changed it: so a turn that comes late, or after a pause of the whole machine, decides the right thing.

Stop order follows the data: feed workers drain through the rings into the index, then batch writers, then leases.
"""

import dataclasses
import signal
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import msgspec

from channelindex import exits
from channelindex.config import Config
from channelindex.stores import is_compacted
from coordinator.keeper_link import KeeperReport, Scale
from workers.node.spread import spread
from workers.pipeline.batch_writer import TORN
from workers.telemetry.board import BATCH_WRITER, COMPACTOR, FEED_WORKER, LEASE_KEEPER, MONITOR, NodePhase

FATAL_CODES = (exits.CONFIG, exits.AUTH, exits.MISMATCH)
"""A child that ends so would end so again: the node drains and ends with the same code, and is not to be restarted."""
ENDING_CODES = (*FATAL_CODES, exits.MISSING)
"""A child's codes that end the node. An index that is gone is made anew when the node is restarted."""
ENDING_TROUBLE = (*FATAL_CODES, exits.NAME_TAKEN)
"""Trouble with the leases that ends the node. A taken name may be free when the service manager tries again."""
RELEASE_TIMEOUT_S = 3.0
"""Time for a stopping node to release its leases; then they expire by themselves."""


class Name(NamedTuple):
    """Names one child of a node: its role, and its number among those of the role."""

    role: str
    number: int = 0


KEEPER = Name(LEASE_KEEPER)
MONITORING = Name(MONITOR)
COMPACTING = Name(COMPACTOR)
ASIDE = (MONITORING, COMPACTING)
"""Children without which a node works: however they end, it goes on."""


class ChildView(NamedTuple):
    """Shows one child slot as it is now.

    `is_overdue`: ordered to stop, and its time is over. `may_start`: no child, and the backoff is over. `silent_s`:
    seconds since its last heartbeat, 0 where none lives. `working`: what a feed worker may be working on.
    """

    name: Name
    is_alive: bool = False
    is_stopping: bool = False
    is_overdue: bool = False
    may_start: bool = False
    silent_s: float = 0.0
    working: frozenset[int] = frozenset()


class Children(NamedTuple):
    """Shows all child slots of a node, feed workers and batch writers by number."""

    feeds: Sequence[ChildView]
    writers: Sequence[ChildView]
    keeper: ChildView
    monitor: ChildView
    compactor: ChildView = ChildView(COMPACTING)


class Kill(NamedTuple):
    """End a child at once."""

    name: Name
    why: str


class Stop(NamedTuple):
    """Order a child to finish its work; it is overdue at *kill_at* (monotonic)."""

    name: Name
    kill_at: float


class Assign(NamedTuple):
    """Have a live feed worker work on *partitions*, no more and no less."""

    name: Name
    partitions: frozenset[int]


class Start(NamedTuple):
    """Fork a child; a feed worker begins with *partitions*."""

    name: Name
    partitions: frozenset[int] = frozenset()


class Release(NamedTuple):
    """Give the leases of *partitions* back: nobody here works on them any more."""

    partitions: Sequence[int]


class Drain(NamedTuple):
    """Begin to end: report it, and have the keeper take nothing any more."""

    why: str


class EndNow(NamedTuple):
    """Note that somebody does not want to wait for the drain."""


class ReadConfig(NamedTuple):
    """Read the configuration anew, and call `reload` if it can be used."""


class Rescale(NamedTuple):
    """Go over to other worker counts, which an operator ordered."""

    scale: Scale


class RenewRings(NamedTuple):
    """Go over to new rings, the configuration unchanged."""


class FinishReload(NamedTuple):
    """Take over what is to be new, now that no worker is left; call `reloaded`, and decide once more."""


Action = Kill | Stop | Assign | Start | Release | Drain | EndNow | ReadConfig | Rescale | RenewRings | FinishReload


@dataclasses.dataclass
class NodeState:
    """Holds what the supervisor of one node knows. Times are monotonic seconds."""

    config: Config
    heard_at: float
    """Time of the keeper's last report, or of its start."""
    turned_at: float
    """Time of the last turn: a longer gap than usual means that we were paused, and our children with us."""
    phase: NodePhase = NodePhase.RUNNING
    exit_code: int = exits.OK
    kill_at: float | None = None
    """Time by which all workers of a draining node must have ended."""
    end_at: float | None = None
    report: KeeperReport | None = None
    """The keeper's last report, without what was released since."""
    targets: list[frozenset[int]] = dataclasses.field(init=False)
    """By feed worker: what it should work on."""

    def __post_init__(self) -> None:
        self.targets = [frozenset()] * self.config.workers.feed_workers

    @property
    def is_draining(self) -> bool:
        """True if the node is about to end."""
        return self.phase is NodePhase.DRAINING

    @property
    def compacts(self) -> bool:
        """True if this node compacts the index."""
        return self.config.workers.compactors > 0 and is_compacted(self.config.index)

    def leases(self, now: float) -> dict[int, float]:
        """Return the partitions that may be worked on at *now*, with their deadlines."""
        return {p: deadline for p, deadline in self.report.leases.items() if now < deadline} if self.report else {}

    def check(self) -> None:
        """Assert what holds between turns."""
        targeted = [partition for target in self.targets for partition in target]
        assert len(targeted) == len(set(targeted)), "two feed workers are to work on one partition"
        assert len(self.targets) == self.config.workers.feed_workers
        assert self.is_draining == (self.end_at is not None)
        assert not targeted or self.phase is NodePhase.RUNNING
        assert self.exit_code == exits.OK or self.is_draining


def signalled(state: NodeState, signum: signal.Signals, now: float) -> list[Action]:
    """Take in a signal: SIGHUP reloads; the first other one drains, the second ends at once."""
    if signum == signal.SIGHUP:
        return [] if state.is_draining else [ReadConfig()]
    if state.is_draining:
        state.exit_code = exits.INTERRUPTED
        state.end_at = now
        return [EndNow()]
    return _drain(state, now, f"{signum.name} received")


def _drain(state: NodeState, now: float, why: str, exit_code: int = exits.OK) -> list[Action]:
    assert not state.is_draining, "a node drains once"
    state.phase = NodePhase.DRAINING
    state.exit_code = exit_code
    state.kill_at = now + state.config.workers.drain_timeout_s
    state.end_at = state.kill_at + RELEASE_TIMEOUT_S
    assert now < state.end_at
    return [Drain(why)]


def child_ended(state: NodeState, name: Name, code: int, now: float) -> list[Action]:
    """Take in that a child ended with *code*: most are just replaced, see `decide`."""
    if code == TORN:
        return _renew_rings(state)
    if code in ENDING_CODES and name not in ASIDE and not state.is_draining:
        return _drain(state, now, f"{name.role} cannot run: exit code {code}, see its log line", code)
    return []


def _renew_rings(state: NodeState) -> list[Action]:
    """End all that use the rings, which are damaged, and start over from the checkpoints with new ones."""
    workers = state.config.workers
    feeds = [Name(FEED_WORKER, number) for number in range(workers.feed_workers)]
    writers = [Name(BATCH_WRITER, number) for number in range(workers.batch_writers)]
    actions: list[Action] = [Kill(name, "a ring is damaged") for name in (*feeds, *writers)]
    if state.phase is NodePhase.RUNNING:
        state.phase = NodePhase.RELOADING
        actions.append(RenewRings())
    _note_failed_drain(state)
    return actions


def _note_failed_drain(state: NodeState) -> None:
    """Note that what was read may not be in the index when a draining node ends."""
    if state.is_draining and state.exit_code == exits.OK:
        state.exit_code = exits.DRAIN_TIMEOUT


def keeper_reported(state: NodeState, report: KeeperReport, now: float) -> list[Action]:
    """Take in a report of the keeper: leases, trouble, orders."""
    assert report.leases.keys() >= set(report.due_releases), "what is not leased cannot be given up"
    state.report = report
    state.heard_at = now
    if report.trouble and report.trouble.exit_code in ENDING_TROUBLE and not state.is_draining:
        return _drain(state, now, report.trouble.message, report.trouble.exit_code)
    workers = state.config.workers
    if (
        report.scale
        and report.scale != (workers.feed_workers, workers.batch_writers)
        and state.phase is NodePhase.RUNNING
    ):
        state.phase = NodePhase.RELOADING
        return [Rescale(report.scale)]
    return []


def reload(state: NodeState) -> None:
    """Begin to take over a new configuration, which can be used: workers end first."""
    if not state.is_draining:
        state.phase = NodePhase.RELOADING


def reloaded(state: NodeState, config: Config) -> None:
    """Note that *config* was taken over; workers may be started again."""
    assert state.phase is NodePhase.RELOADING
    state.config = config
    state.targets = [frozenset()] * config.workers.feed_workers
    state.phase = NodePhase.RUNNING
    assert not any(state.targets), "nobody works yet"


def decide(state: NodeState, children: Children, now: float) -> list[Action]:
    """Decide what to do now with *children*, in this order: kill, stop, assign, start, release."""
    assert len(children.feeds) == state.config.workers.feed_workers
    actions = [*_judge(state, children, now)]
    state.targets = _targets(state, now)
    actions += _assign(state, children, now)
    actions += _stop_compactor(state, children.compactor, now)
    actions += _start(state, children)
    actions += _release(state, children)
    state.check()
    return actions


def _judge(state: NodeState, children: Children, now: float) -> Iterable[Action]:
    """Kill who works without a lease, has stalled, or does not stop. After a pause of ours, leases only."""
    leased = state.leases(now).keys()
    for child in children.feeds:
        if not child.working <= leased:
            yield Kill(child.name, f"the lease of partition {min(child.working - leased)} expired (coordination.ttl_s)")
    timeout_s = state.config.workers.heartbeat_timeout_s
    we_were_paused = now - state.turned_at > timeout_s / 2
    for child in (*children.feeds, *children.writers):
        if child.is_overdue:
            _note_failed_drain(state)
            yield Kill(child.name, "still running after workers.drain_timeout_s")
    if children.compactor.is_overdue:
        yield Kill(COMPACTING, "it does not stop")
    for child in (*children.feeds, *children.writers, children.monitor, children.compactor):
        if not we_were_paused and child.silent_s > timeout_s:
            yield Kill(child.name, f"no heartbeat for {child.silent_s:.0f} s (workers.heartbeat_timeout_s)")
    silent_s = now - state.heard_at
    if not we_were_paused and silent_s > max(timeout_s, state.config.coordination.ttl_s):
        state.heard_at = now
        why = f"no report from the lease keeper for {silent_s:.0f} s (workers.heartbeat_timeout_s)"
        yield Kill(KEEPER, why)


def _targets(state: NodeState, now: float) -> list[frozenset[int]]:
    """Return what each feed worker should work on: what is leased and not to be given up, spread evenly."""
    if state.phase is NodePhase.RUNNING and state.report:
        return spread(state.leases(now).keys() - set(state.report.due_releases), state.targets)
    return [frozenset()] * len(state.targets)


def _worked_on(children: Iterable[ChildView]) -> AbstractSet[int]:
    return frozenset().union(*(child.working for child in children))


def _assign(state: NodeState, children: Children, now: float) -> Iterable[Action]:
    """Give each feed worker its target, less what another one still works on; stop what has nothing to do."""
    kill_at = state.kill_at or now + state.config.workers.drain_timeout_s
    for child, target in zip(children.feeds, state.targets, strict=True):
        if child.is_alive and not target:
            yield Stop(child.name, kill_at)
        elif child.is_alive and not child.is_stopping:
            others = _worked_on(other for other in children.feeds if other is not child)
            yield Assign(child.name, target - others)
    if state.phase is NodePhase.RUNNING or any(child.is_alive for child in children.feeds):
        return
    for child in children.writers:
        if child.is_alive:
            yield Stop(child.name, kill_at)
    if not any(child.is_alive for child in children.writers):
        if state.is_draining:  # the monitor reported the drain until now
            if children.monitor.is_alive:
                yield Stop(MONITORING, now + RELEASE_TIMEOUT_S)
        else:
            yield FinishReload()


def _stop_compactor(state: NodeState, compactor: ChildView, now: float) -> Iterable[Action]:
    """Stop it at once where the node drains, or its configuration may change: nothing is lost."""
    if compactor.is_alive and state.phase is not NodePhase.RUNNING:
        yield Stop(COMPACTING, now + RELEASE_TIMEOUT_S)


def _start(state: NodeState, children: Children) -> Iterable[Action]:
    """Start what is missing; a feed worker only with what no other one works on."""
    if not state.is_draining:
        if children.keeper.may_start:
            yield Start(KEEPER)
        if state.config.metrics.listen and children.monitor.may_start:
            yield Start(MONITORING)
    if state.phase is not NodePhase.RUNNING:
        return
    for child in children.writers:
        if child.may_start:
            yield Start(child.name)
    if state.compacts and children.compactor.may_start:
        yield Start(COMPACTING)
    worked_on = _worked_on(children.feeds)
    for child, target in zip(children.feeds, state.targets, strict=True):
        if child.may_start and target - worked_on:
            yield Start(child.name, target - worked_on)


def _release(state: NodeState, children: Children) -> Iterable[Action]:
    """Release the partitions that somebody else is to have and that no worker of ours works on any more."""
    if not children.keeper.is_alive or not state.report:
        return
    due = set(state.report.leases if state.is_draining else state.report.due_releases)
    drained = due - _worked_on(children.feeds)
    if drained:
        state.report = _without(state.report, drained)
        yield Release(sorted(drained))


def _without(report: KeeperReport, released: set[int]) -> KeeperReport:
    assert released <= report.leases.keys(), "what is not leased cannot be given back"
    return msgspec.structs.replace(
        report,
        leases={p: deadline for p, deadline in report.leases.items() if p not in released},
        due_releases=[p for p in report.due_releases if p not in released],
    )


def is_over(state: NodeState, children: Children, now: float) -> bool:
    """Return whether the drain is over: everything has ended, or its time has."""
    if state.end_at is None:
        return False
    everybody = (*children.feeds, *children.writers, children.keeper, children.monitor, children.compactor)
    return now >= state.end_at or not any(child.is_alive for child in everybody)
