"""`channelindex nodes`: lists the live nodes and their shares."""

import argparse
from typing import Any

import msgspec

from channelindex import exits
from coordinator.cluster_state import MemberState
from workers.cli import options, output
from workers.cli.node_orders import open_coordination

_EPILOG = """\
example:
  channelindex nodes
  channelindex nodes --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Print every node that is alive, or died within the last hour."""
    with open_coordination(args) as coordination:
        members = coordination.state().members
    if args.json:
        output.json_line([_as_json(member) for member in members])
    else:
        header = ("node", "state", "zone", "weight", "partitions", "here since", "last seen")
        output.table(header, [_row(member) for member in members])
    return exits.OK


def _as_json(member: MemberState) -> dict[str, Any]:
    return {**member._asdict(), "status": msgspec.json.decode(member.status) if member.status else {}}


def _row(member: MemberState) -> tuple[object, ...]:
    ages = f"{member.joined_s:.0f} s", f"{member.silent_s:.1f} s ago"
    return member.node, state_of(member), member.zone or "-", member.weight, member.n_partitions, *ages


def state_of(member: MemberState) -> str:
    """State of a node in one word."""
    if not member.alive:
        return "dead"
    if member.drained:
        return "drained" if not member.n_partitions else "draining"
    return "leaving" if member.draining else "sharing"
