"""Selects and ranks what `channelindex top` shows: nodes, processes, lag, and trends over the last seconds."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from heapq import nlargest, nsmallest
from typing import Any, NamedTuple

from workers.telemetry.board import BATCH_WRITER, COMPACTOR, FEED_WORKER
from workers.telemetry.hot_channels import HotChannel, top_channels

WINDOW_S = 5.0
HISTORY = 200
"""Updates that are remembered for the sparklines: as many as the widest terminal shows."""
SILENT_S = 5.0
_SHOWN_ROLES = (FEED_WORKER, BATCH_WRITER, COMPACTOR)

State = Mapping[str, Any]
"""As `channelindex status --json` prints it."""
Worker = tuple[str, State]
"""A process with the name of its node."""


class _Sample(NamedTuple):
    at: float
    stable: Sequence[int]


class Trend:
    """Measures the movement of the stable clock over the last WINDOW_S seconds, and what processes used meanwhile."""

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._used: dict[int, tuple[float, float]] = {}
        self.cpu_by_pid: dict[int, float] = {}
        """Share of one core between the last two reports of its node, 0 to 1 and more, by process id."""
        self.rates: deque[float] = deque(maxlen=HISTORY)
        self.lags: deque[float] = deque(maxlen=HISTORY)
        """Changes per second, and the lag in seconds, at each update; the newest is last."""

    def note(self, state: State) -> None:
        """Take in *state*, after `add`."""
        self.rates.append(sum(self.per_s()))
        if state["lag"]["seconds"] is not None:
            self.lags.append(state["lag"]["seconds"])
        for node in state["nodes"]:
            for process in _processes_of(node):
                self._note_use(node["status"]["at"], process)

    def _note_use(self, at: float, process: State) -> None:
        pid, used_s = process["pid"], process.get("cpu_s", 0.0)
        before_at, before_s = self._used.get(pid, (at, used_s))
        if at > before_at:
            self.cpu_by_pid[pid] = max(0.0, used_s - before_s) / (at - before_at)
        if at != before_at or pid not in self._used:
            self._used[pid] = (at, used_s)

    def add(self, at: float, stable: Sequence[int]) -> None:
        """The stable seqnos of all vbuckets as of *at*; of an index that was made anew there may be more or fewer."""
        if self._samples and len(stable) != len(self._samples[-1].stable):
            self._samples.clear()
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


def processes(state: State, sort: str = "ring", cpu_by_pid: Mapping[int, float] | None = None) -> list[Worker]:
    """The workers of all live nodes with their node's name: stalled ones first, then as *sort* says.

    *sort* is one of `top_keys.SORTS`. Rings and CPU are compared by tenths, so that lines do not swap places all the
    time.
    """
    reported = [(node["node"], process) for node in nodes(state) if node["heard"] for process in _processes_of(node)]
    workers = [(name, process) for name, process in reported if process["role"] in _SHOWN_ROLES]
    cpu = cpu_by_pid or {}
    rank: Mapping[str, Callable[[State], float]] = {
        "ring": lambda process: -round(fill(process), 1),
        "cpu": lambda process: -round(cpu.get(process["pid"], 0.0), 1),
        "memory": lambda process: -round(process.get("memory_bytes", 0) / 2**20),
        "node": lambda _: 0,
    }
    return sorted(workers, key=lambda pair: (not is_stalled(pair[1]), rank[sort](pair[1]), pair[0], pair[1]["role"]))


def of_node(state: State, name: str) -> State:
    """*state* as if there were only the node *name*; all of it where the name is "" or gone."""
    chosen = [node for node in state["nodes"] if node["node"] == name]
    return {**state, "nodes": chosen} if chosen else state


SPARKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last *width* of *values* as a line of bars, the largest as a full one."""
    shown = list(values)[-width:]
    largest = max(shown, default=0.0)
    return "".join(SPARKS[round(value / largest * (len(SPARKS) - 1)) if largest else 0] for value in shown)


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
    """The *limit* partitions with the largest lag, with their owner; "" and an unknown age where nobody reports.

    First come those of owners that do not report, if changes wait by the account of the bucket; then what nodes report.
    """
    heard = {node["node"]: node for node in state["nodes"] if node["heard"]}
    unheard = [part for part in state["partitions"] if part.get("lag") and part["owner"] not in heard]
    waiting = [
        (part["owner"] or "", {**part, "lag_s": None}) for part in sorted(unheard, key=lambda part: -part["lag"])
    ]
    reported = [(name, part) for name, node in heard.items() for part in node["status"].get("behind", ())]
    return [*waiting, *sorted(reported, key=lambda pair: -pair[1]["lag_s"])][:limit]


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
