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
    unheard = [part for part in partitions if part["owner"] not in heard]
    unheard_s = _longest_silence(unheard, {node["node"]: node["silent_s"] for node in nodes})
    reported_s = max((node["status"].get("lag_s", 0.0) for node in heard.values()), default=0.0)
    numbers = [part["partition"] for part in unheard]
    lag = {"unheard": numbers, "unheard_s": unheard_s}
    if high is None:
        reported = sum(node["status"].get("lag", 0) for node in heard.values())
        known = {"changes": None, "seconds": None} if unheard else {"changes": reported, "seconds": reported_s}
        return known | {"of": None, "counted_by": "nodes"} | lag
    waiting = [max(0, high.get(vb, seqno) - seqno) for vb, seqno in enumerate(stable)]
    seconds: float | None = reported_s if any(waiting) else 0.0
    if _any_waits(numbers, waiting, len(stable) // len(partitions)):
        seconds = None if unheard_s is None else max(reported_s, unheard_s)
    return {"changes": sum(waiting), "seconds": seconds, "of": sum(high.values()), "counted_by": "bucket"} | lag


def _longest_silence(unheard: Sequence[Mapping[str, Any]], silent_s: Mapping[str, float]) -> float | None:
    """Return for how long nobody has reported of some partitions; None where one of them has never been owned."""
    since = [silent_s.get(part["owner"], part["since_s"]) for part in unheard]
    known = [seconds for seconds in since if seconds is not None]
    return max(known) if known and len(known) == len(since) else None


def _any_waits(partitions: Sequence[int], waiting: Sequence[int], width: int) -> bool:
    """Tell whether changes wait in one of *partitions*, each *width* vbuckets."""
    return any(any(waiting[number * width : (number + 1) * width]) for number in partitions)


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
