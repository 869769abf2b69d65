"""`channelindex rebuild`: has the nodes index the whole bucket again."""

import argparse
from collections.abc import Collection, Mapping

from channelindex import exits
from channelindex.config import REQUIRED_TO_READ, REQUIRED_TO_RUN
from channelindex.model import IndexMeta
from workers.cli import options, repair, rewind

_EPILOG = f"""\
example:
  channelindex rebuild
  channelindex rebuild --yes --no-wait

For an index whose decoder or star channel changed, or in which `verify` found
differences. The running nodes do the work; without one, it waits for a start.

{rewind.READERS_MEANWHILE}

A partition record that is missing or damaged is written anew, and with --force
the meta record, too: there is no state of an index that it cannot start from.

Waits until the stable clock is back, and shows the progress; Ctrl-C then ends
only the waiting. For another bucket, or another number of partitions, give
index.name a new value instead.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--force", action="store_true", help="also if the meta record cannot be read: write it anew from the bucket"
    )
    rewind.add_rewind_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Take all partitions back to the beginning."""
    config = options.config_of(args, REQUIRED_TO_RUN if args.force else REQUIRED_TO_READ)
    if args.force:
        if not args.yes:
            rewind.confirm(f"write the records of index {config.index.name!r} anew, where they are damaged?")
        restored = repair.restore(config, (), "rebuild")
        if not args.json:
            repair.print_restored(restored)
    rewind.rewind_and_wait(config, args, "rebuild", _everything, restores=True)
    return exits.OK


def _everything(meta: IndexMeta) -> tuple[Collection[int], Mapping[int, int]]:
    return range(meta.n_partitions), dict.fromkeys(range(meta.n_vbuckets), 0)
