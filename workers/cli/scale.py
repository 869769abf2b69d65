"""`channelindex scale`: other numbers of workers in a node, while it runs."""

import argparse
from typing import Any

import orjson

from channelindex import exits
from channelindex.errors import InputInvalid
from channelindex.settings import SETTINGS
from coordinator.cluster import ClusterState, MemberState
from workers.cli import cluster, options, output
from workers.telemetry.board import BATCH_WRITER, FEED_WORKER

_EPILOG = """\
example:
  channelindex scale --feed-workers 4 --batch-writers 2
  channelindex scale --node n3 --feed-workers 4

The node drains its workers and forks as many as ordered; its partitions stand
still for a moment and stay its own. What is not given stays as it is. The order
holds until the node starts anew: put the numbers in its configuration to keep
them.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--node", metavar="NODE", action="append", help="which node; may be repeated (default: all)")
    parser.add_argument("--feed-workers", type=options.positive, metavar="N", help="processes that stream and decode")
    parser.add_argument("--batch-writers", type=options.positive, metavar="M", help="processes that write")
    cluster.add_waiting(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Order it, and wait until the nodes tell that they have so many."""
    _check(args)
    with cluster.coordination_of(args) as there:
        if args.node:
            members = [there.member(node) for node in args.node]
        else:
            members = [member for member in there.look().members if member.alive]
        wanted = {member.node: _wanted(args, member) for member in members}
        for member in members:
            there.order("scale", (member.node, member.incarnation, *wanted[member.node]), [member.node])

        def missing(state: ClusterState) -> str:
            late = [m.node for m in state.members if m.node in wanted and counts(m) != wanted[m.node]]
            return f"{len(late)} of {len(wanted)} nodes to go: {', '.join(late)}" if late else ""

        done, seconds = (True, 0.0) if args.no_wait else cluster.wait(args, there, missing)
    if args.json:
        nodes = [{"node": node, "feed_workers": n, "batch_writers": m} for node, (n, m) in wanted.items()]
        output.json_line({"done": done, "seconds": round(seconds, 3), "nodes": nodes})
    else:
        for node, (feeds, writers) in wanted.items():
            output.line(f"{node}: {feeds} feed workers, {writers} batch writers")
        output.line("ordered" if args.no_wait else f"{'done' if done else 'NOT DONE'} after {seconds:.1f} s")
    return exits.OK if done else exits.DIFFERENCES


def _check(args: argparse.Namespace) -> None:
    given = {"workers.feed_workers": args.feed_workers, "workers.batch_writers": args.batch_writers}
    if not any(given.values()):
        raise InputInvalid("nothing to do: give --feed-workers, --batch-writers or both")
    for key, value in given.items():
        wrong = SETTINGS[key].wrong(value) if value else None
        if wrong:
            raise InputInvalid(f"{key.partition('.')[2]} = {value}: {wrong}")


def _wanted(args: argparse.Namespace, member: MemberState) -> tuple[int, int]:
    feeds, writers = counts(member)
    wanted = args.feed_workers or feeds, args.batch_writers or writers
    if not all(wanted):
        raise InputInvalid(f"{member.node} has not told yet how many workers it has: give both numbers")
    return wanted


def counts(member: MemberState) -> tuple[int, int]:
    """How many feed workers and batch writers the node told that it has places for; 0, 0 where it told nothing."""
    status: dict[str, Any] = orjson.loads(member.status) if member.status else {}
    workers = status.get("workers", {})
    return workers.get(FEED_WORKER, 0), workers.get(BATCH_WRITER, 0)
