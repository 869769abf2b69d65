"""`channelindex partitions`: lists the owner of each partition, since when, and why it changed."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from channelindex import exits
from coordinator.cluster_state import PartitionState
from workers.cli import options, output
from workers.cli.node_orders import open_coordination
from workers.cli.node_state import NOBODY
from workers.cli.status import ranges

_EPILOG = """\
example:
  channelindex partitions
  channelindex partitions --unowned

With --unowned the exit code is 1 if any partition has no owner.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--unowned", action="store_true", help="only those without an owner, for monitoring")
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Print the partitions."""
    with open_coordination(args) as coordination:
        partitions = list(enumerate(coordination.state().partitions))
    if args.unowned:
        partitions = [(number, state) for number, state in partitions if not state.owner]
    if args.json:
        output.json_line([{"partition": number, **_as_json(state)} for number, state in partitions])
    elif partitions:
        header = ("partitions", "number", "owner", "since", "before", "because")
        output.table(header, [_row(numbers, states) for numbers, states in _alike(partitions)])
    else:
        output.line("every partition has an owner")
    return exits.DIFFERENCES if args.unowned and partitions else exits.OK


def _as_json(state: PartitionState) -> dict[str, Any]:
    return {**state._asdict(), "owner": state.owner or None}


def _alike(partitions: Sequence[tuple[int, PartitionState]]) -> Iterator[tuple[list[int], list[PartitionState]]]:
    """Group those that have the same owner, and had the same one before for the same reason."""
    groups: dict[tuple[str, ...], list[tuple[int, PartitionState]]] = {}
    for number, state in partitions:
        groups.setdefault((state.owner, state.last, state.reason), []).append((number, state))
    for group in groups.values():
        yield [number for number, _ in group], [state for _, state in group]


def _row(numbers: Sequence[int], states: Sequence[PartitionState]) -> tuple[object, ...]:
    state = states[0]
    owner = state.owner or output.Tinted(NOBODY, output.RED)
    return ranges(numbers), len(numbers), owner, _since(states), state.last or "-", state.reason or "-"


def _since(states: Sequence[PartitionState]) -> str:
    known = [state.since_s for state in states if state.since_s is not None]
    if not known:
        return "?"
    shortest, longest = f"{min(known):.0f}", f"{max(known):.0f}"
    return f"{shortest} s" if shortest == longest else f"{shortest} to {longest} s"
