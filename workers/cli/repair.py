"""`channelindex repair`: writes anew what the store has lost of the records of an index, and verifies the index."""

import argparse
from collections.abc import Collection
from contextlib import closing
from dataclasses import asdict

from channelindex import exits
from channelindex.config import REQUIRED_TO_RUN, Config
from channelindex.errors import InputInvalid
from channelindex.stores import open_owner
from channelindex.stores.base import Restored
from coordinator.lock import job_lock
from workers.cli import options, output, verify
from workers.cli.rewind import confirm, number
from workers.node.start import wanted_meta

_EPILOG = """\
example:
  channelindex repair
  channelindex repair --partition 12

For an index whose meta record or partition records are missing or damaged:
`status` and the log of the nodes name them. A partition whose record is written
anew is indexed again by the running nodes, from its beginning; the others are
left as they are. Given by --partition, it is written anew even if it is whole.

Then waits until the index has caught up with the bucket, and verifies all of it;
the exit code is that of verify. A reader with an older token gets every document
of these partitions once more. If nothing of the index can be read, no token of it
is accepted any more.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--partition", type=number, action="append", metavar="P", help="a partition; may be repeated")
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.add_argument("--no-wait", action="store_true", help="do not wait for the nodes, and do not verify")
    verify.add_timeout(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Restore, and verify."""
    config = options.config_of(args, REQUIRED_TO_RUN)
    if not args.yes:
        confirm(f"repair index {config.index.name!r}?")
    restored = restore(config, args.partition or (), "repair")
    if not args.json:
        print_restored(restored)
    report = None if args.no_wait else verify.verify_index(config, None, args.timeout)
    if args.json:
        verified = {"ok": report.ok, **asdict(report)} if report else None
        written = {"meta": restored.wrote_meta, "partitions": restored.partitions}
        output.json_line({"index": config.index.name, "written": written, "verified": verified})
    elif report:
        verify.print_report(report)
    return exits.OK if report is None or report.ok else exits.DIFFERENCES


def restore(config: Config, partitions: Collection[int], job: str) -> Restored:
    """Write anew what the configured index lacks of its own records, and *partitions*.

    Raises:
        InputInvalid: there is no such partition.
        IndexMismatch: the index is of another shape or bucket than the configuration.
        CoordinationUnavailable: another such command is running.
    """
    wanted = wanted_meta(config)
    unknown = [partition for partition in partitions if partition >= wanted.n_partitions]
    if unknown:
        raise InputInvalid(f"there is no partition {unknown[0]}: the index has 0 to {wanted.n_partitions - 1}")
    with closing(open_owner(config.index)) as owner, job_lock(config.coordination.redis, config.index.name, job):
        return owner.restore(wanted, partitions)


def print_restored(restored: Restored) -> None:
    """Print what was written anew."""
    if restored.wrote_meta:
        output.line(f"meta record written anew: index {restored.meta.index_uuid}")
    if restored.partitions:
        numbers = ", ".join(map(str, restored.partitions))
        output.line(f"records written anew, to be indexed again by the nodes: partitions {numbers}")
    if not restored.wrote_meta and not restored.partitions:
        output.line("the meta record and all partition records are whole")
