"""The supervisor: forks the node's processes, gives them what the leases allow, and takes it from them in time.

Single-threaded, and never on the network: the lease keeper, a child, talks to Redis. Each turn of the loop is the
same: take signals, reap children, read the keeper's report, then carry out what `decide` returns, and report.
"""

import signal
import time
from collections.abc import Callable, Iterable
from functools import partial

from channelindex import logs
from channelindex.config import Config, check_reload
from channelindex.errors import ConfigInvalid
from channelindex.polling import wait_readable
from coordinator.keeper_link import KeeperLink
from workers.node import decide
from workers.node.child_slot import ChildSlot
from workers.node.decide import COMPACTING, KEEPER, MONITORING, Action, Children, Name, NodeState
from workers.node.node_status import encode, node_status, status_line
from workers.node.notify import Notifier
from workers.node.orders import TroubleLog, UnownedAlarm, scaled
from workers.node.orphans import adopts_orphans, reap_orphans
from workers.node.report import NodeReport, Rate
from workers.node.roles import Roles
from workers.node.shared import Shared
from workers.signals import SignalQueue
from workers.telemetry.board import BATCH_WRITER, COMPACTOR, FEED_WORKER, LEASE_KEEPER, MONITOR, Board

TURN_S = 0.2
"""Longest sleep: bounds the delay with which an expired lease or a stalled worker is noticed."""
REPORT_S = 0.5

_log = logs.get("supervisor")


class Supervisor:
    """Runs one node. `run` in the main thread of a process that has no other."""

    def __init__(
        self, config: Config, roles: Roles, board: Board, reload: Callable[[], Config], notifier: Notifier
    ) -> None:
        """*roles* spawns the children; *reload* reads the configuration anew (SIGHUP), or raises ConfigInvalid."""
        now = time.monotonic()
        self._node = NodeState(config, heard_at=now, turned_at=now)
        self._roles = roles
        self._reload = reload
        self._next_config = config
        self._notifier = notifier
        self._link: KeeperLink | None = None
        self._report_at = self._watchdog_at = 0.0
        self._ready = False
        self._adopts_orphans = adopts_orphans()
        self._trouble_log = TroubleLog()
        self._alarm = UnownedAlarm(config.coordination.ttl_s)
        self._board = board
        self._node_report = NodeReport(board)
        self._rate = Rate()
        self._keeper = ChildSlot(KEEPER, board.keeper)
        self._monitor = ChildSlot(MONITORING, board.monitor)
        self._compactor = ChildSlot(COMPACTING, board.compactor)
        self._make_slots()

    def _make_slots(self) -> None:
        workers, board = self._node.config.workers, self._board
        self._shared = Shared(workers.feed_workers, workers.batch_writers, workers.ring_bytes)
        for stats in (*board.feeds[workers.feed_workers :], *board.writers[workers.batch_writers :]):
            stats.clear()
        self._feeds = [ChildSlot(Name(FEED_WORKER, n), board.feeds[n]) for n in range(workers.feed_workers)]
        self._writers = [ChildSlot(Name(BATCH_WRITER, n), board.writers[n]) for n in range(workers.batch_writers)]

    @property
    def _slots(self) -> list[ChildSlot]:
        return [*self._feeds, *self._writers, self._keeper, self._monitor, self._compactor]

    def _children(self, now: float) -> Children:
        return Children(
            [slot.view(now) for slot in self._feeds],
            [slot.view(now) for slot in self._writers],
            self._keeper.view(now),
            self._monitor.view(now),
            self._compactor.view(now),
        )

    def run(self) -> int:
        """Run the node until it is asked to stop; return its exit code. All children have ended then."""
        self._signals = SignalQueue(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        try:
            while not self._is_over():
                self._turn()
        finally:
            self._end_all()
            self._signals.close()
            self._shared.close()
        return self._node.exit_code

    def _is_over(self) -> bool:
        now = time.monotonic()
        children = self._children(now)
        if not decide.is_over(self._node, children, now):
            return False
        if children.keeper.is_alive and not any(child.is_alive for child in (*children.feeds, *children.writers)):
            _log.warning(
                "node.leases_not_released",
                msg="coordination.redis did not answer in time; the leases expire by themselves",
            )
        return True

    def _turn(self) -> None:
        self._sleep()
        now = time.monotonic()
        for signum in self._signals.take():
            self._act(decide.signalled(self._node, signum, now), now)
        self._reap(now)
        self._read_links(now)
        if self._act(decide.decide(self._node, self._children(now), now), now):
            self._act(decide.decide(self._node, self._children(now), now), now)
        self._report(now)
        self._node.turned_at = now

    def _sleep(self) -> None:
        children = [slot.child for slot in self._slots if slot.child]
        links = [link for link in (self._link, *(slot.link for slot in self._feeds)) if link and not link.closed]
        wait_readable([self._signals, *children, *links], TURN_S)

    def _reap(self, now: float) -> None:
        for slot in self._slots:
            code = slot.reap(now)
            if code is None:
                continue
            if slot is self._keeper and self._link:
                self._link.close()
                self._link = None
            self._act(decide.child_ended(self._node, slot.name, code, now), now)
        if self._adopts_orphans:
            reap_orphans({slot.child.pid for slot in self._slots if slot.child})

    def _read_links(self, now: float) -> None:
        """Take over what the keeper and the feed workers report."""
        for slot in self._feeds:
            if slot.link:
                slot.link.poll()
        report = self._link.poll() if self._link else None
        if report is None:
            return
        self._trouble_log.note(report.trouble, now)
        self._alarm.check(report, now)
        self._act(decide.keeper_reported(self._node, report, now), now)

    def _act(self, actions: Iterable[Action], now: float) -> bool:
        """Carry out *actions*; return whether there is more to decide."""
        slot_by_name = {slot.name: slot for slot in self._slots}
        has_reloaded = False
        for action in actions:
            match action:
                case decide.Kill(name, why):
                    slot_by_name[name].kill(why)
                case decide.Stop(name, kill_at):
                    slot_by_name[name].stop(kill_at)
                case decide.Assign(name, partitions):
                    slot_by_name[name].assign(partitions)
                case decide.Start(name, partitions):
                    self._start(slot_by_name[name], partitions)
                case decide.Release(partitions) if self._link:
                    self._link.release(partitions)
                case decide.FinishReload():
                    self._finish_reload(now)
                    has_reloaded = True
                case _:
                    self._begin(action)
        return has_reloaded

    def _begin(self, action: Action) -> None:
        """Carry out what changes the whole node."""
        match action:
            case decide.Drain(why):
                self._drain(why)
            case decide.EndNow():
                _log.warning("node.stopped_at_once", msg="second signal")
            case decide.ReadConfig():
                self._read_config()
            case decide.Rescale(scale):
                self._notifier.reloading()
                self._next_config = scaled(self._node.config, scale)
            case decide.RenewRings():
                self._next_config = self._node.config

    def _drain(self, why: str) -> None:
        _log.info("node.draining", msg=why)
        self._notifier.stopping()
        self._notifier.extend_timeout(self._node.config.workers.drain_timeout_s + decide.RELEASE_TIMEOUT_S)
        if self._link:
            self._link.drain()

    def _read_config(self) -> None:
        self._notifier.reloading()
        self._notifier.extend_timeout(self._node.config.workers.drain_timeout_s + decide.RELEASE_TIMEOUT_S)
        try:
            config = self._reload()
            check_reload(self._node.config, config)
        except ConfigInvalid as error:
            _log.error("config.refused", msg=f"the configuration stays as it was: {error}")
            self._node_report.reload_ended(taken=False)
            self._notifier.ready("configuration refused, see the log")
            return
        self._next_config = scaled(config, self._node.report.scale if self._node.report else None)
        decide.reload(self._node)

    def _finish_reload(self, now: float) -> None:
        """Take over the new configuration and the shared memory that goes with it."""
        assert not any(slot.child for slot in (*self._feeds, *self._writers)), "somebody uses the old rings"
        self._shared.close()
        before, config = self._node.config, self._next_config
        if (before.metrics, before.log) != (config.metrics, config.log):
            self._monitor.stop(now + decide.RELEASE_TIMEOUT_S)
        self._roles.configure(config)
        decide.reloaded(self._node, config)
        self._make_slots()
        workers = config.workers
        _log.info("config.reloaded", feed_workers=workers.feed_workers, batch_writers=workers.batch_writers)
        self._node_report.reload_ended(taken=True)
        self._notifier.ready("configuration reloaded")

    def _start(self, slot: ChildSlot, partitions: frozenset[int]) -> None:
        """Fork a child; where the machine has no process or descriptor left, later: the others must not suffer."""
        assert bool(partitions) == (slot.role == FEED_WORKER), "who has nothing to work on is not started"
        now = time.monotonic()
        spawn = {
            LEASE_KEEPER: partial(self._start_keeper, now),
            MONITOR: partial(self._roles.spawn_monitor, slot, now),
            COMPACTOR: partial(self._roles.spawn_compactor, slot, now),
            BATCH_WRITER: partial(self._roles.spawn_batch_writer, slot, self._shared, now),
            FEED_WORKER: partial(self._roles.spawn_feed_worker, slot, self._shared, partitions, now),
        }
        try:
            spawn[slot.role]()
        except OSError as error:
            slot.failed_to_start(error, now)

    def _start_keeper(self, now: float) -> None:
        assert self._link is None, "the keeper before it is not reaped"
        self._link = self._roles.spawn_keeper(self._keeper, now)
        self._node.heard_at = now

    def _report(self, now: float) -> None:
        self._node_report.beat()
        interval_s = self._notifier.watchdog_interval_s
        if interval_s and now >= self._watchdog_at:
            self._watchdog_at = now + interval_s
            self._notifier.watchdog()
        if now < self._report_at:
            return
        self._report_at = now + REPORT_S
        worked_on = frozenset().union(*(slot.partitions for slot in self._feeds))
        node = self._node
        self._node_report.publish(node.phase, node.report, node.heard_at, worked_on)
        events_by_pid = {slot.stats.get("pid"): slot.stats.get("events") for slot in self._feeds if slot.child}
        rate = self._rate.per_s(now, events_by_pid)
        status = node_status(node.phase.value, self._slots, node.report, self._board, rate)
        if not self._ready and node.report and not node.report.trouble:
            self._ready = True
            self._notifier.ready(status_line(status))
        self._notifier.status(status_line(status))
        if self._link:
            self._link.publish_status(encode(status))

    def _end_all(self) -> None:
        """Kill what is left and wait for it: nothing may work on after the supervisor."""
        for slot in self._slots:
            slot.kill("the node ends")
        while any(slot.child for slot in self._slots):
            for slot in self._slots:
                slot.reap(time.monotonic())
            time.sleep(0.005)
