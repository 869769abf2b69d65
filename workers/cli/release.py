"""`channelindex release`: has the owners of partitions drain and release them."""

import argparse

from channelindex import exits
from channelindex.errors import InputInvalid
from coordinator.cluster_state import ClusterState
from workers.cli import node_orders, options, output

_EPILOG = """\
example:
  channelindex release 3 17
  channelindex release 3 --no-wait

Each owner writes what it has read of the partition, advances the stable clock
and releases the lease. The node that is due for it takes it in a new epoch; with
even shares that is the same node again. To move partitions off a node, use drain,
or node.weight.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("partition", type=options.whole, nargs="+", metavar="P", help="a partition's number")
    node_orders.add_waiting(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Release the partitions, and wait until they have an owner again."""
    numbers = sorted(set(args.partition))
    with node_orders.open_coordination(args) as coordination:
        last = coordination.n_partitions - 1
        if numbers[-1] > last:
            raise InputInvalid(f"there is no partition {numbers[-1]}: the index has 0 to {last}")
        before = coordination.state_of_nodes()
        coordination.order("release", numbers, {owner for p in numbers if (owner := before.partitions[p].owner)})

        def describe_pending(state: ClusterState) -> str:
            waiting = [p for p in numbers if state.partitions[p].asked or not state.partitions[p].owner]
            return f"{len(waiting)} of {len(numbers)} partitions to go" if waiting else ""

        outcome = node_orders.wait(args, coordination, describe_pending)
        after = coordination.state()
    moved = [
        {"partition": p, "before": before.partitions[p].owner or None, "owner": after.partitions[p].owner or None}
        for p in numbers
    ]
    if args.json:
        output.json_line({**outcome.as_json(), "partitions": moved})
    else:
        output.table(("partition", "before", "now"), [tuple(map(_name, row.values())) for row in moved])
        output.line(outcome.describe())
    return exits.OK if outcome.done else exits.DIFFERENCES


def _name(value: object) -> object:
    return "nobody" if value is None else value
