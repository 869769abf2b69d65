"""`channelindex drain`: has nodes give up their partitions and get no others, while they keep running."""

import argparse

from channelindex import exits
from coordinator.cluster_state import ClusterState
from workers.cli import node_orders, options, output

_EPILOG = """\
example:
  channelindex drain n3
  channelindex drain n3 n4 --no-wait

A drained node stays drained, also after a restart, until channelindex undrain.
If no other node can take a partition, it has no owner and is not indexed.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("node", nargs="+", metavar="NODE", help="a node's name")
    node_orders.add_waiting(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Drain the nodes, and wait until they own no partition."""
    with node_orders.open_coordination(args) as coordination:
        before = [coordination.member(node) for node in args.node]
        coordination.order("drain", args.node, args.node)

        def describe_pending(state: ClusterState) -> str:
            left = {m.node: m.n_partitions for m in state.members if m.node in args.node and m.n_partitions}
            return ", ".join(f"{node} has {n} partitions to give up" for node, n in left.items())

        outcome = node_orders.wait(args, coordination, describe_pending)
        n_unowned = len(coordination.state().missing)
    if args.json:
        nodes = [{"node": member.node, "had": member.n_partitions} for member in before]
        output.json_line({**outcome.as_json(), "nodes": nodes, "unowned": n_unowned})
    else:
        for member in before:
            output.line(f"{member.node}: {outcome.describe('drained')}; it had {member.n_partitions} partitions")
        if n_unowned and not args.no_wait:
            output.line(f"{n_unowned} partitions have no owner now")
    return exits.OK if outcome.done else exits.DIFFERENCES
