"""`channelindex undrain`: gives drained nodes their share again."""

import argparse

from channelindex import exits
from workers.cli import node_orders, options, output

_EPILOG = """\
example:
  channelindex undrain n3
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("node", nargs="+", metavar="NODE", help="a node's name")
    node_orders.add_waiting(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Undrain the nodes, and wait until every node has its share."""
    with node_orders.open_coordination(args) as coordination:
        for node in args.node:
            coordination.member(node)
        live = {member.node for member in coordination.state().members if member.alive}
        n_changed = coordination.order("undrain", args.node, live)
        outcome = node_orders.wait(args, coordination, node_orders.describe_moves)
        members = coordination.state().members
    n_by_node = {member.node: member.n_partitions for member in members if member.node in args.node}
    if args.json:
        output.json_line({**outcome.as_json(), "changed": n_changed, "partitions": n_by_node})
    else:
        for node, n_partitions in n_by_node.items():
            output.line(f"{node}: has {n_partitions} partitions")
        output.line(outcome.describe())
    return exits.OK if outcome.done else exits.DIFFERENCES
