"""The lease keeper: the one process of a node that talks to the Redis of the leases (docs/design/002-leases.md)."""

import math
import random
import select
import time
from collections.abc import Iterable

from channelindex import exits
from channelindex.errors import AuthenticationFailed, CoordinationUnavailable
from coordinator.connection import connect
from coordinator.lease import LeaseBook, LeaseTiming
from coordinator.link import Held, Peer, SupervisorLink, Trouble
from coordinator.plan import Plan, plan
from coordinator.tick import Identity, Keys, Ticker, TickRequest, View
from coordinator.wake import WakeSubscription

_FIRST_RETRY_S = 0.05
"""The wait after the first failed tick, doubled after each further one up to the period: a Redis that restarts in a
moment costs no lease, one that is down for long is not hammered."""

_JITTER = 0.2
"""The part of a wait that is left to chance, so that nodes that were started together do not tick together for ever."""


class LeaseKeeper:
    """Holds as many leases as this node should have and tells the supervisor which, tick by tick.

    To be run in a child process of the supervisor that ignores SIGTERM and SIGINT: it ends when it has given everything
    back after `drain`, or when the supervisor is gone. A keeper that takes the place of one that died goes on under
    the same identity, with the leases that this still has.
    """

    def __init__(self, url: str, index: str, n_partitions: int, identity: Identity, link: SupervisorLink) -> None:
        self._n_partitions = n_partitions
        self._identity = identity
        self._link = link
        self._timing = LeaseTiming(identity.ttl_s)
        self._client = connect(url, self._timing.request_timeout_s)
        self._ticker = Ticker(self._client, url, index, identity)
        self._wake = WakeSubscription(self._client, Keys(index).changed, identity.incarnation)
        self._book = LeaseBook(self._timing)

        self._to_release: set[int] = set()
        self._draining = False
        self._status = ""
        self._last_order = 0

        self._view: View | None = None
        self._wanted_releases: tuple[int, ...] = ()
        self._trouble: Trouble | None = None
        self._n_failures = 0
        self._awaited_nodes: set[str] = set()
        self._await_until = 0.0
        self._next_tick_at = 0.0

    def run(self) -> None:
        """Work until drained or until the supervisor is gone. Blocks; never longer in Redis than its timeouts."""
        try:
            while not self._link.closed:
                self._tick_and_plan()
                self._report()
                if self._has_left():
                    return
                self._wait()
        finally:
            self._wake.close()
            self._client.close()
            self._link.close()

    def _tick_and_plan(self) -> None:
        """One round: renew and see, then take what the plan says. Never raises because of Redis."""
        before = self._view
        self._wake.ensure_open()  # before the tick, so that nothing happens between what we see and what we hear
        try:
            # Asking for what we hold anyway brings it back at once if Redis has lost its data.
            view = self._tick(take=self._book.held(time.monotonic()))
            todo = self._plan(view, before)
            self._wanted_releases = todo.release
            if todo.take:
                view = self._tick(take=todo.take)
        except (AuthenticationFailed, CoordinationUnavailable) as error:
            self._after_failure(error)
        else:
            self._after_success(view)

    def _tick(self, take: Iterable[int]) -> View:
        sent_at = time.monotonic()
        request = TickRequest(sorted(self._to_release), sorted(take), self._draining, self._status)
        view = self._ticker.tick(request)
        self._to_release.clear()
        self._book.renew(view.held_by(self._identity), sent_at)
        self._view = view
        return view

    def _plan(self, view: View, before: View | None) -> Plan:
        if not view.accepted:
            return Plan()
        if view.joined and before is not None:
            # Redis forgot us, so probably everybody: what looks free now is a peer's who comes back in a moment.
            self._awaited_nodes = {member.node for member in before.live}
            self._await_until = time.monotonic() + (1 - _JITTER) * self._timing.period_s  # our next tick at the soonest
        todo = plan(view.members, view.leases, self._identity.node, self._n_partitions)
        absent = self._awaited_nodes.difference(member.node for member in view.live)
        if absent and time.monotonic() < self._await_until:
            return todo._replace(take=())
        return todo

    def _after_success(self, view: View) -> None:
        self._n_failures = 0
        self._trouble = None if view.accepted else self._name_in_use(view)
        wait_s = self._timing.period_s * _jitter()
        # A peer whose time runs out before that has missed its renewal: be there when its partitions become free.
        others = (member.remaining_ms for member in view.live if member.incarnation != self._identity.incarnation)
        self._next_tick_at = time.monotonic() + min(wait_s, (min(others, default=1 << 40) + 1) / 1000)

    def _after_failure(self, error: AuthenticationFailed | CoordinationUnavailable) -> None:
        n_expired = len(self._book.expired(time.monotonic()))
        message = f"{error}; {n_expired} leases have run out meanwhile" if n_expired else str(error)
        self._trouble = Trouble(exits.code_for(error), message)
        wait_s = min(_FIRST_RETRY_S * 2**self._n_failures, self._timing.period_s / 2)
        self._n_failures = min(self._n_failures + 1, 16)
        self._next_tick_at = time.monotonic() + wait_s * _jitter()

    def _name_in_use(self, view: View) -> Trouble:
        name = self._identity.node
        remaining_s = max((member.remaining_ms / 1000 for member in view.live if member.node == name), default=0.0)
        return Trouble(
            exits.COORDINATION,
            f"node.name {name!r} belongs to another process for {remaining_s:.1f} s yet: one that died a moment ago, "
            "or a second node with the same name, which then has to be renamed",
        )

    def _has_left(self) -> bool:
        """Whether Redis has just confirmed, after `drain`, that nothing is ours any more."""
        if not self._draining or self._n_failures or self._view is None:
            return False
        return not self._view.held_by(self._identity)

    def _report(self) -> None:
        leases = self._book.held(time.monotonic())
        live = self._view.live if self._view else ()
        self._link.report(
            Held(
                leases=leases,
                wanted_releases=[partition for partition in self._wanted_releases if partition in leases],
                members=[Peer(member.node, member.draining, len(member.partitions)) for member in live],
                trouble=self._trouble,
                last_order=self._last_order,
            )
        )

    def _wait(self) -> None:
        """Until the next tick is due, an order cannot wait for it, or a peer says that something changed."""
        while True:
            urgent = self._obey()
            urgent |= self._wake.heard()
            wait_s = self._next_tick_at - time.monotonic()
            if urgent or wait_s <= 0 or self._link.closed:
                return
            _wait_readable([self._link.fileno(), self._wake.fileno()], wait_s)

    def _obey(self) -> bool:
        """Take over the supervisor's orders; whether they call for a tick at once."""
        urgent = False
        for order in self._link.orders():
            self._to_release.update(order.release)
            self._book.give_up(order.release)
            self._draining |= order.drain
            self._status = order.status or self._status
            self._last_order = order.number
            urgent |= bool(order.release) or order.drain
        return urgent


def _jitter() -> float:
    return 1 - _JITTER * random.random()


def _wait_readable(descriptors: Iterable[int | None], timeout_s: float) -> None:
    poller = select.poll()
    for descriptor in descriptors:
        if descriptor is not None:
            poller.register(descriptor, select.POLLIN)
    poller.poll(math.ceil(timeout_s * 1000))
