"""Counts the leases of this node by its own clock, whether Redis can be reached or not."""

from collections.abc import Iterable
from typing import NamedTuple

ATTEMPTS = 2
"""Renewals in a row that fit into a lease; part of the budget in `LeaseTiming`."""


class LeaseTiming(NamedTuple):
    """The time budget of a lease, all of it derived from the TTL, in seconds.

    A lease renewed by a request sent at t counts until t + ttl - margin. Renewals start every `period_s`. The budget:

        ATTEMPTS x period + request timeout + margin < TTL

    means that the last of ATTEMPTS renewals after a good one still arrives in time, even if its answer takes the whole
    timeout: one renewal may be lost completely. After a failure the next attempt comes sooner than a period.

    The margin is what a supervisor needs to notice the deadline and stop its workers before a peer may own the
    partition. It also covers the rates of two machines' clocks, which differ by far less than a thousandth.
    """

    ttl_s: float

    @property
    def period_s(self) -> float:
        """The longest time from the start of one renewal to the start of the next."""
        return self.ttl_s / 3

    @property
    def request_timeout_s(self) -> float:
        """Longest round trip to Redis."""
        return self.ttl_s / 6

    @property
    def margin_s(self) -> float:
        """Time before the true end of a lease at which we stop."""
        return self.ttl_s / 12


class LeaseBook:
    """The leases that this node holds, each with its deadline on the monotonic clock. Does no I/O; time is passed in.

    Invariant: a deadline lies before the moment at which Redis lets somebody else take the lease, because it is counted
    from before the request that renewed the lease was sent, and Redis counts from when it ran. A reply that
    arrives after the deadline that it grants (we were paused) therefore grants nothing: `unexpired` compares at each
    call.
    """

    def __init__(self, timing: LeaseTiming) -> None:
        budget_s = ATTEMPTS * timing.period_s + timing.request_timeout_s + timing.margin_s
        assert 0 < budget_s < timing.ttl_s, "see `LeaseTiming`"
        self._timing = timing
        self._deadline_by_partition: dict[int, float] = {}

    def renew(self, partitions: Iterable[int], sent_at: float) -> None:
        """Take over what Redis answered to a request sent at *sent_at*: we hold exactly *partitions*."""
        deadline = sent_at + self._timing.ttl_s - self._timing.margin_s
        assert sent_at < deadline < sent_at + self._timing.ttl_s, (
            "it lies before the moment at which others may take it"
        )
        self._deadline_by_partition = dict.fromkeys(partitions, deadline)

    def give_up(self, partitions: Iterable[int]) -> None:
        """Forget *partitions*: no worker here works on them any more, whatever Redis answers."""
        for partition in partitions:
            self._deadline_by_partition.pop(partition, None)

    def unexpired(self, now: float) -> dict[int, float]:
        """The deadlines, by partition, of the leases that have not expired."""
        return {partition: at for partition, at in self._deadline_by_partition.items() if now < at}

    def expired(self, now: float) -> set[int]:
        """The leases that have expired and were neither renewed nor given up."""
        return {partition for partition, at in self._deadline_by_partition.items() if now >= at}
