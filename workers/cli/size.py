"""`channelindex size`: calculates workers, rings and Redis memory."""

import argparse
import dataclasses

from channelindex import exits
from workers.cli import options, output
from workers.cli.sizing import Load, size_of

_EPILOG = """\
examples:
  channelindex size --changes 10000000 --rate 5000 --channels 20000
  channelindex size --changes 200000000 --rate 60000 --channels 1000 \\
      --entries-per-append 20 --nodes 4 --json

Calculates only; connects to nothing. docs/operations.md explains the numbers.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    number = options.positive
    parser.add_argument("--changes", type=number, required=True, metavar="N", help="changes that the index will hold")
    parser.add_argument("--rate", type=number, required=True, metavar="N", help="changes per second at the peak")
    parser.add_argument("--channels", type=number, required=True, metavar="N", help="channels there are")
    parser.add_argument(
        "--channels-per-change",
        type=options.seconds,
        default=Load.channels_per_change,
        metavar="X",
        help="channels of a document, the channel * among them (default: %(default)s)",
    )
    parser.add_argument(
        "--key-bytes", type=number, default=Load.key_bytes, metavar="N", help="length of a key (default: %(default)s)"
    )
    parser.add_argument(
        "--entries-per-append",
        type=options.seconds,
        default=Load.entries_per_append,
        metavar="X",
        help="entries of a channel in one batch: 1 for quiet channels, 20 for busy ones (default: %(default)s)",
    )
    parser.add_argument("--nodes", type=number, default=Load.nodes, metavar="N", help="nodes (default: %(default)s)")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the sizes."""
    load = Load(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Load)})
    size = size_of(load)
    if args.json:
        output.json_line(dataclasses.asdict(size))
        return exits.OK
    output.line(f"Redis: {_mb(size.redis_bytes)} for {size.entries:,} entries of {size.entry_bytes} bytes")
    output.line(f"       {_mb(size.redis_bytes_per_million)} per million entries, {size.store_cores} cores at the peak")
    output.line(f"each of {load.nodes} nodes:")
    output.line(f"  workers.feed_workers = {size.feed_workers}")
    output.line(f"  workers.batch_writers = {size.batch_writers}")
    output.line(f"  workers.ring_bytes = {size.ring_bytes}    # all its rings: {_mb(size.ring_memory_bytes)}")
    return exits.OK


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB"
