"""Looks at the cluster once a second while somebody watches the page, and informs all who do."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec

from channelindex import logs
from channelindex.errors import ChannelIndexError

LOOK_S = 1.0
LATE_S = 5.0
"""From this lag on the page shows it as something to see to."""
COLOURS = 8
LAG_TIMEOUT_S = 1.0
"""A client that asks for the database does not wait longer for an account of its lag."""

_log = logs.get("serve")


class ClusterSource(NamedTuple):
    """Reads the state of the cluster. All are called in one thread, `waiting` after `read`.

    `read` returns what `channelindex status --json` prints; `waiting` the changes that wait by vbucket, None if the
    bucket cannot be asked.
    """

    read: Callable[[], Mapping[str, Any]]
    waiting: Callable[[], Sequence[int] | None]
    close: Callable[[], None]


class ClusterWatch:
    """See the module. *open_source* is called in a thread when somebody looks for the first time."""

    def __init__(self, open_source: Callable[[], ClusterSource]) -> None:
        self._open_source = open_source
        self._source: ClusterSource | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="channelindex-page")
        self._n_watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.state: dict[str, Any] | None = None
        self._lag: dict[str, Any] | None = None
        self._lag_at = -math.inf

    async def now(self) -> dict[str, Any]:
        """The picture of the cluster as of now.

        Raises:
            ChannelIndexError: it cannot be read.
        """
        self.state = await asyncio.get_running_loop().run_in_executor(self._thread, self._look)
        return self.state

    async def lag(self) -> dict[str, Any] | None:
        """Return how far the index is behind its bucket, as of a moment ago; None where nobody says so at once."""
        if time.monotonic() - self._lag_at >= LOOK_S:
            self._lag_at, self._lag = time.monotonic(), None
            try:
                async with asyncio.timeout(LAG_TIMEOUT_S):
                    self._lag = (await self.now())["lag"]
            except (ChannelIndexError, TimeoutError):
                pass
        return self._lag

    async def next(self) -> bytes:
        """Wait for the next picture; as JSON. Between `join` and `leave`."""
        assert self._task is not None, "between `join` and `leave`"
        await self._changed.wait()
        return msgspec.json.encode(self.state)

    def join(self) -> None:
        """Have it look."""
        self._n_watchers += 1
        assert self._n_watchers > 0
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def leave(self) -> None:
        """Stop looking once nobody watches."""
        self._n_watchers -= 1
        assert self._n_watchers >= 0, "who leaves has joined"
        if not self._n_watchers and self._task is not None:
            self._task.cancel()
            self._task = None

    async def close(self) -> None:
        """Close the source."""
        if self._task is not None:
            self._task.cancel()
        if self._source is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._source.close)
        self._thread.shutdown(wait=False)

    async def _run(self) -> None:
        while True:
            try:
                await self.now()
            except ChannelIndexError as error:
                _log.warning("serve.cluster_unknown", msg=str(error))
            else:
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(LOOK_S)

    def _look(self) -> dict[str, Any]:
        if self._source is None:
            self._source = self._open_source()
        return picture(self._source.read(), self._source.waiting())


def picture(status: Mapping[str, Any], waiting: Sequence[int] | None) -> dict[str, Any]:
    """Return what the page shows of *status*; *waiting* by vbucket, else what nodes report of partitions."""
    index, nodes = status["index"], status["nodes"]
    per_partition = index["vbuckets"] // index["partitions"]
    position = {node["node"]: number for number, node in enumerate(nodes)}
    owners = [position.get(part["owner"]) for part in status["partitions"]]
    waits = dict(enumerate(waiting)) if waiting is not None else _reported(nodes, per_partition)
    lag = status["lag"]
    return {
        "index": index["name"],
        "vbuckets": index["vbuckets"],
        "per_partition": per_partition,
        "stable": index["stable"],
        "owners": owners,
        "waiting": {vb: n for vb, n in waits.items() if n},
        "behind": "unknown" if lag["seconds"] is None else f"{lag['seconds']:.1f} s",
        "lag": {"changes": lag["changes"], "seconds": lag["seconds"]},
        "is_late": lag["seconds"] is None or lag["seconds"] >= LATE_S,
        "rate": sum(node["status"].get("rate", 0) for node in nodes if node["heard"]),
        "alive": f"{sum(bool(node['alive']) for node in nodes)} of {len(nodes)}",
        "nodes": [_node(node, number, owners, per_partition) for number, node in enumerate(nodes)],
    }


def _node(node: Mapping[str, Any], number: int, owners: Sequence[int | None], per_partition: int) -> dict[str, Any]:
    return {
        "name": node["node"],
        "colour": number % COLOURS,
        "state": node["state"],
        "is_alive": bool(node["alive"]),
        "vbuckets": owners.count(number) * per_partition,
        "rate": node["status"].get("rate", 0) if node["heard"] else 0,
        "lag": node["status"].get("lag", 0) if node["heard"] else 0,
    }


def _reported(nodes: Sequence[Mapping[str, Any]], per_partition: int) -> dict[int, int]:
    """The lag of the partitions that nodes name as their worst, shared out among their vbuckets."""
    return {
        vb: -(-part["lag"] // per_partition)
        for node in nodes
        if node["heard"]
        for part in node["status"].get("behind", ())
        for vb in range(part["partition"] * per_partition, (part["partition"] + 1) * per_partition)
    }
