"""Says how the compaction of an index goes, from what the compactors of its nodes last reported."""

from collections.abc import Mapping, Sequence
from typing import Any

from workers.telemetry.board import COMPACTOR

Node = Mapping[str, Any]
"""A node as `channelindex status --json` prints it."""

_SUMS = ("compacted", "refused", "skipped", "left_entries", "read_bytes", "written_bytes")
_SEEN = ("channels", "index_bytes", "live_bytes", "due", "oldest_due_s")


def describe_compaction(nodes: Sequence[Node]) -> dict[str, Any] | None:
    """Return `compaction` of `status --json`; None where no node that reports has a compactor.

    Each compactor looks at the whole index: of what they saw last, the largest counts; what they did is added up.
    """
    compactors = [
        process
        for node in nodes
        if node["heard"]
        for process in node["status"].get("processes", ())
        if process["role"] == COMPACTOR
    ]
    if not compactors:
        return None
    seen = {name: max(process.get(name, 0) for process in compactors) for name in _SEEN}
    done = {name: sum(process.get(name, 0) for process in compactors) for name in _SUMS}
    return {"compactors": len(compactors), "looks": sum(process["looks"] for process in compactors), **seen, **done}


def compaction_line(compaction: Mapping[str, Any] | None) -> str:
    """Return *compaction* in one line."""
    if compaction is None:
        return "compaction: no node that reports has a compactor"
    if not compaction["looks"]:
        return "compaction: no look at the index yet"
    n_new = max(0, compaction["index_bytes"] - compaction["live_bytes"])
    line = (
        f"compaction: {compaction['index_bytes'] / 1e6:,.1f} MB in blocks at its last look, {n_new / 1e6:,.1f} MB "
        f"of it not compacted; {compaction['compacted']} channels compacted"
    )
    if compaction["due"]:
        line += f", {compaction['due']} due, the oldest for {compaction['oldest_due_s']:.0f} s"
    for name in ("refused", "skipped"):
        line += f", {compaction[name]} {name}" if compaction[name] else ""
    return line
