"""Writes the supervisor's part of the board: the node's own words, and the leases in the rows of the partitions.

Beside it the rate of events, which the board's counters do not contain.
"""

import time
from collections import deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from coordinator.keeper_link import KeeperReport
from workers.telemetry.board import Board, NodePhase

WINDOW_S = 5.0
"""Over which a rate is taken: shorter, and it jumps with every batch; longer, and it lags behind what one looks for."""


class NodeReport:
    """Publishes the supervisor's words of *board*. Made and used in the supervisor alone."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._node = board.supervisor
        self._node.start()
        self._leased: frozenset[int] = frozenset()

    def beat(self) -> None:
        """Note that the loop turned once more."""
        self._node.beat()

    def reload_ended(self, *, taken: bool) -> None:
        """Count a configuration that was taken, or refused."""
        self._node.add(**{"reloads" if taken else "refused_reloads": 1})

    def publish(
        self, state: NodePhase, report: KeeperReport | None, heard_at: float, worked_on: AbstractSet[int]
    ) -> None:
        """Publish how the node is now.

        *heard_at*: when the keeper sent *report*; *worked_on*: what live feed workers have.
        """
        self._node.set(state=list(NodePhase).index(state))
        if report is None:
            return
        self._node.set(
            heard_ns=round(heard_at * 1e9),
            trouble=int(report.trouble is not None),
            members=report.n_members,
            to_move=report.n_to_move,
            unowned=len(report.unowned),
        )
        self._publish_leases(report)
        for partition in self._leased - worked_on:
            self._board.partitions[partition].set(streaming=0)

    def _publish_leases(self, report: KeeperReport) -> None:
        assert all(0 <= partition < len(self._board.partitions) for partition in report.leases)
        now_ns = time.monotonic_ns()
        leased = frozenset(report.leases)
        gained, lost = leased - self._leased, self._leased - leased
        assert gained.isdisjoint(lost)
        for partition in lost:
            self._board.partitions[partition].clear()
        for partition in gained:
            self._board.partitions[partition].set(leased_ns=now_ns)
        for partition, deadline in report.leases.items():
            self._board.partitions[partition].set(deadline_ns=round(deadline * 1e9))
        self._node.add(gained=len(gained), lost=len(lost))
        self._leased = leased


class Rate:
    """Measures the rate of a sum of counters, each with a key that is new when the counter is (a process id)."""

    def __init__(self) -> None:
        self._last: Mapping[int, int] = {}
        self._steps: deque[tuple[float, int]] = deque()

    def per_s(self, now: float, counters: Mapping[int, int]) -> float:
        """Take over the *counters* as of *now*; return what they rose by per second in the last window."""
        assert not self._steps or self._steps[-1][0] <= now, "the monotonic clock goes on"
        rise = sum(max(0, value - self._last.get(key, 0)) for key, value in counters.items())
        self._steps.append((now, rise if self._last or not self._steps else 0))
        self._last = dict(counters)
        while len(self._steps) > 2 and self._steps[1][0] <= now - WINDOW_S:
            self._steps.popleft()
        elapsed = now - self._steps[0][0]
        assert elapsed >= 0, "the monotonic clock goes on"
        return sum(rise for _, rise in list(self._steps)[1:]) / elapsed if elapsed > 0 else 0.0
