"""One supervised process: its pid, its restart backoff and its kill deadline."""

import signal
import time

from channelindex import exits, logs
from channelindex.backoff import Backoff
from workers.node.child import Child
from workers.node.decide import ChildView, Name
from workers.pipeline.assignment import AssignmentLink
from workers.pipeline.feed_worker import REWOUND, ROLLED_BACK, STALE
from workers.telemetry.board import ProcessStats

RESTART_FIRST_S = 0.1
RESTART_MAX_S = 10.0
"""A child that dies at once is tried again after 0.1 s, 0.2 s … 10 s: a broken store must not cost a core."""
STALE_MAX_S = 1.0
"""The same of a feed worker that lost its epoch, which is no fault of its own: of a cluster that fails over again and
again each failover costs one, and what it owns is to be written again at once after the last of them."""
SETTLED_S = 10.0
"""A child that lived this long ends the backoff: its death has nothing to do with those before."""

AT_ONCE_CODES = (exits.OK, ROLLED_BACK, REWOUND)
"""A child that ends so has done its work: the next one starts without delay, and its end counts as no restart."""

_log = logs.get("supervisor")


class ChildSlot:
    """Holds the children of one role and number, one after the other."""

    def __init__(self, name: Name, stats: ProcessStats) -> None:
        self.name = name
        self.role, self.number = name
        self.stats = stats
        self.child: Child | None = None
        self.link: AssignmentLink | None = None
        """To the present child, if it works on partitions."""
        self._backoff = Backoff(RESTART_FIRST_S, RESTART_MAX_S)
        self._stale_backoff = Backoff(RESTART_FIRST_S, STALE_MAX_S)
        self._start_at = 0.0
        self._born_at = 0.0
        self._kill_at: float | None = None
        self._killed = False

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions that the present child may be working on; empty for other roles and without a child."""
        return self.link.working if self.link else frozenset()

    @property
    def restarts(self) -> int:
        """Number of children that ended unexpectedly. Kept in the slot, where it outlives children and reloads."""
        return self.stats.get("restarts")

    @property
    def stopping(self) -> bool:
        """True if the child was ordered to stop."""
        return self._kill_at is not None

    def view(self, now: float) -> ChildView:
        """Return all that decisions are made from."""
        return ChildView(
            self.name,
            is_alive=self.child is not None,
            is_stopping=self.stopping,
            is_overdue=self._kill_at is not None and now >= self._kill_at,
            may_start=self.child is None and now >= self._start_at,
            silent_s=self.stats.silent_s(time.monotonic_ns()) if self.child else 0.0,
            working=self.partitions,
        )

    def attach(self, child: Child, now: float, link: AssignmentLink | None = None) -> None:
        """Take *child* in. *link*: to assign partitions to it."""
        assert self.child is None, "the one before it is not reaped"
        assert self.link is None, "and so is its link"
        self.stats.beat()  # what the one before it left there is no sign of death
        self.child = child
        self.link = link
        self._born_at = now
        self._kill_at = None
        self._killed = False
        _log.info("child.started", child=self.role, number=self.number, child_pid=child.pid)

    def failed_to_start(self, error: OSError, now: float) -> None:
        """Note that no process is to be had, or no descriptor for it: try again later."""
        assert self.child is None
        self._start_at = now + self._backoff.next_delay_s()
        _log.error("child.not_started", child=self.role, number=self.number, msg=str(error))

    def stop(self, kill_at: float) -> None:
        """Tell the child to finish its work; it is killed if it has not ended at *kill_at*."""
        assert kill_at > 0
        if self.child and self._kill_at is None:
            self._kill_at = kill_at
            self.child.signal(signal.SIGTERM)

    def kill(self, why: str) -> None:
        """End the child at once. Until it is reaped, once is enough."""
        if self.child and not self._killed:
            self._killed = True
            _log.warning("child.killed", child=self.role, number=self.number, child_pid=self.child.pid, msg=why)
            self.child.signal(signal.SIGKILL)

    def assign(self, partitions: frozenset[int]) -> None:
        """Have the child work on *partitions*, no more and no less."""
        if self.link:
            self.link.assign(partitions)

    def reap(self, now: float) -> int | None:
        """Return the exit code if the child has ended, and empty the slot; None while it lives, or where none does."""
        if self.child is None:
            return None
        code = self.child.reap()
        if code is None:
            return None
        asked = self.stopping
        if now - self._born_at >= SETTLED_S or code in AT_ONCE_CODES:
            self._backoff.reset()
            self._stale_backoff.reset()
        backoff = self._stale_backoff if code == STALE else self._backoff
        self._start_at = now if asked or code in AT_ONCE_CODES else now + backoff.next_delay_s()
        level = _log.info if code in AT_ONCE_CODES else _log.warning
        level("child.ended", child=self.role, number=self.number, child_pid=self.child.pid, code=code)
        if self.link:
            self.link.close()
        self.child, self.link, self._kill_at = None, None, None
        self.stats.set(pid=0, damaged=int(code == exits.CORRUPT))
        self.stats.add(restarts=0 if asked or code in AT_ONCE_CODES else 1)
        self.check()
        return code

    def check(self) -> None:
        """Assert what holds after every step."""
        assert self.link is None or self.child is not None, "only a child has a link"
        assert self._kill_at is None or self.child is not None, "only a child can be stopping"
        assert not self.partitions or self.child is not None, "a dead child works on nothing"
