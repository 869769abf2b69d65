"""The supervisor: forks the node's processes, gives them what the leases allow, and takes it from them in time.

Single-threaded, and never on the network: the lease keeper, a child, talks to Redis. Each turn of the loop is the
same: hear signals, reap children, hear the keeper, stop what has lost its lease or stands still, fork what is
missing, give back what was drained, report. What should run follows from the state, never from the event that
changed it: so a turn that comes late, or after a pause of the whole machine, does the right thing.

Stop order follows the data: feed workers drain through the rings into the index, then batch writers, then leases.
"""

import signal
import time
from collections.abc import Callable
from functools import partial

import msgspec

from channelindex import exits, logs
from channelindex.config import Config, check_reload
from channelindex.errors import ConfigInvalid
from channelindex.polling import wait_readable
from coordinator.link import Held, KeeperLink
from workers.node.child_slot import ChildSlot
from workers.node.notify import Notifier
from workers.node.orders import UnownedAlarm, scaled
from workers.node.report import NodeReport, Rate
from workers.node.roles import Roles
from workers.node.shared import Shared
from workers.node.spread import spread
from workers.node.status import encode, node_status, status_line
from workers.pipeline.batch_writer import TORN
from workers.pipeline.feed_worker import ROLLED_BACK
from workers.signals import SignalQueue
from workers.telemetry.board import BATCH_WRITER, FEED_WORKER, LEASE_KEEPER, MONITOR, Board, NodeState

TURN_S = 0.2
"""Longest sleep: bounds how late a lease that runs out, or a silent worker, is noticed."""
REPORT_S = 0.5
FATAL_CODES = (exits.CONFIG, exits.AUTH, exits.MISMATCH)
"""A child that ends so would end so again: the node drains and ends with the same code, and is not to be restarted."""
ENDING_CODES = (*FATAL_CODES, exits.MISSING)
"""A child's codes that end the node. An index that is gone is made anew when the node is restarted."""
RELEASE_TIMEOUT_S = 3.0
"""How long a stopping node waits for Redis to take the leases back; then they run out by themselves."""

_log = logs.get("supervisor")


class Supervisor:
    """One node. `run` in the main thread of a process that has no other."""

    def __init__(
        self, config: Config, roles: Roles, board: Board, reload: Callable[[], Config], notifier: Notifier
    ) -> None:
        """*roles* spawns the children; *reload* reads the configuration anew (SIGHUP), or raises ConfigInvalid."""
        self._config = config
        self._roles = roles
        self._reload = reload
        self._notifier = notifier
        self._state = NodeState.RUNNING
        self._exit_code = exits.OK
        self._kill_at: float | None = None  # of a drain, for all workers together
        self._end_at: float | None = None
        self._held: Held | None = None
        self._link: KeeperLink | None = None
        self._report_at = self._watchdog_at = 0.0
        self._turned_at = time.monotonic()
        self._heard_at = self._turned_at
        self._ready = False
        self._alarm = UnownedAlarm(config.coordination.ttl_s)
        self._board = board
        self._node_report = NodeReport(board)
        self._rate = Rate()
        self._keeper = ChildSlot(LEASE_KEEPER, 0, board.keeper)
        self._monitor = ChildSlot(MONITOR, 0, board.monitor)
        self._make_slots()

    def _make_slots(self) -> None:
        workers, board = self._config.workers, self._board
        self._shared = Shared(workers.feed_workers, workers.batch_writers, workers.ring_bytes)
        for stats in (*board.feeds[workers.feed_workers :], *board.writers[workers.batch_writers :]):
            stats.clear()
        self._feeds = [ChildSlot(FEED_WORKER, n, stats) for n, stats in enumerate(board.feeds[: workers.feed_workers])]
        self._writers = [
            ChildSlot(BATCH_WRITER, n, stats) for n, stats in enumerate(board.writers[: workers.batch_writers])
        ]
        self._targets: list[frozenset[int]] = [frozenset()] * workers.feed_workers

    @property
    def _slots(self) -> list[ChildSlot]:
        return [*self._feeds, *self._writers, self._keeper, self._monitor]

    def run(self) -> int:
        """Run the node until it is told to stop; its exit code. All children have ended when this returns."""
        self._signals = SignalQueue(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        try:
            while not self._finished():
                self._turn()
        finally:
            self._end_all()
            self._signals.close()
            self._shared.close()
        return self._exit_code

    def _turn(self) -> None:
        self._sleep()
        now = time.monotonic()
        for signum in self._signals.take():
            self._hear_signal(signum, now)
        for slot in self._slots:
            code = slot.reap(now, at_once=(exits.OK, ROLLED_BACK))
            if code is not None:
                self._hear_end(slot, code, now)
        self._hear_keeper(now)
        for slot in self._feeds:
            if slot.link:
                slot.link.poll()
        self._judge(now)
        self._set_targets(now)
        self._assign(now)
        self._start_missing(now)
        self._give_back()
        self._report(now)
        self._turned_at = now

    def _sleep(self) -> None:
        children = [slot.child for slot in self._slots if slot.child]
        links = [link for link in (self._link, *(slot.link for slot in self._feeds)) if link and not link.closed]
        wait_readable([self._signals, *children, *links], TURN_S)

    def _hear_signal(self, signum: signal.Signals, now: float) -> None:
        if signum == signal.SIGHUP:
            self._begin_reload()
        elif self._state is NodeState.DRAINING:
            _log.warning("node.stopped_at_once", msg="second signal")
            self._exit_code = exits.INTERRUPTED
            self._end_at = now
        else:
            self._drain(now, f"{signum.name} received")

    def _drain(self, now: float, why: str) -> None:
        _log.info("node.draining", msg=why)
        self._notifier.stopping()
        self._notifier.extend_timeout(self._config.workers.drain_timeout_s + RELEASE_TIMEOUT_S)
        self._state = NodeState.DRAINING
        self._kill_at = now + self._config.workers.drain_timeout_s
        self._end_at = self._kill_at + RELEASE_TIMEOUT_S
        if self._link:
            self._link.drain()

    def _begin_reload(self) -> None:
        if self._state is NodeState.DRAINING:
            return
        self._notifier.reloading()
        self._notifier.extend_timeout(self._config.workers.drain_timeout_s + RELEASE_TIMEOUT_S)
        try:
            config = self._reload()
            check_reload(self._config, config)
        except ConfigInvalid as error:
            _log.error("config.refused", msg=f"the configuration stays as it was: {error}")
            self._node_report.reload_ended(taken=False)
            self._notifier.ready("configuration refused, see the log")
            return
        self._state = NodeState.RELOADING
        self._next_config = scaled(config, self._held.scale if self._held else None)

    def _hear_end(self, slot: ChildSlot, code: int, now: float) -> None:
        if slot is self._keeper and self._link:
            self._link.close()
            self._link = None
        if code == TORN:
            self._renew_shared()
            if self._state is NodeState.DRAINING and self._exit_code == exits.OK:
                self._exit_code = exits.DRAIN_TIMEOUT
        if code in ENDING_CODES and slot is not self._monitor and self._state is not NodeState.DRAINING:
            self._exit_code = code
            self._drain(now, f"{slot.role} cannot run: exit code {code}, see its log line")

    def _renew_shared(self) -> None:
        """The rings cannot be trusted: end all that use them, and start over from the checkpoints with new ones."""
        for slot in (*self._feeds, *self._writers):
            slot.kill("a ring is damaged")
        if self._state is NodeState.RUNNING:
            self._state, self._next_config = NodeState.RELOADING, self._config

    def _hear_keeper(self, now: float) -> None:
        held = self._link.poll() if self._link else None
        if held is None:
            return
        known = self._held.trouble if self._held else None
        if held.trouble and (known is None or known.exit_code != held.trouble.exit_code):
            _log.warning("leases.trouble", msg=held.trouble.message)
        if held.trouble and held.trouble.exit_code in FATAL_CODES and self._state is not NodeState.DRAINING:
            self._exit_code = held.trouble.exit_code
            self._drain(now, held.trouble.message)
        self._held = held
        self._heard_at = now
        self._alarm.hear(held, now)
        self._follow_scale()

    def _follow_scale(self) -> None:
        """Have as many workers as an operator ordered."""
        ordered = scaled(self._config, self._held.scale if self._held else None)
        if ordered != self._config and self._state is NodeState.RUNNING:
            self._notifier.reloading()
            self._state, self._next_config = NodeState.RELOADING, ordered

    def _leases(self, now: float) -> dict[int, float]:
        """The partitions that we may work on now, with their deadlines."""
        return {p: deadline for p, deadline in self._held.leases.items() if now < deadline} if self._held else {}

    def _judge(self, now: float) -> None:
        """Kill who works without a lease, stands still, or does not stop. After a pause of ours, leases only."""
        leased = self._leases(now).keys()
        for slot in self._feeds:
            if not slot.partitions <= leased:
                slot.kill(f"the lease of partition {min(slot.partitions - leased)} ran out")
        timeout_s = self._config.workers.heartbeat_timeout_s
        we_were_paused = now - self._turned_at > timeout_s / 2
        for slot in (*self._feeds, *self._writers):
            if slot.kill_if_overdue(now) and self._state is NodeState.DRAINING and self._exit_code == exits.OK:
                self._exit_code = exits.DRAIN_TIMEOUT
            if not we_were_paused and slot.silent_s() > timeout_s:
                slot.kill(f"no heartbeat for {slot.silent_s():.0f} s (workers.heartbeat_timeout_s)")
        if not we_were_paused and self._monitor.silent_s() > timeout_s:
            self._monitor.kill(f"no heartbeat for {self._monitor.silent_s():.0f} s (workers.heartbeat_timeout_s)")
        silent_s = now - self._heard_at
        if not we_were_paused and silent_s > max(timeout_s, self._config.coordination.ttl_s):
            self._heard_at = now
            self._keeper.kill(f"no report from the lease keeper for {silent_s:.0f} s (workers.heartbeat_timeout_s)")

    def _set_targets(self, now: float) -> None:
        """What each feed worker should work on: what is leased and not to be given up, spread evenly."""
        if self._state is NodeState.RUNNING and self._held:
            usable = self._leases(now).keys() - set(self._held.wanted_releases)
            self._targets = spread(usable, self._targets)
        else:
            self._targets = [frozenset()] * len(self._feeds)

    def _assign(self, now: float) -> None:
        """Tell each feed worker its target, less what another one still works on; stop what has nothing to do."""
        kill_at = self._kill_at or now + self._config.workers.drain_timeout_s
        for slot, target in zip(self._feeds, self._targets, strict=True):
            if not target:
                slot.stop(kill_at)
            elif slot.link and not slot.stopping:
                slot.link.want(target.difference(*(other.partitions for other in self._feeds if other is not slot)))
        if self._state is not NodeState.RUNNING and not any(slot.child for slot in self._feeds):
            for slot in self._writers:
                slot.stop(kill_at)
            if not any(slot.child for slot in self._writers):
                self._after_drain(now)

    def _after_drain(self, now: float) -> None:
        """All workers have ended: go on with the reload, or let the monitor, which told of the drain, end too."""
        if self._state is NodeState.RELOADING:
            self._finish_reload(now)
        else:
            self._monitor.stop(now + RELEASE_TIMEOUT_S)

    def _finish_reload(self, now: float) -> None:
        """Take over the new configuration and the shared memory that goes with it."""
        self._shared.close()
        if (self._config.metrics, self._config.log) != (self._next_config.metrics, self._next_config.log):
            self._monitor.stop(now + RELEASE_TIMEOUT_S)
        self._config = self._next_config
        self._roles.configure(self._config)
        self._make_slots()
        self._state = NodeState.RUNNING
        workers = self._config.workers
        _log.info("config.reloaded", feed_workers=workers.feed_workers, batch_writers=workers.batch_writers)
        self._node_report.reload_ended(taken=True)
        self._notifier.ready("configuration reloaded")

    def _start_missing(self, now: float) -> None:
        if self._state is not NodeState.DRAINING:
            if self._keeper.may_start(now):
                self._start(self._keeper, now, self._start_keeper)
            if self._config.metrics.listen and self._monitor.may_start(now):
                self._start(self._monitor, now, partial(self._roles.spawn_monitor, self._monitor, now))
        if self._state is not NodeState.RUNNING:
            return
        for slot in self._writers:
            if slot.may_start(now):
                self._start(slot, now, partial(self._roles.spawn_batch_writer, slot, self._shared, now))
        for slot, target in zip(self._feeds, self._targets, strict=True):
            free = target.difference(*(other.partitions for other in self._feeds))
            if free and slot.may_start(now):
                self._start(slot, now, partial(self._roles.spawn_feed_worker, slot, self._shared, free, now))

    @staticmethod
    def _start(slot: ChildSlot, now: float, spawn: Callable[[], None]) -> None:
        """Fork a child; where the machine has no process or descriptor left, later: the others must not suffer."""
        try:
            spawn()
        except OSError as error:
            slot.failed_to_start(error, now)

    def _start_keeper(self) -> None:
        now = time.monotonic()
        self._link = self._roles.spawn_keeper(self._keeper, now)
        self._heard_at = now

    def _give_back(self) -> None:
        """Release the partitions that somebody else is to have and that no worker of ours works on any more."""
        if not self._link or not self._held:
            return
        wanted = set(self._held.leases if self._state is NodeState.DRAINING else self._held.wanted_releases)
        drained = wanted.difference(*(slot.partitions for slot in self._feeds))
        if drained:
            self._link.release(sorted(drained))
            self._held = self._without(self._held, drained)

    @staticmethod
    def _without(held: Held, released: set[int]) -> Held:
        return msgspec.structs.replace(
            held,
            leases={p: deadline for p, deadline in held.leases.items() if p not in released},
            wanted_releases=[p for p in held.wanted_releases if p not in released],
        )

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
        self._node_report.tell(self._state, self._held, self._heard_at, worked_on)
        events_by_pid = {slot.stats.get("pid"): slot.stats.get("events") for slot in self._feeds if slot.child}
        rate = self._rate.per_s(now, events_by_pid)
        status = node_status(self._state.value, self._slots, self._held, self._board, rate)
        if not self._ready and self._held and not self._held.trouble:
            self._ready = True
            self._notifier.ready(status_line(status))
        self._notifier.status(status_line(status))
        if self._link:
            self._link.publish_status(encode(status))

    def _finished(self) -> bool:
        """Whether the drain is over: everything has ended, or its time has."""
        if self._end_at is None:
            return False
        if not any(slot.child for slot in self._slots):
            return True
        if time.monotonic() < self._end_at:
            return False
        if not any(slot.child for slot in (*self._feeds, *self._writers)):
            _log.warning("node.leases_not_released", msg="the leases' Redis did not answer; they run out by themselves")
        return True

    def _end_all(self) -> None:
        """Kill what is left and wait for it: nothing may work on after the supervisor."""
        for slot in self._slots:
            slot.kill("the node ends")
        while any(slot.child for slot in self._slots):
            for slot in self._slots:
                slot.reap(time.monotonic())
            time.sleep(0.005)
