"""`channelindex repair`: writes anew what the store has lost of the records of an index, and verifies the index."""

import argparse
import time
from collections.abc import Collection
from contextlib import closing
from dataclasses import asdict

from channelindex import exits
from channelindex.blocks import pack_pairs
from channelindex.checking.refill import Lacking, write_lacking
from channelindex.checking.rewind import requester, rewind_partitions
from channelindex.checking.verify import VerifyReport
from channelindex.config import REQUIRED_TO_RUN, Config
from channelindex.model import IndexMeta
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.stores import open_owner, open_reader, open_writer
from channelindex.stores.base import OwnerStore, RepairedChannels, Restored
from coordinator.lock import job_lock
from workers.cli import options, output, verify
from workers.cli.rewind import checked_partitions, confirm, number
from workers.node.start import configured_meta

_EPILOG = """\
example:
  channelindex repair
  channelindex repair --partition 12
  channelindex repair --channel orders

For an index whose store has lost records: `status`, `verify`, readers and the log
of the nodes name them. Nodes may run meanwhile. It goes on in this order:

1. Partitions. A missing or damaged record is written anew, and the running nodes
   index that partition again from its beginning. The same is done for a partition
   of --partition, even if it is whole, and after servers of the store were
   replaced for one of which nobody knows when the store last had everything. If
   no record that is left names the index, its tokens are not accepted any more;
   if there is no record at all, start a node, or see `rebuild --force`.
2. Channels. A directory is made from its blocks (a bucket does not list these: a
   directory there begins without any). A missing or damaged block is replaced by
   what is left of it. If a directory was made, or with --channel, the nodes then
   begin new epochs.
3. Entries. Once the index has caught up with the bucket, all of it, or each
   --channel, is verified. What is missing is written from the bucket, and
   verified again; the exit code is that of verify.

Readers that were past such an entry do not get it: one that has read a repaired
channel in the meantime should read it from its beginning. Of a partition that is
indexed again, a reader with an older token gets every document once more.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--partition", type=number, action="append", metavar="P", help="a partition; may be repeated")
    parser.add_argument("--channel", action="append", metavar="C", help="look at this channel only; may be repeated")
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.add_argument(
        "--no-wait", action="store_true", help="put back what needs no bucket, and neither wait nor verify"
    )
    verify.add_timeout(parser)
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Restore, repair, verify, and write what is missing."""
    config = options.config_of(args, REQUIRED_TO_RUN)
    expected = configured_meta(config)
    chosen = checked_partitions(args.partition, expected)
    if not args.yes:
        confirm(f"repair index {config.index.name!r}?")
    restored = restore(config, expected, chosen, "repair")
    with closing(open_owner(config.index)) as owner:
        repaired = owner.repair_channels(args.channel, _removal_floor(config))
        if repaired.directories or args.channel:
            _end_epochs(config, owner, restored.meta)
    if not args.json:
        print_restored(restored)
        _print_repaired(repaired)
    report, n_written = (None, 0) if args.no_wait else _write_lacking(config, args)
    if args.json:
        verified = {"ok": report.ok, **asdict(report)} if report else None
        written = {"meta": restored.wrote_meta, "partitions": restored.partitions, "entries": n_written}
        line = {"index": config.index.name, "written": written, "repaired": repaired._asdict(), "verified": verified}
        output.json_line(line)
    elif report:
        output.line(f"{n_written} entries written from the bucket")
        verify.print_report(report)
    return exits.OK if report is None or report.ok else exits.DIFFERENCES


def _write_lacking(config: Config, args: argparse.Namespace) -> tuple[VerifyReport, int]:
    """Verify, and write what is missing; the report of the last verification, and how many entries were written."""
    assert not args.no_wait, "what is missing is known after a verification"
    lacking: list[Lacking] = []
    report = verify.verify_index(config, args.channel, args.timeout, lacking)
    if not lacking:
        return report, 0
    with closing(open_reader(config.index)) as reader, closing(open_writer(config.index)) as writer:
        n_written = write_lacking(writer, reader.partition_records(), lacking)
    return verify.verify_index(config, args.channel, args.timeout), n_written


def _removal_floor(config: Config) -> bytes:
    """The floor of channels whose own is lost: up to there removals may have been dropped for their age."""
    settings = config.compaction
    if not settings.removal_retention_s:
        return b""
    with closing(open_reader(config.index)) as reader:
        snapshot = IndexSnapshot.take(reader)
        timelines = reader.timelines(range(snapshot.meta.n_partitions))
    seqnos = snapshot.stable_before(timelines, time.time() - settings.removal_retention_s)
    return pack_pairs({vb: seqno for vb, seqno in enumerate(seqnos) if seqno})


def _end_epochs(config: Config, owner: OwnerStore, meta: IndexMeta) -> None:
    """Have the nodes go on in new epochs: in a bucket, their writers may know blocks that no directory names now."""
    with closing(open_reader(config.index)) as reader:
        for _ in rewind_partitions(owner, reader, range(meta.n_partitions), {}, requester("repair")):
            pass


def _print_repaired(repaired: RepairedChannels) -> None:
    for key in repaired.directories:
        output.line(f"put back: directory {key}")
    for key in repaired.blocks:
        output.line(f"replaced by what is left of it: block {key}")


def restore(
    config: Config, expected: IndexMeta, partitions: Collection[int], job: str, *, from_nothing: bool = False
) -> Restored:
    """Write anew what the configured index lacks of its own records, and *partitions*. See `OwnerStore.restore`.

    Raises:
        CoordinationUnavailable: another such command is running.
    """
    assert all(partition < expected.n_partitions for partition in partitions), "they were checked"
    with closing(open_owner(config.index)) as owner, job_lock(config.coordination.redis, config.index.name, job):
        return owner.restore(expected, partitions, from_nothing=from_nothing)


def print_restored(restored: Restored) -> None:
    """Print what was written anew."""
    if restored.wrote_meta:
        output.line(f"meta record written anew: index {restored.meta.index_uuid}")
    if restored.partitions:
        numbers = ", ".join(map(str, restored.partitions))
        output.line(f"records written anew, to be indexed again by the nodes: partitions {numbers}")
    if not restored.wrote_meta and not restored.partitions:
        output.line("the meta record and all partition records are whole")
