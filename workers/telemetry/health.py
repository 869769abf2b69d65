"""Judges from the board whether a node is alive and whether it is ready. Pure."""

from typing import NamedTuple

from channelindex import exits
from channelindex.settings import MetricsSettings
from workers.telemetry.board import Board, ProcessStats

SETTLED_S = 10.0
"""A worker that lives for so long after one that found damage has not found it again."""
ALIVE_S = 10.0
"""A supervisor whose loop has not turned for so long is not alive. Its longest sleep is a fiftieth of that."""


class Health(NamedTuple):
    """`problems` is empty where the answer is yes."""

    problems: list[str]

    @property
    def is_ok(self) -> bool:
        """True if there is no problem."""
        return not self.problems


def liveness(board: Board, now_ns: int) -> Health:
    """Check that the supervisor's loop turns. A restart helps where it does not."""
    silent_s = board.supervisor.silent_s(now_ns)
    return Health([f"the supervisor's loop has not turned for {silent_s:.0f} s"] if silent_s > ALIVE_S else [])


def readiness(board: Board, now_ns: int, limits: MetricsSettings) -> Health:
    """Check that the leases are settled and this node keeps up: then a rolling restart may continue."""
    node = board.supervisor
    problems = liveness(board, now_ns).problems
    if node.get("state"):
        problems.append("reloading or draining")
    if damaged := sum(_found_damage(stats, now_ns) for stats in (*board.feeds, *board.writers)):
        problems.append(
            f"{damaged} workers found the index damaged (exit code {exits.CORRUPT}): their log line child.failed and "
            "channelindex status say what; see channelindex repair"
        )
    if not node.get("heard_ns"):
        problems.append("no report from the lease keeper yet")
    if node.get("trouble"):
        problems.append("the leases cannot be renewed, see the log line leases.trouble")
    if unowned := node.get("unowned"):
        problems.append(f"{unowned} partitions have no owner")
    if to_move := node.get("to_move"):
        problems.append(f"{to_move} partitions have to move")
    leased = [row for row in board.partitions if row.get("leased_ns")]
    if resting := sum(not row.get("streaming") for row in leased):
        problems.append(f"{resting} of {len(leased)} partitions are not streaming")
    lag_s = max((lag_s_of(row.get("behind_ns"), now_ns) for row in leased), default=0.0)
    if lag_s > limits.ready_lag_s:
        problems.append(f"a partition lags by {lag_s:.0f} s (metrics.ready_lag_s = {limits.ready_lag_s:g})")
    quarantined = sum(stats.get("quarantined") for stats in board.feeds)
    if quarantined > limits.ready_quarantined > 0:
        problems.append(
            f"{quarantined} documents could not be decoded since the workers started "
            f"(metrics.ready_quarantined = {limits.ready_quarantined}); see channelindex quarantine list"
        )
    return Health(problems)


def _found_damage(stats: ProcessStats, now_ns: int) -> bool:
    """Check whether a worker ended because of damage, and its successor has not yet lived for long enough."""
    is_settled = stats.get("pid") and (now_ns - stats.get("started_ns")) / 1e9 > SETTLED_S
    return bool(stats.get("damaged") and not is_settled)


def lag_s_of(behind_ns: int, now_ns: int) -> float:
    """Lag of a partition in seconds; 0 where *behind_ns* is 0."""
    return max(0, now_ns - behind_ns) / 1e9 if behind_ns else 0.0
