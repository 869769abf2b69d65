"""`channelindex rebuild`: has the nodes index the whole bucket again."""

import argparse

from channelindex import exits
from channelindex.config import REQUIRED_TO_READ
from workers.cli import options, rewind

_EPILOG = f"""\
example:
  channelindex rebuild
  channelindex rebuild --yes --no-wait

For an index whose decoder or star channel changed, or in which `verify` found
differences. The running nodes do the work; without one, it waits for a start.

{rewind.READERS_MEANWHILE}

Waits until the stable clock is back, and shows the progress; Ctrl-C then ends
only the waiting. For another bucket, or another number of partitions, give
index.name a new value instead.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    rewind.add_rewind_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Take all partitions back to the beginning."""
    config = options.config_of(args, REQUIRED_TO_READ)
    rewind.rewind_and_wait(
        config, args, "rebuild", lambda meta: (range(meta.n_partitions), dict.fromkeys(range(meta.n_vbuckets), 0))
    )
    return exits.OK
