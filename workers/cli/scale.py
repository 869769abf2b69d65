"""`channelindex scale`: changes the numbers of workers of running nodes."""

import argparse
from typing import Any

import msgspec

from channelindex import exits
from channelindex.errors import InputInvalid
from channelindex.settings import SETTINGS
from coordinator.cluster_state import ClusterState, MemberState
from workers.cli import node_orders, options, output
from workers.telemetry.board import BATCH_WRITER, FEED_WORKER

_EPILOG = """\
example:
  channelindex scale --feed-workers 4 --batch-writers 2
  channelindex scale --node n3 --feed-workers 4

The node drains its workers and starts the new number; its partitions pause for a
moment and stay with it. A number that is not given is unchanged. The order holds
until the node restarts: put the numbers in its configuration to keep them.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--node", metavar="NODE", action="append", help="which node; may be repeated (default: all)")
    parser.add_argument("--feed-workers", type=options.positive, metavar="N", help="processes that stream and decode")
    parser.add_argument("--batch-writers", type=options.positive, metavar="M", help="processes that write")
    node_orders.add_waiting(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Order the numbers, and wait until the nodes report them."""
    _check(args)
    with node_orders.open_coordination(args) as coordination:
        if args.node:
            members = [coordination.member(node) for node in args.node]
        else:
            members = [member for member in coordination.state_of_nodes().members if member.alive]
        ordered = {member.node: _ordered(args, member) for member in members}
        for member in members:
            coordination.order("scale", (member.node, member.incarnation, *ordered[member.node]), [member.node])

        def describe_pending(state: ClusterState) -> str:
            late = [m.node for m in state.members if m.node in ordered and counts(m) != ordered[m.node]]
            return f"{len(late)} of {len(ordered)} nodes to go: {', '.join(late)}" if late else ""

        outcome = node_orders.wait(args, coordination, describe_pending)
    if args.json:
        nodes = [{"node": node, "feed_workers": n, "batch_writers": m} for node, (n, m) in ordered.items()]
        output.json_line({**outcome.as_json(), "nodes": nodes})
    else:
        for node, (feeds, writers) in ordered.items():
            output.line(f"{node}: {feeds} feed workers, {writers} batch writers")
        output.line(outcome.describe())
    return exits.OK if outcome.done else exits.DIFFERENCES


def _check(args: argparse.Namespace) -> None:
    given = {"workers.feed_workers": args.feed_workers, "workers.batch_writers": args.batch_writers}
    if not any(given.values()):
        raise InputInvalid("nothing to do: give --feed-workers, --batch-writers or both")
    for key, value in given.items():
        wrong = SETTINGS[key].wrong(value) if value else None
        if wrong:
            raise InputInvalid(f"{key.partition('.')[2]} = {value}: {wrong}")


def _ordered(args: argparse.Namespace, member: MemberState) -> tuple[int, int]:
    feeds, writers = counts(member)
    ordered = args.feed_workers or feeds, args.batch_writers or writers
    if not all(ordered):
        raise InputInvalid(f"{member.node} has not reported its numbers of workers yet: give both")
    return ordered


def counts(member: MemberState) -> tuple[int, int]:
    """Feed workers and batch writers that the node reports; 0, 0 before its first report."""
    status: dict[str, Any] = msgspec.json.decode(member.status) if member.status else {}
    workers = status.get("workers", {})
    return workers.get(FEED_WORKER, 0), workers.get(BATCH_WRITER, 0)
