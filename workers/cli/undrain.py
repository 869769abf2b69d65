"""`channelindex undrain`: a drained node gets its share again."""

import argparse

from channelindex import exits
from workers.cli import cluster, options, output
from workers.cli.rebalance import missing_moves

_EPILOG = """\
example:
  channelindex undrain n3
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("node", nargs="+", metavar="NODE", help="a node's name")
    cluster.add_waiting(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Order it, and wait until all shares are as they are to be."""
    with cluster.coordination_of(args) as there:
        for node in args.node:
            there.member(node)
        live = {member.node for member in there.look().members if member.alive}
        n_changed = there.order("undrain", args.node, live)
        done, seconds = (True, 0.0) if args.no_wait else cluster.wait(args, there, missing_moves)
        held = {member.node: member.n_partitions for member in there.look().members if member.node in args.node}
    if args.json:
        output.json_line({"done": done, "seconds": round(seconds, 3), "changed": n_changed, "partitions": held})
    else:
        for node, n_partitions in held.items():
            output.line(f"{node}: has {n_partitions} partitions")
        output.line("ordered" if args.no_wait else f"{'done' if done else 'NOT DONE'} after {seconds:.1f} s")
    return exits.OK if done else exits.DIFFERENCES
