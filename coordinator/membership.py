"""Plays one node's part in sharing out the partitions: decides its request at each tick, and applies the answer.

No processes, no waiting: the lease keeper drives it, and so does the simulation of a thousand nodes.
"""

import random
import time
from collections.abc import Callable, Collection, Iterable

from coordinator.keeper_link import Scale
from coordinator.lease import LeaseBook, LeaseTiming
from coordinator.plan import Target
from coordinator.tick import Identity, TickAnswer, Ticker, TickRequest, View

JITTER = 0.2
"""Random part of a wait, so that nodes that were started together do not tick together for ever."""
EXPIRY_SPREAD_S_PER_NODE = 0.002
EXPIRY_SPREAD_S = 1.0
"""After a peer's lease expires, each node ticks at a random moment within this time: the first to see the expiry wakes
those who can take something, and a thousand nodes do not all ask in the same millisecond."""

_NOBODY = View((), (), ())


class Membership:
    """The state of one node between its ticks. *clock* is monotonic, in seconds."""

    def __init__(
        self,
        ticker: Ticker,
        identity: Identity,
        n_partitions: int,
        max_moves: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert n_partitions > 0
        assert max_moves > 0, "nothing would ever move"
        self._ticker = ticker
        self._identity = identity
        self._n_partitions = n_partitions
        self._max_moves = max_moves
        self._clock = clock
        self.timing = LeaseTiming(identity.ttl_s)
        self.book = LeaseBook(self.timing)

        self.leaving = False
        """Set to take nothing more and to release everything."""
        self.status = ""
        """JSON to show to others from the next tick on."""
        self.due_releases: tuple[int, ...] = ()
        """Partitions to drain and then to release."""
        self.refused_s: float | None = None
        """Seconds for which our name still belongs to another process; None where it is ours."""
        self.scale: Scale | None = None
        """The worker counts that an operator ordered."""
        self.free_since: dict[int, float] = {}
        """The partitions without an owner, with the time at which we first saw that."""

        self._to_release: set[int] = set()
        self._view = _NOBODY
        self._version = 0
        self._target = Target({}, {})
        self._owns_nothing = False
        self._awaited_nodes: set[str] = set()
        self._await_until = 0.0

    @property
    def n_members(self) -> int:
        """Number of live nodes in the newest view."""
        return len(self._view.live)

    @property
    def n_to_move(self) -> int:
        """Moves that the whole cluster has yet to make, by the newest view."""
        return self._target.n_moves()

    @property
    def has_left(self) -> bool:
        """True when, after `leaving`, the last answer has no lease of ours any more."""
        return self.leaving and self._owns_nothing

    def release(self, partitions: Iterable[int]) -> None:
        """Release *partitions*, which were drained, with the next tick."""
        given = set(partitions)
        assert all(0 <= partition < self._n_partitions for partition in given)
        self._to_release |= given
        self.book.give_up(given)

    def tick(self) -> float:
        """Renew, read the view, then take what the plan says; return the seconds until the next tick.

        Raises:
            AuthenticationFailed, CoordinationUnavailable: see `lease_redis.connect`. What was to be released still is.
        """
        before, released = self._view, set(self._to_release)
        # Asking for our own leases, too, restores them at once if Redis has lost its data.
        answer = self._ask(take=self.book.unexpired(self._clock()))
        if answer.joined and before.live:
            # Redis forgot us, so probably everybody: what looks free now is a peer's who comes back in a moment.
            self._awaited_nodes = {member.node for member in before.live}
            self._await_until = self._clock() + (1 - JITTER) * self.timing.period_s  # our next tick at the soonest
        joined = answer.joined
        freed = released if answer.n_freed <= len(released) else before.leases.keys() - self._view.leases.keys()
        take = self._plan() if answer.accepted else ()
        if take:
            answer = self._ask(take)
            self._plan()
        self._wake_others(freed, joined)
        return self._until_next(answer)

    def check(self) -> None:
        """Assert what holds after every tick that was answered."""
        owned = self._view.owned_by(self._identity.node)
        assert self.book.unexpired(self._clock()).keys() <= set(owned), (
            "we work on what Redis says is ours, and nothing else"
        )
        assert set(self.due_releases) <= set(owned), "only what is ours can be released"
        assert self.leaving or len(self.due_releases) <= self._max_moves
        assert self.free_since.keys().isdisjoint(self._view.leases), "what is owned is not free"
        assert all(0 <= partition < self._n_partitions for partition in self.free_since)
        assert all(partition >= self._n_partitions for partition in self._to_release), "it released what was ours"
        assert not self.has_left or not self.book.unexpired(self._clock())

    def _ask(self, take: Iterable[int]) -> TickAnswer:
        sent_at = self._clock()
        answer, view = self._ticker.tick(
            TickRequest(
                release=sorted(self._to_release),
                take=sorted(take),
                leaving=self.leaving,
                status=self.status,
                reason=self._reason(),
                known_version=self._version,
            )
        )
        self._to_release.clear()
        self.status = ""
        self.scale = answer.scale
        self.refused_s = None if answer.accepted else answer.own_remaining_ms / 1000
        if view is not None:
            self._see(view, answer.version)
        listed = self._view.owned_by(self._identity.node) if answer.accepted else ()
        owned = [partition for partition in listed if partition < self._n_partitions]
        # What else our name has is of an index that was lost, and had more partitions than the one in its place.
        self._to_release.update(partition for partition in listed if partition >= self._n_partitions)
        self._owns_nothing = not owned
        self.book.renew(owned, sent_at)
        return answer

    def _see(self, view: View, version: int) -> None:
        names = [member.node for member in view.live]
        assert len(names) == len(set(names)), "a node is a member once"
        assert len(view.leases) == sum(len(member.partitions) for member in view.live), "a partition has one owner"
        self._view, self._version = view, version
        self._target = view.target(self._n_partitions)
        leases, now = view.leases, self._clock()
        free = (partition for partition in range(self._n_partitions) if partition not in leases)
        self.free_since = {partition: self.free_since.get(partition, now) for partition in free}

    def _reason(self) -> str:
        if self.leaving:
            return "left"
        drained = any(member.draining for member in self._view.live if member.node == self._identity.node)
        return "drained" if drained else "rebalance"

    def _plan(self) -> tuple[int, ...]:
        """Decide what to release; return what to take now."""
        todo = self._target.plan_of(self._identity.node)
        owned = set(self._view.owned_by(self._identity.node))
        due = owned.intersection((*todo.release, *self._view.asked))
        # What is being drained already stays due: the limit must not make us change our mind.
        ranked = sorted(due, key=lambda partition: (partition not in self.due_releases, partition))
        self.due_releases = tuple(sorted(ranked if self.leaving else ranked[: self._max_moves]))
        assert owned.issuperset(self.due_releases)
        assert owned.isdisjoint(todo.take), "what is ours already is not free"
        absent = self._awaited_nodes.difference(member.node for member in self._view.live)
        if self.leaving or (absent and self._clock() < self._await_until):
            return ()
        return todo.take

    def _wake_others(self, freed: Collection[int], joined: bool) -> None:
        """Wake the nodes for which our tick made something to do, instead of leaving it to their next tick.

        Those are the takers of what is free now and, if we have just joined, the owners of what is meant for us.
        """
        if not freed and not joined:
            return
        owner_of = self._view.leases
        names = {
            taker for partition, taker in self._target.takers() if partition in freed and partition not in owner_of
        }
        if joined:
            meant_for_us = self._target.taken_by.get(self._identity.node, ())
            names |= {owner_of[partition] for partition in meant_for_us if partition in owner_of}
        names.discard(self._identity.node)
        if names:
            self._ticker.wake(names)

    def _until_next(self, answer: TickAnswer) -> float:
        """Seconds until the next tick: a period, or less where a peer has missed its renewal and its leases expire."""
        wait_s = self.timing.period_s * (1 - JITTER * random.random())
        assert 0 < wait_s <= self.timing.period_s, "a lease is renewed in time"
        if answer.next_end_ms < 0:
            return wait_s
        spread_s = min(EXPIRY_SPREAD_S, EXPIRY_SPREAD_S_PER_NODE * self.n_members)
        return min(wait_s, (answer.next_end_ms + 1) / 1000 + spread_s * random.random())
