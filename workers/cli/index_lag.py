"""Counts how far the index is behind its bucket: from the bucket's own high seqnos where they can be had.

The last reports of nodes are no answer when nodes are dead or stalled. So the bucket is asked, and where it
cannot be, the lag of partitions whose owner is not heard of is unknown, never 0.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from channelindex.errors import ChannelIndexError
from channelindex.feeds.dcp.kv import KvClient
from channelindex.settings import SourceSettings
from workers.pipeline.source import address_of

ASK_TIMEOUT_S = 3.0
"""Time for the bucket to answer: a person who looks at an ailing cluster should not wait long."""
RETRY_S = 30.0
"""Between two attempts at a bucket that does not answer, so that it does not stop every picture of `top`."""

Node = Mapping[str, Any]
"""A node as `channelindex status --json` prints it."""


class BucketHighSeqnos:
    """Asks the bucket for its high seqnos, repeatedly. `error` is the reason if it cannot be asked; to be closed."""

    def __init__(self, source: SourceSettings) -> None:
        self._source = source
        self._client: KvClient | None = None
        self._retry_at = 0.0
        self.error = "" if source.url else "source.url is not set"

    def read(self) -> Mapping[int, int] | None:
        """Return the highest seqno by vbucket; None where the bucket cannot be asked."""
        if not self._source.url or time.monotonic() < self._retry_at:
            return None
        try:
            if self._client is None:
                self._client = KvClient(*address_of(self._source), ASK_TIMEOUT_S)
            seqnos = self._client.high_seqnos()
        except ChannelIndexError as error:
            self.close()
            self.error = str(error)
            self._retry_at = time.monotonic() + RETRY_S
            return None
        self.error = ""
        return seqnos

    def close(self) -> None:
        """Close the connections."""
        if self._client:
            self._client.close()
            self._client = None


def is_heard(node: Node, ttl_s: float) -> bool:
    """Tell whether a node reported within a tick and a half. Nodes report every third of *ttl_s*."""
    return bool(node["alive"]) and node["silent_s"] <= ttl_s / 2


def describe_lag(
    nodes: Sequence[Node],
    partitions: Sequence[Mapping[str, Any]],
    stable: Sequence[int],
    high: Mapping[int, int] | None,
) -> dict[str, Any]:
    """Return the `lag` of `channelindex status --json`; *stable* by vbucket, *high* by vbucket or None.

    `changes` is in seqnos and `seconds` the age of the oldest one that waits; None where it is not known. `unheard` are
    the partitions whose owner is dead or silent, or that have none, and `unheard_s` how long that has been so.
    """
    heard = {node["node"]: node for node in nodes if node["heard"]}
    silent_s = {node["node"]: node["silent_s"] for node in nodes}
    unheard = [part for part in partitions if part["owner"] not in heard]
    n_per_partition = len(stable) // len(partitions)
    waiting = [
        max(0, (high or {}).get(vb, seqno) - seqno) if high is not None else None for vb, seqno in enumerate(stable)
    ]
    reported_s = max((node["status"].get("lag_s", 0.0) for node in heard.values()), default=0.0)
    since = [silent_s.get(part["owner"], part["since_s"]) for part in unheard]
    unheard_s = None if not since or None in since else max(since)
    if high is not None:
        changes: int | None = sum(count or 0 for count in waiting)
        behind = {vb // n_per_partition for vb, count in enumerate(waiting) if count}
        stuck = any(part["partition"] in behind for part in unheard)
        seconds = 0.0 if not changes else reported_s if not stuck else unheard_s and max(reported_s, unheard_s)
    else:
        changes = None if unheard else sum(node["status"].get("lag", 0) for node in heard.values())
        seconds = None if unheard else reported_s
    return {
        "changes": changes,
        "seconds": seconds,
        "of": sum(high.values()) if high is not None else None,
        "counted_by": "bucket" if high is not None else "nodes",
        "unheard": [part["partition"] for part in unheard],
        "unheard_s": unheard_s,
    }


def lag_line(lag: Mapping[str, Any], rate: float) -> str:
    """Return the lag as people read it; *rate* is the changes per second that nodes index."""
    if lag["changes"] is None:
        return f"lag unknown: no report from the owners of {len(lag['unheard'])} partitions{_since(lag)}"
    seconds = "for an unknown time" if lag["seconds"] is None else f"{lag['seconds']:.1f} s"
    text = f"lag {lag['changes']:,} changes, {seconds}"
    if lag["of"] and lag["changes"]:
        text += f"; {_percent(lag)} % of {lag['of']:,}"
        text += f", {lag['changes'] / rate:.0f} s left" if rate >= 1 else ", not moving"
    return text


def _percent(lag: Mapping[str, Any]) -> str:
    """Return how much is indexed, never 100.0 while something waits."""
    return f"{min(99.9, 100 * (1 - lag['changes'] / lag['of'])):.1f}"


def _since(lag: Mapping[str, Any]) -> str:
    return "" if lag["unheard_s"] is None else f" for {lag['unheard_s']:.0f} s"


def problems(state: Mapping[str, Any], max_lag_s: float) -> list[str]:
    """Return what `status --check` finds wrong, a line each; none if the index keeps up."""
    lag, found = state["lag"], []
    if not any(node["heard"] for node in state["nodes"]):
        found.append("no node is running")
    if lag["unheard"]:
        found.append(f"{len(lag['unheard'])} partitions have no owner that reports{_since(lag)}")
    if lag["seconds"] is None and (lag["changes"] or lag["changes"] is None):
        found.append("nobody knows how long changes have been waiting")
    elif lag["seconds"] and lag["seconds"] > max_lag_s:
        found.append(f"the index is {lag['seconds']:.1f} s behind, more than {max_lag_s:g} s (--max-lag)")
    return found
