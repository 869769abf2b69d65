"""One supervised process: its pid, its restart backoff and its kill deadline."""

import signal
import time

from channelindex import logs
from channelindex.backoff import Backoff
from workers.node.child import Child
from workers.pipeline.assignment import AssignmentLink
from workers.telemetry.board import ProcessStats

RESTART_FIRST_S = 0.1
RESTART_MAX_S = 10.0
"""A child that dies at once is tried again after 0.1 s, 0.2 s … 10 s: a broken store must not cost a core."""
SETTLED_S = 10.0
"""A child that lived this long ends the backoff: its death has nothing to do with those before."""

_log = logs.get("supervisor")


class ChildSlot:
    """Holds the children of one role and number, one after the other."""

    def __init__(self, role: str, number: int, stats: ProcessStats) -> None:
        self.role = role
        self.number = number
        self.stats = stats
        self.child: Child | None = None
        self.link: AssignmentLink | None = None
        """To the present child, if it works on partitions."""
        self._backoff = Backoff(RESTART_FIRST_S, RESTART_MAX_S)
        self._start_at = 0.0
        self._born_at = 0.0
        self._kill_at: float | None = None
        self._killed = False

    @property
    def partitions(self) -> frozenset[int]:
        """What the present child may be working on; empty for other roles and where no child lives."""
        return self.link.working if self.link else frozenset()

    @property
    def restarts(self) -> int:
        """How often a child ended unasked. Kept in the slot, where it outlives children and reloads."""
        return self.stats.get("restarts")

    @property
    def stopping(self) -> bool:
        """Whether the child was told to stop."""
        return self._kill_at is not None

    def may_start(self, now: float) -> bool:
        """Whether the slot is empty and its backoff is over."""
        return self.child is None and now >= self._start_at

    def attach(self, child: Child, now: float, link: AssignmentLink | None = None) -> None:
        """*child* lives here from now on. *link*: to tell it what to work on."""
        self.stats.beat()  # what the one before it left there is no sign of death
        self.child = child
        self.link = link
        self._born_at = now
        self._kill_at = None
        self._killed = False
        _log.info("child.started", child=self.role, number=self.number, child_pid=child.pid)

    def failed_to_start(self, error: OSError, now: float) -> None:
        """No process is to be had (or no descriptor for it): try again later."""
        self._start_at = now + self._backoff.next_delay_s()
        _log.error("child.not_started", child=self.role, number=self.number, msg=str(error))

    def stop(self, kill_at: float) -> None:
        """Tell the child to finish its work; it is killed if it has not ended at *kill_at*."""
        if self.child and self._kill_at is None:
            self._kill_at = kill_at
            self.child.signal(signal.SIGTERM)

    def kill(self, why: str) -> None:
        """End the child at once. Until it is reaped, once is enough."""
        if self.child and not self._killed:
            self._killed = True
            _log.warning("child.killed", child=self.role, number=self.number, child_pid=self.child.pid, msg=why)
            self.child.signal(signal.SIGKILL)

    def kill_if_overdue(self, now: float) -> bool:
        """Kill a child that was told to stop and did not in its time; whether there was one."""
        overdue = self._kill_at is not None and now >= self._kill_at
        if overdue:
            self.kill("still running after workers.drain_timeout_s")
        return overdue

    def silent_s(self) -> float:
        """Seconds since the child last said that it is alive; 0 where none lives."""
        return self.stats.silent_s(time.monotonic_ns()) if self.child else 0.0

    def reap(self, now: float, *, at_once: tuple[int, ...] = (0,)) -> int | None:
        """The exit code if the child has ended: the slot is empty then. Codes in *at_once* need no backoff."""
        if self.child is None:
            return None
        code = self.child.reap()
        if code is None:
            return None
        asked = self.stopping
        if now - self._born_at >= SETTLED_S or code in at_once:
            self._backoff.reset()
        self._start_at = now if asked or code in at_once else now + self._backoff.next_delay_s()
        level = _log.info if code == 0 else _log.warning
        level("child.ended", child=self.role, number=self.number, child_pid=self.child.pid, code=code)
        if self.link:
            self.link.close()
        self.child, self.link, self._kill_at = None, None, None
        self.stats.set(pid=0)
        self.stats.add(restarts=0 if asked else 1)
        return code
