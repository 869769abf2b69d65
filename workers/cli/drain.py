"""`channelindex drain`: a node gives up all that it has and gets nothing more, but goes on running."""

import argparse

from channelindex import exits
from coordinator.cluster import ClusterState
from workers.cli import cluster, options, output

_EPILOG = """\
example:
  channelindex drain n3
  channelindex drain n3 n4 --no-wait

It lasts, also over a restart of the node, until channelindex undrain. The last
node that is not drained has nobody to give its partitions to: what it gives up
then stands still.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("node", nargs="+", metavar="NODE", help="a node's name")
    cluster.add_waiting(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Order it, and wait until the nodes own nothing."""
    with cluster.coordination_of(args) as there:
        before = [there.member(node) for node in args.node]
        there.order("drain", args.node, args.node)

        def missing(state: ClusterState) -> str:
            left = {m.node: m.n_partitions for m in state.members if m.node in args.node and m.n_partitions}
            return ", ".join(f"{node} has {n} partitions to give up" for node, n in left.items())

        done, seconds = (True, 0.0) if args.no_wait else cluster.wait(args, there, missing)
        n_unowned = len(there.look().missing)
    if args.json:
        nodes = [{"node": member.node, "had": member.n_partitions} for member in before]
        output.json_line({"done": done, "seconds": round(seconds, 3), "nodes": nodes, "unowned": n_unowned})
    else:
        state = "ordered" if args.no_wait else f"{'drained' if done else 'NOT DRAINED'} after {seconds:.1f} s"
        for member in before:
            output.line(f"{member.node}: {state}; it had {member.n_partitions} partitions")
        if n_unowned and not args.no_wait:
            output.line(f"{n_unowned} partitions have no owner now")
    return exits.OK if done else exits.DIFFERENCES
