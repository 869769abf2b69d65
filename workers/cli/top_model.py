"""Selects and ranks what `channelindex top` shows: nodes, processes, lag, and trends over the last seconds."""

from collections import deque
from collections.abc import Mapping, Sequence
from heapq import nlargest, nsmallest
from typing import Any, NamedTuple

from workers.telemetry.board import BATCH_WRITER, FEED_WORKER
from workers.telemetry.hot_channels import HotChannel, top_channels

WINDOW_S = 5.0
SILENT_S = 5.0

State = Mapping[str, Any]
"""As `channelindex status --json` prints it."""


class _Sample(NamedTuple):
    at: float
    stable: Sequence[int]


class Trend:
    """Measures the movement of the stable clock over the last WINDOW_S seconds."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()

    def add(self, at: float, stable: Sequence[int]) -> None:
        """The stable seqnos of all vbuckets as of *at*."""
        self._samples.append(_Sample(at, stable))
        while len(self._samples) > 2 and self._samples[1].at <= at - WINDOW_S:
            self._samples.popleft()

    def per_s(self) -> list[float]:
        """Changes per second of each vbucket; 0 after a rollback, which is no negative work."""
        if len(self._samples) < 2:
            return []
        first, last = self._samples[0], self._samples[-1]
        elapsed_s = max(1e-3, last.at - first.at)
        return [max(0, now - before) / elapsed_s for before, now in zip(first.stable, last.stable, strict=True)]

    def hot_vbuckets(self, limit: int) -> list[tuple[int, float]]:
        """The *limit* busiest vbuckets with their changes per second, without those at rest."""
        return nlargest(limit, ((vb, rate) for vb, rate in enumerate(self.per_s()) if rate), key=lambda hot: hot[1])


def nodes(state: State) -> list[State]:
    """The nodes, live ones first."""
    return sorted(state["nodes"], key=lambda node: (not node["alive"], node["node"]))


def worst_nodes(state: State, limit: int) -> list[State]:
    """At most *limit* nodes: all in their order if they fit, else the dead and those with the largest lag."""
    everyone = nodes(state)
    if len(everyone) <= limit:
        return everyone
    return nsmallest(limit, everyone, key=lambda node: (node["heard"], -node["status"].get("lag_s", 0.0)))


def processes(state: State) -> list[tuple[str, State]]:
    """The workers of all live nodes with their node's name: stalled ones first, then those with the fullest rings.

    Rings are compared by tenths, so that lines do not swap places all the time.
    """
    reported = [(node["node"], process) for node in nodes(state) if node["heard"] for process in _processes_of(node)]
    workers = [(name, process) for name, process in reported if process["role"] in {FEED_WORKER, BATCH_WRITER}]
    return sorted(
        workers, key=lambda pair: (not is_stalled(pair[1]), -round(fill(pair[1]), 1), pair[0], pair[1]["role"])
    )


def is_stalled(process: State) -> bool:
    """True if its main loop has not turned for SILENT_S, many times its longest sleep."""
    return bool(process["silent_s"] > SILENT_S)


def fill(process: State) -> float:
    """Fill of the rings of a feed worker, 0 to 1; 0 for other roles."""
    capacity = process.get("ring_bytes", 0)
    return process["ring_fill"] / capacity if capacity else 0.0


def node_fill(node: State) -> float:
    """The largest ring fill of the node's feed workers, 0 to 1."""
    return max((fill(process) for process in _processes_of(node)), default=0.0)


def lagging(state: State, limit: int) -> list[tuple[str, State]]:
    """The *limit* partitions with the largest lag, with the node that owns them."""
    reported = [
        (node["node"], part) for node in state["nodes"] if node["heard"] for part in node["status"].get("behind", ())
    ]
    return sorted(reported, key=lambda pair: -pair[1]["lag_s"])[:limit]


def hot_channels(state: State, limit: int) -> list[HotChannel]:
    """The channels with the most bytes written, and the one in the slowest batch."""
    merged: dict[str, HotChannel] = {}
    for _, process in processes(state):
        for reported in process.get("hottest", ()):
            hot = HotChannel(**reported)
            known = merged.get(hot.channel, hot._replace(bytes_per_s=0))
            slowest = max(hot, known, key=lambda one: one.batch_ms)
            merged[hot.channel] = slowest._replace(bytes_per_s=known.bytes_per_s + hot.bytes_per_s)
    return top_channels(merged.values(), limit)


def _processes_of(node: State) -> Sequence[State]:
    processes: Sequence[State] = node["status"].get("processes", ())
    return processes
