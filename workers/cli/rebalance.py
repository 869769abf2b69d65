"""`channelindex rebalance`: prints the moves that are due, and waits for them."""

import argparse

from channelindex import exits
from workers.cli import node_orders, options, output

_EPILOG = """\
example:
  channelindex rebalance
  channelindex rebalance --dry-run

Nodes share out the partitions by themselves, all the time. This wakes those that
have to act and waits until every node has its share.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--dry-run", action="store_true", help="only print what has to move")
    node_orders.add_waiting(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Print the moves that are due, wake the nodes in question, and wait."""
    with node_orders.open_coordination(args) as coordination:
        state = coordination.state_of_nodes()
        target = state.target()
        moves = [
            {"partition": partition, "from": state.partitions[partition].owner or None, "to": node}
            for node, partitions in sorted(target.taken_by.items())
            for partition in partitions
        ]
        outcome = node_orders.Outcome(done=True, seconds=0.0, waited=False)
        if moves and not args.dry_run:
            coordination.order("wake", (), target.taken_by.keys() | target.released_by.keys())
            outcome = node_orders.wait(args, coordination, node_orders.describe_moves)
    if args.json:
        output.json_line({**outcome.as_json(), "moves": moves})
    elif moves:
        output.table(("partition", "from", "to"), [(m["partition"], m["from"] or "nobody", m["to"]) for m in moves])
        output.line(_describe(outcome, len(moves)))
    else:
        output.line("nothing has to move")
    return exits.OK if outcome.done else exits.DIFFERENCES


def _describe(outcome: node_orders.Outcome, n_moves: int) -> str:
    if not outcome.waited:
        return f"{n_moves} partitions have to move"
    return f"{n_moves} partitions: {'moved' if outcome.done else 'NOT ALL MOVED'} after {outcome.seconds:.1f} s"
