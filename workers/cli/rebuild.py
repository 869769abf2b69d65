"""`channelindex rebuild`: has the nodes index the whole bucket again."""

import argparse
from collections.abc import Collection, Mapping
from contextlib import closing, suppress

from channelindex import exits
from channelindex.config import REQUIRED_TO_READ, REQUIRED_TO_RUN, Config
from channelindex.errors import AuthenticationFailed, ProtocolError, SourceUnavailable
from channelindex.model import IndexMeta
from channelindex.stores import open_reader
from workers.cli import options, repair, rewind
from workers.node.start import configured_meta
from workers.pipeline.source import check_source

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
        restored = repair.restore(config, configured_meta(config), (), "rebuild", from_nothing=True)
        if not args.json:
            repair.print_restored(restored)
    _check_bucket(config)
    rewind.rewind_and_wait(config, args, "rebuild", _everything, restores=True)
    return exits.OK


def _check_bucket(config: Config) -> None:
    """Refuse to order what no node can do, where the bucket can be asked: it may be down, or closed to operators.

    Raises:
        IndexMismatch: the index is of another bucket.
    """
    if not config.source.url:
        return
    with closing(open_reader(config.index, config.node.run_dir)) as store:
        source_uuid = store.meta().source_uuid
    with suppress(SourceUnavailable, ProtocolError, AuthenticationFailed):
        check_source(config.source, source_uuid)


def _everything(meta: IndexMeta) -> tuple[Collection[int], Mapping[int, int]]:
    return range(meta.n_partitions), dict.fromkeys(range(meta.n_vbuckets), 0)
