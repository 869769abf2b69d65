"""`channelindex events`: lists the nodes that came and went, the partitions that moved, and why."""

import argparse
from datetime import UTC, datetime
from typing import Any

import msgspec

from channelindex import exits
from coordinator.cluster_state import MAX_EVENTS, Event, Moved
from workers.cli import options, output
from workers.cli.node_orders import open_coordination
from workers.cli.status import ranges

_EPILOG = """\
example:
  channelindex events
  channelindex events --limit 200 --json

The coordination keeps the newest 500. Times are those of its Redis.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--limit", type=options.positive, default=50, metavar="N", help="the newest N (default: %(default)s)"
    )
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Print the events, the newest last."""
    with open_coordination(args) as coordination:
        events = coordination.state(n_events=min(args.limit, MAX_EVENTS)).events[::-1]
    if args.json:
        for event in events:
            output.json_line(_as_json(event))
    else:
        output.table(("time", "event", "node", "what"), [_row(event) for event in events])
    return exits.OK


def _time(event: Event) -> str:
    return datetime.fromtimestamp(event.at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _as_json(event: Event) -> dict[str, Any]:
    return {
        "at": _time(event),
        "event": event.kind,
        "node": event.node,
        "reason": event.reason,
        "partitions": [msgspec.structs.asdict(moved) for moved in event.partitions],
    }


def _row(event: Event) -> tuple[str, str, str, str]:
    if not event.partitions:
        return _time(event), event.kind, event.node, event.reason
    return _time(event), event.kind, event.node, "; ".join(_groups(event.partitions))


def _groups(partitions: tuple[Moved, ...]) -> list[str]:
    """The partitions in short form, grouped by their previous owner and the reason of the move."""
    by_origin: dict[tuple[str, str], list[int]] = {}
    for moved in partitions:
        by_origin.setdefault((moved.before, moved.reason), []).append(moved.partition)
    return [
        f"{ranges(sorted(numbers))} of {before} ({reason})" if before else f"{ranges(sorted(numbers))}, new"
        for (before, reason), numbers in sorted(by_origin.items())
    ]
