"""`channelindex rebalance`: what has to move, and waiting until it has."""

import argparse

from channelindex import exits
from coordinator.cluster import ClusterState
from workers.cli import cluster, options, output

_EPILOG = """\
example:
  channelindex rebalance
  channelindex rebalance --dry-run

Nodes share out the partitions by themselves, all the time. This wakes those that
have something to do and waits until all shares are as they are to be.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--dry-run", action="store_true", help="only print what has to move")
    cluster.add_waiting(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Print what has to move, wake those who are to do it, and wait for it."""
    with cluster.coordination_of(args) as there:
        state = there.look()
        target = state.target()
        moves = [
            {"partition": partition, "from": state.partitions[partition].owner or None, "to": node}
            for node, partitions in sorted(target.taken_by.items())
            for partition in partitions
        ]
        done, seconds = True, 0.0
        if moves and not args.dry_run:
            there.order("wake", (), target.taken_by.keys() | target.released_by.keys())
            if not args.no_wait:
                done, seconds = cluster.wait(args, there, missing_moves)
    if args.json:
        output.json_line({"done": done, "seconds": round(seconds, 3), "moves": moves})
    elif moves:
        output.table(("partition", "from", "to"), [(m["partition"], m["from"] or "nobody", m["to"]) for m in moves])
        output.line(_outcome(args, done, seconds, len(moves)))
    else:
        output.line("nothing has to move")
    return exits.OK if done else exits.DIFFERENCES


def _outcome(args: argparse.Namespace, done: bool, seconds: float, n_moves: int) -> str:
    if args.dry_run or args.no_wait:
        return f"{n_moves} partitions have to move"
    return f"{n_moves} partitions: {'moved' if done else 'NOT ALL MOVED'} after {seconds:.1f} s"


def missing_moves(state: ClusterState) -> str:
    """What has still to move; empty when nothing has."""
    n_moves = state.target().n_moves()
    return f"{n_moves} partitions have to move" if n_moves else ""
