"""What a node says of itself: the JSON that `channelindex status` shows, and the one line for systemd."""

import os
import time
from collections.abc import Sequence
from typing import Any

import orjson

from coordinator.link import Held
from workers.board import FEED_WORKER
from workers.place import Place


def node_status(state: str, places: Sequence[Place], held: Held | None) -> dict[str, Any]:
    """The node now: its state, its processes with their counters, its partitions and its trouble."""
    processes = [_process(place) for place in places if place.child]
    feeds = [process for process in processes if process["role"] == FEED_WORKER]
    return {
        "pid": os.getpid(),
        "state": state,
        "at": time.time(),
        "partitions": sorted(held.leases) if held else [],
        "trouble": held.trouble.message if held and held.trouble else None,
        "events": sum(feed["events"] for feed in feeds),
        "in_flight": sum(feed["in_flight"] for feed in feeds),
        "lag": sum(feed["lag"] for feed in feeds),
        "restarts": sum(place.restarts for place in places),
        "processes": processes,
    }


def _process(place: Place) -> dict[str, Any]:
    words = place.slot.as_dict()
    age_s = max(0.0, (time.monotonic_ns() - words.pop("started_ns")) / 1e9)
    silent_s = max(0.0, (time.monotonic_ns() - words.pop("beat_ns")) / 1e9)
    return {
        "role": place.role,
        "number": place.number,
        "partitions": len(place.partitions),
        "restarts": place.restarts,
        "age_s": round(age_s, 1),
        "silent_s": round(silent_s, 1),
        **words,
    }


def encode(status: dict[str, Any]) -> str:
    """*status* as it is published."""
    return orjson.dumps(status).decode()


def status_line(status: dict[str, Any]) -> str:
    """*status* in one line."""
    line = f"{status['state']}: {len(status['partitions'])} partitions, lag {status['lag']}, {status['events']} events"
    return f"{line}; {status['trouble']}" if status["trouble"] else line
