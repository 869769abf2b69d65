"""What `channelindex top` shows, without how it is drawn: trends over the last seconds of the state of an index."""

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
    """How the stable clock moved in the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()

    def add(self, at: float, stable: Sequence[int]) -> None:
        """The stable seqnos of all vbuckets as of *at*."""
        self._samples.append(_Sample(at, stable))
        while len(self._samples) > 2 and self._samples[1].at <= at - WINDOW_S:
            self._samples.popleft()

    def per_s(self) -> list[float]:
        """How much each vbucket rose per second. Not below 0: a rollback is no negative work."""
        if len(self._samples) < 2:
            return []
        first, last = self._samples[0], self._samples[-1]
        elapsed_s = max(1e-3, last.at - first.at)
        return [max(0, now - before) / elapsed_s for before, now in zip(first.stable, last.stable, strict=True)]

    def hot_vbuckets(self, limit: int) -> list[tuple[int, float]]:
        """The busiest with their changes per second, those at rest left out."""
        return nlargest(limit, ((vb, rate) for vb, rate in enumerate(self.per_s()) if rate), key=lambda hot: hot[1])


def nodes(state: State) -> list[State]:
    """The nodes, those that live first."""
    return sorted(state["nodes"], key=lambda node: (not node["alive"], node["node"]))


def worst_nodes(state: State, limit: int) -> list[State]:
    """All nodes in their order if they are no more than *limit*, else the dead and those that are furthest behind."""
    everyone = nodes(state)
    if len(everyone) <= limit:
        return everyone
    return nsmallest(limit, everyone, key=lambda node: (node["alive"], -node["status"].get("lag_s", 0.0)))


def processes(state: State) -> list[tuple[str, State]]:
    """The workers of all live nodes with their node's name: first those that stand still, then the fullest rings.

    By tenths: or the lines would change places all the time.
    """
    told = [(node["node"], process) for node in nodes(state) if node["alive"] for process in _processes_of(node)]
    workers = [(name, process) for name, process in told if process["role"] in {FEED_WORKER, BATCH_WRITER}]
    return sorted(
        workers, key=lambda pair: (not is_silent(pair[1]), -round(fill(pair[1]), 1), pair[0], pair[1]["role"])
    )


def is_silent(process: State) -> bool:
    """Whether its main loop has not turned for longer than it ever sleeps, many times over."""
    return bool(process["silent_s"] > SILENT_S)


def fill(process: State) -> float:
    """How full the rings of a feed worker are, 0 to 1; 0 for other roles."""
    capacity = process.get("ring_bytes", 0)
    return process["ring_fill"] / capacity if capacity else 0.0


def node_fill(node: State) -> float:
    """The fullest of the node's feed workers."""
    return max((fill(process) for process in _processes_of(node)), default=0.0)


def behind(state: State, limit: int) -> list[tuple[str, State]]:
    """The partitions that are furthest behind, with the node that owns them."""
    told = [
        (node["node"], part) for node in state["nodes"] if node["alive"] for part in node["status"].get("behind", ())
    ]
    return sorted(told, key=lambda pair: -pair[1]["lag_s"])[:limit]


def hot_channels(state: State, limit: int) -> list[HotChannel]:
    """The channels that cost the batch writers the most, and the one in the slowest batch."""
    merged: dict[str, HotChannel] = {}
    for _, process in processes(state):
        for told in process.get("hottest", ()):
            hot = HotChannel(**told)
            known = merged.get(hot.channel, hot._replace(bytes_per_s=0))
            slowest = max(hot, known, key=lambda one: one.batch_ms)
            merged[hot.channel] = slowest._replace(bytes_per_s=known.bytes_per_s + hot.bytes_per_s)
    return top_channels(merged.values(), limit)


def lag_s(state: State) -> float:
    """How far the index is behind in seconds, as its nodes tell."""
    return max((node["status"].get("lag_s", 0.0) for node in state["nodes"] if node["alive"]), default=0.0)


def _processes_of(node: State) -> Sequence[State]:
    processes: Sequence[State] = node["status"].get("processes", ())
    return processes
