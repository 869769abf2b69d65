"""The lease keeper: the one process of a node that talks to the Redis of the leases (docs/design/002-leases.md)."""

import time

from channelindex import exits
from channelindex.backoff import Backoff
from channelindex.errors import AuthenticationFailed, CoordinationUnavailable
from channelindex.polling import wait_readable
from coordinator.keeper_link import KeeperReport, SupervisorLink, Trouble
from coordinator.lease import LeaseTiming
from coordinator.lease_redis import CoordinationKeys, connect
from coordinator.membership import Membership
from coordinator.name_claim import NameClaim
from coordinator.tick import Identity, Ticker
from coordinator.wake import WakeSubscription

_FIRST_RETRY_S = 0.05
"""The wait after the first failed tick, doubled after each further one up to half a period: a Redis that restarts in a
moment costs no lease, one that is down for long is not hammered."""


class LeaseKeeper:
    """Takes and renews the leases that this node is due for, and reports them to the supervisor at each tick.

    To be run in a child process of the supervisor that ignores SIGTERM and SIGINT: it ends when it has released
    everything after `drain`, or when the supervisor is gone. A keeper that replaces one that died continues with the
    same identity and the leases that this still has. *max_moves*: partitions to hand over at once.
    """

    def __init__(
        self, url: str, index: str, n_partitions: int, identity: Identity, link: SupervisorLink, max_moves: int = 8
    ) -> None:
        self._name = NameClaim(identity.node, identity.ttl_s)
        self._link = link
        timeout_s = LeaseTiming(identity.ttl_s).request_timeout_s
        self._redis = connect(url, timeout_s)
        ticker = Ticker(self._redis, index, identity)
        self._membership = Membership(ticker, identity, n_partitions, max_moves)
        self._wake = WakeSubscription(connect(url, timeout_s), CoordinationKeys(index).wake(identity.node))
        self._last_order = 0
        self._trouble: Trouble | None = None
        self._backoff = Backoff(_FIRST_RETRY_S, self._membership.timing.period_s / 2)
        self._has_ticked = False
        self._next_tick_at = 0.0

    def run(self) -> None:
        """Work until drained or until the supervisor is gone. Blocks; never longer in Redis than its timeouts."""
        try:
            while not self._link.closed:
                self._tick()
                self._report()
                if self._membership.has_left and not self._backoff.failures:
                    return
                self._wait()
        finally:
            self._wake.close()
            self._redis.close()
            self._link.close()

    def _tick(self) -> None:
        """Run one tick; never raises because of Redis."""
        self._wake.ensure_open()  # before the tick, so that nothing happens between what we see and what we hear
        try:
            wait_s = self._membership.tick()
        except (AuthenticationFailed, CoordinationUnavailable) as error:
            self._after_failure(error)
        else:
            self._backoff.reset()
            self._has_ticked = True
            now = time.monotonic()
            assert wait_s > 0, "a tick is no loop"
            self._trouble = self._name.judge(self._membership.refused_s, now)
            self._next_tick_at = now + wait_s

    def _after_failure(self, error: AuthenticationFailed | CoordinationUnavailable) -> None:
        n_expired = len(self._membership.book.expired(time.monotonic()))
        message = f"{error}; {n_expired} leases have expired meanwhile" if n_expired else str(error)
        # Rights that a running node lost may come back; those that a starting node lacks are a wrong setting.
        code = exits.COORDINATION if self._has_ticked else exits.code_for(error)
        self._trouble = Trouble(code, message)
        self._next_tick_at = time.monotonic() + self._backoff.next_delay_s()

    def _report(self) -> None:
        now, membership = time.monotonic(), self._membership
        leases = membership.book.unexpired(now)
        self._link.report(
            KeeperReport(
                leases=leases,
                due_releases=[partition for partition in membership.due_releases if partition in leases],
                n_members=membership.n_members,
                n_to_move=membership.n_to_move,
                unowned={partition: round(now - since, 3) for partition, since in membership.free_since.items()},
                scale=membership.scale,
                trouble=self._trouble,
                last_order=self._last_order,
            )
        )

    def _wait(self) -> None:
        """Sleep until the next tick is due, an urgent order comes, or a peer wakes us."""
        while True:
            urgent = self._obey()
            urgent |= self._wake.heard()
            wait_s = self._next_tick_at - time.monotonic()
            if urgent or wait_s <= 0 or self._link.closed:
                return
            wake = self._wake.fileno()
            wait_readable([self._link, *(() if wake is None else (wake,))], wait_s)

    def _obey(self) -> bool:
        """Apply the supervisor's orders; return true if they need a tick at once."""
        urgent = False
        for order in self._link.orders():
            assert order.number > self._last_order, "orders arrive in the order of their numbers"
            self._membership.release(order.release)
            self._membership.leaving |= order.drain
            self._membership.status = order.status or self._membership.status
            self._last_order = order.number
            urgent |= bool(order.release) or order.drain
        return urgent
