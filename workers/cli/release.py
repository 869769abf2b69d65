"""`channelindex release`: have the owners drain and give up partitions."""

import argparse

from channelindex import exits
from channelindex.errors import InputInvalid
from coordinator.cluster import ClusterState
from workers.cli import cluster, options, output

_EPILOG = """\
example:
  channelindex release 3 17
  channelindex release 3 --no-wait

Each owner writes what it has read of the partition, moves the stable clock over
it and gives it up. Whoever is to have it by the shares takes it, in a new epoch:
where the shares are even, that is the same node again. To move partitions off a
node, use drain, or node.weight.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("partition", type=int, nargs="+", metavar="P", help="a partition's number")
    cluster.add_waiting(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Ask for the partitions, and wait until they were given up and have an owner again."""
    wanted = sorted(set(args.partition))
    with cluster.coordination_of(args) as there:
        if not 0 <= wanted[0] <= wanted[-1] < there.n_partitions:
            raise InputInvalid(f"partitions have the numbers 0 to {there.n_partitions - 1}")
        before = there.look()
        there.order("release", wanted, {owner for p in wanted if (owner := before.partitions[p].owner)})

        def missing(state: ClusterState) -> str:
            waiting = [p for p in wanted if state.partitions[p].asked or not state.partitions[p].owner]
            return f"{len(waiting)} of {len(wanted)} partitions to go" if waiting else ""

        done, seconds = (True, 0.0) if args.no_wait else cluster.wait(args, there, missing)
        after = there.look()
    moved = [
        {"partition": p, "before": before.partitions[p].owner or None, "owner": after.partitions[p].owner or None}
        for p in wanted
    ]
    if args.json:
        output.json_line({"done": done, "seconds": round(seconds, 3), "partitions": moved})
    else:
        output.table(("partition", "before", "now"), [tuple(map(_name, row.values())) for row in moved])
        output.line("asked for" if args.no_wait else f"{'done' if done else 'NOT DONE'} after {seconds:.1f} s")
    return exits.OK if done else exits.DIFFERENCES


def _name(value: object) -> object:
    return "nobody" if value is None else value
