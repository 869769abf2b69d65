"""`channelindex nodes`: lists the live nodes and their shares."""

import argparse

from channelindex import exits
from workers.cli import options, output
from workers.cli.node_orders import open_coordination
from workers.cli.node_state import Node, describe_node, tinted

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
        nodes = [describe_node(member, coordination.ttl_s) for member in coordination.state().members]
    if args.json:
        output.json_line(nodes)
    elif nodes:
        output.table(("node", "state", "zone", "weight", "partitions", "here since", "last seen"), map(_row, nodes))
    else:
        output.line("no node is alive, and none died within the last hour")
    return exits.OK


def _row(node: Node) -> tuple[object, ...]:
    ages = f"{node['joined_s']:.0f} s", f"{node['silent_s']:.1f} s ago"
    return node["node"], tinted(node["state"]), node["zone"] or "-", node["weight"], node["n_partitions"], *ages
