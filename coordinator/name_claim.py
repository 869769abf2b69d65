"""Tells a second node of the same name from the first one's remains, by the lease of the name alone."""

from channelindex import exits
from coordinator.keeper_link import Trouble
from coordinator.lease import LeaseTiming

PATIENCE_TTLS = 2.0
"""Lease durations for which a node waits for its name: one is the longest that a dead node's lease can still last."""


class NameClaim:
    """Judges the answers to one node's claim of its name. Times are monotonic seconds.

    The lease of a process that died only runs down. One that is renewed has a living owner, who ticks at least every
    third of a lease: this node is the second of its name, and waiting does not help.
    """

    def __init__(self, node: str, ttl_s: float) -> None:
        assert ttl_s > 0
        self._node = node
        self._patience_s = PATIENCE_TTLS * ttl_s
        self._slack_s = LeaseTiming(ttl_s).request_timeout_s  # an answer can be so late
        self._refused_at: float | None = None
        self._first_end = 0.0

    def judge(self, remaining_s: float | None, now: float) -> Trouble | None:
        """Return what is the matter, None where the name is ours.

        *remaining_s* is how long the lease of the name still lasts for another process; None where it is ours.
        """
        if remaining_s is None:
            self._refused_at = None
            return None
        assert remaining_s >= 0, "an expired lease refuses nobody"
        end = now + remaining_s
        if self._refused_at is None:
            self._refused_at, self._first_end = now, end
        is_renewed = end > self._first_end + self._slack_s
        if is_renewed and now - self._refused_at >= self._patience_s:
            return Trouble(
                exits.NAME_TAKEN,
                f"node.name {self._node!r} belongs to another node, which has renewed it for "
                f"{now - self._refused_at:.0f} s: give each node a name of its own",
            )
        return Trouble(
            exits.COORDINATION,
            f"node.name {self._node!r} belongs to another process for {remaining_s:.1f} s more: one that died "
            "a moment ago, or a second node with the same name, which needs another one",
        )
