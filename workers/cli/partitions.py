"""`channelindex partitions`: lists the owner of each partition, since when, and why it changed."""

import argparse
from typing import Any

from channelindex import exits
from coordinator.cluster_state import PartitionState
from workers.cli import options, output
from workers.cli.node_orders import open_coordination

_EPILOG = """\
example:
  channelindex partitions
  channelindex partitions --unowned

With --unowned the exit code is 1 if any partition has no owner.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--unowned", action="store_true", help="only those without an owner, for monitoring")
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Print the partitions."""
    with open_coordination(args) as coordination:
        partitions = list(enumerate(coordination.state().partitions))
    if args.unowned:
        partitions = [(number, state) for number, state in partitions if not state.owner]
    if args.json:
        output.json_line([{"partition": number, **_as_json(state)} for number, state in partitions])
    elif partitions:
        header = ("partition", "owner", "since", "before", "because")
        output.table(header, [(number, *_row(state)) for number, state in partitions])
    else:
        output.line("every partition has an owner")
    return exits.DIFFERENCES if args.unowned and partitions else exits.OK


def _as_json(state: PartitionState) -> dict[str, Any]:
    return {**state._asdict(), "owner": state.owner or None}


def _row(state: PartitionState) -> tuple[object, ...]:
    since = "?" if state.since_s is None else f"{state.since_s:.1f} s"
    return state.owner or "NOBODY", since, state.last or "-", state.reason or "-"
