"""Makes a node's status: the JSON that `channelindex status` shows, and the one line for systemd."""

import os
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from channelindex import kernel
from coordinator.keeper_link import KeeperReport
from workers.node.child_slot import ChildSlot
from workers.telemetry.board import BATCH_WRITER, COMPACTOR, FEED_WORKER, Board, Row
from workers.telemetry.health import lag_s_of
from workers.telemetry.process_use import process_use

WORST = 5
"""Partitions with the largest lag that are named."""


def node_status(
    state: str, slots: Sequence[ChildSlot], report: KeeperReport | None, board: Board, rate: float
) -> dict[str, Any]:
    """Describe the node now: its state, its processes with their counters, its partitions and its trouble.

    *rate* is events per second.
    """
    behind = _behind(sorted(report.leases) if report else [], board.partitions)
    processes = [_process(slot, board) for slot in slots if slot.child]
    feeds = [process for process in processes if process["role"] == FEED_WORKER]
    return {
        "pid": os.getpid(),
        "state": state,
        "at": time.time(),
        "partitions": sorted(report.leases) if report else [],
        "trouble": report.trouble.message if report and report.trouble else None,
        "events": sum(feed["events"] for feed in feeds),
        "in_flight": sum(feed["in_flight"] for feed in feeds),
        "rate": round(rate),
        "lag": sum(feed["lag"] for feed in feeds),
        "lag_s": max((part["lag_s"] for part in behind), default=0.0),
        "behind": behind[:WORST],
        "restarts": sum(slot.restarts for slot in slots),
        "unowned": sorted(report.unowned) if report else [],
        "workers": {role: sum(slot.role == role for slot in slots) for role in (FEED_WORKER, BATCH_WRITER)},
        "processes": processes,
        "kernel": kernel.description(),
    }


def _behind(partitions: Sequence[int], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the partitions that are behind, the worst first."""
    now_ns = time.monotonic_ns()
    lags = [(lag_s_of(rows[p].get("behind_ns"), now_ns), rows[p].get("lag"), p) for p in partitions]
    return [
        {"partition": p, "lag": lag, "lag_s": round(lag_s, 1)} for lag_s, lag, p in sorted(lags, reverse=True) if lag_s
    ]


def _process(slot: ChildSlot, board: Board) -> dict[str, Any]:
    words = slot.stats.as_dict()
    age_s = lag_s_of(words.pop("started_ns"), time.monotonic_ns())  # 0 until the child has set it
    silent_s = max(0.0, (time.monotonic_ns() - words.pop("beat_ns")) / 1e9)
    cpu_s, memory_bytes = process_use(words["pid"])
    oldest_s = lag_s_of(words.pop("oldest_ns", 0), time.monotonic_ns())
    oldest_due_s = lag_s_of(words.pop("oldest_due_ns", 0), time.monotonic_ns())
    return {
        "role": slot.role,
        "number": slot.number,
        "partitions": len(slot.partitions),
        "restarts": slot.restarts,
        "age_s": round(age_s, 1),
        "silent_s": round(silent_s, 1),
        "oldest_s": round(oldest_s, 1),
        "cpu_s": round(cpu_s, 2),
        "memory_bytes": memory_bytes,
        **words,
        **({"hottest": _hottest(board, slot.number)} if slot.role == BATCH_WRITER else {}),
        **({"oldest_due_s": round(oldest_due_s, 1)} if slot.role == COMPACTOR else {}),
    }


def _hottest(board: Board, writer: int) -> list[dict[str, Any]]:
    return [hot._asdict() for hot in board.hot_channels[writer].read()]


def encode(status: dict[str, Any]) -> str:
    """Encode *status* as it is published."""
    return msgspec.json.encode(status).decode()


def status_line(status: dict[str, Any]) -> str:
    """Say *status* in one line."""
    line = (
        f"{status['state']}: {len(status['partitions'])} partitions, "
        f"lag {status['lag']} ({status['lag_s']:.1f} s), {status['rate']}/s"
    )
    return f"{line}; {status['trouble']}" if status["trouble"] else line
