"""`channelindex inspect`: prints stored records, taken apart."""

import argparse
import shutil
from contextlib import closing

from channelindex import exits
from channelindex.checking.inspect import (
    BlockReport,
    ChannelReport,
    PartitionReport,
    inspect_block,
    inspect_clock,
    inspect_partition,
)
from channelindex.config import REQUIRED_TO_READ
from channelindex.errors import InputInvalid
from channelindex.stores import open_reader
from channelindex.stores.base import BlockRef, IndexReader
from workers.cli import options, output

_EPILOG = """\
example:
  channelindex inspect partition 12
  channelindex inspect clock orders
  channelindex inspect block 00112233aabbccdd:4:orders

A block's key is GROUP:NUMBER:CHANNEL, as errors name it; `inspect clock CHANNEL`
names the newest of each group, and those before it count down to 0. An entry is
visible, pending (above the stable clock) or dead (a later epoch took it back).
The exit code is 73 if the record is damaged. docs/format.md explains the format.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("what", choices=list(_INSPECT), help="kind of record that KEY names")
    parser.add_argument(
        "key", metavar="KEY", help="GROUP:NUMBER:CHANNEL of a block, a channel, or a partition's number"
    )
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Print the record."""
    config = options.config_of(args, REQUIRED_TO_READ)
    with closing(open_reader(config.index, config.node.run_dir)) as store:
        store.meta()
        is_whole = _INSPECT[args.what](store, args.key, args.json)
    return exits.OK if is_whole else exits.CORRUPT


def _block(store: IndexReader, key: str, as_json: bool) -> bool:
    group, number, channel = (*key.split(":", 2), "", "")[:3]
    if not channel or not number.isdecimal():
        raise InputInvalid(f"{key!r} is no key of a block: it must be GROUP:NUMBER:CHANNEL")
    report = inspect_block(store, BlockRef(channel, group, int(number)))
    if as_json:
        output.json_line({**report._asdict(), "entries": [entry._asdict() for entry in report.entries]})
    else:
        _print_block(report)
    return not report.damage


def _print_block(report: BlockReport) -> None:
    header = f"header of epoch {report.header_epoch}" if report.header_epoch is not None else "header damaged"
    output.line(f"block {report.key}: {report.n_bytes} bytes, {len(report.entries)} entries, {header}")
    if report.header_clock:
        output.line(f"before it: {_clock_text(report.header_clock)}")
    for damage in report.damage:
        output.line(f"damaged: {damage}")
    if report.entries:
        output.line("")
        output.table(("epoch", "vbucket", "seqno", "document", "revision", "flags", "visibility"), report.entries)


def _clock(store: IndexReader, key: str, as_json: bool) -> bool:
    report = inspect_clock(store, key)
    if as_json:
        output.json_line({**report._asdict(), "groups": [group._asdict() for group in report.groups]})
    else:
        _print_clock(report)
    return not any(group.damage for group in report.groups)


def _print_clock(report: ChannelReport) -> None:
    output.line(f"channel {report.channel}: counter {report.counter}, {len(report.groups)} groups")
    for group in report.groups:
        output.line("")
        output.line(f"group {group.group}, {len(group.clock)} vbuckets")
        output.line(
            f"newest block {group.active_block}, {group.n_bytes} bytes, {group.n_tail_bytes} since its clock moved"
        )
        for damage in group.damage:
            output.line(f"damaged: {damage}")
        for line in clock_lines(group.clock, shutil.get_terminal_size((80, 0)).columns):
            output.line(line)


def _partition(store: IndexReader, key: str, as_json: bool) -> bool:
    if not key.isdecimal():
        raise InputInvalid(f"{key!r} is no number of a partition")
    report = inspect_partition(store, int(key))
    if as_json:
        checkpoints = [checkpoint._asdict() for checkpoint in report.checkpoints]
        history = [{**start._asdict(), "reaches": start.true_upto} for start in report.history]
        output.json_line({**report._asdict(), "checkpoints": checkpoints, "history": history, "clock": report.clock})
    else:
        _print_partition(report)
    return True


def _print_partition(report: PartitionReport) -> None:
    owner = f"epoch {report.epoch} of {report.owner}" if report.epoch else "never owned"
    output.line(f"partition {report.partition}: {owner}")
    output.line("")
    header = ("vbucket", "vbuuid", "stable seqno", "snapshot", "purge seqno")
    rows = [
        (vb, f"{each.vbuuid:016x}", each.seqno, f"{each.snap_start}-{each.snap_end}", each.purge_seqno)
        for vb, each in enumerate(report.checkpoints, report.first_vb)
    ]
    output.table(header, rows)
    output.line("")
    history = [
        (start.epoch, " ".join(map(str, start.starts)), " ".join(map(str, start.true_upto if start.reaches else ())))
        for start in report.history
    ]
    output.table(("epoch", "starts", "reaches"), history)
    if report.n_archived:
        output.line(f"{report.n_archived} older epochs in the archive")


def clock_lines(clock: dict[int, int], width: int) -> list[str]:
    """The vbuckets and seqnos of *clock* in columns, at most *width* characters wide."""
    if not clock:
        return ["  its clock is empty"]
    vb_width, seqno_width = len(str(max(clock))), len(str(max(clock.values())))
    cells = [f"  vb {vb:>{vb_width}}: {seqno:>{seqno_width}}" for vb, seqno in sorted(clock.items())]
    n_columns = max(1, width // len(cells[0]))
    return ["".join(cells[start : start + n_columns]) for start in range(0, len(cells), n_columns)]


def _clock_text(clock: dict[int, int]) -> str:
    return " ".join(f"{vb}:{seqno}" for vb, seqno in sorted(clock.items()))


_INSPECT = {"block": _block, "clock": _clock, "partition": _partition}
