"""`channelindex compact`: takes out of the index what is superseded, dead or old."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from channelindex import exits
from channelindex.compaction.channel import ChannelResult
from channelindex.compaction.compactor import Compactor
from channelindex.compaction.due import Extent
from channelindex.compaction.pace import Pace
from channelindex.config import REQUIRED_TO_READ
from channelindex.stores import open_compaction, open_compaction_reader
from workers.cli import options, output
from workers.cli.progress import progress_bar

_EPILOG = """\
example:
  channelindex compact --dry-run
  channelindex compact --channel orders

The nodes do this by themselves (workers.compactors). Without arguments, the
channels that are due are compacted at once, those with most to win first; nodes,
writers and readers may continue, and other compactors, too. With --now or
--channel, also channels that are not due. What is too young to leave stays in any
case: compaction.min_lag_s and compaction.dead_retention_s are not for haste, but
for readers who are in the middle of an answer.

Of the channels it says how many are compacted; unchanged, as less than a quarter
of their bytes would leave; refused, as another compactor was faster; gone, as the
index has nothing of them; damaged, so that `repair` is due; or too large.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--channel", action="append", metavar="C", help="compact this channel; may be repeated")
    parser.add_argument("--now", action="store_true", help="compact all channels, due or not")
    parser.add_argument("--dry-run", action="store_true", help="read and report what would leave, and write nothing")
    options.add_json(parser)
    options.add_config(parser)


@dataclass
class CompactTotals:
    """Sums over the channels of one run. Entries that are `young` may leave when they are older."""

    channels: int = 0
    entries_read: int = 0
    entries_left: int = 0
    superseded: int = 0
    dead: int = 0
    removals: int = 0
    repeated: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    blocks_before: int = 0
    blocks_after: int = 0
    young_superseded: int = 0
    young_dead: int = 0
    pruned_starts: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)

    def add(self, result: ChannelResult) -> None:
        """Count one channel."""
        counts = result.counts
        self.channels += 1
        self.outcomes[result.outcome] = self.outcomes.get(result.outcome, 0) + 1
        self.entries_read += counts.read
        if result.outcome == "compacted":
            self.entries_left += counts.left
            self.superseded += counts.superseded
            self.dead += counts.dead
            self.removals += counts.removals
            self.repeated += counts.repeated
        self.bytes_before += result.bytes_before
        self.bytes_after += result.bytes_after
        self.blocks_before += result.blocks_before
        self.blocks_after += result.blocks_after
        self.young_superseded += result.young_superseded
        self.young_dead += result.young_dead


def run(args: argparse.Namespace) -> int:
    """Compact, and report."""
    config = options.config_of(args, REQUIRED_TO_READ)
    totals = CompactTotals()
    with (
        closing(open_compaction(config.index)) as store,
        closing(open_compaction_reader(config.index, store)) as reader,
    ):
        compactor = Compactor(store, reader, config.compaction, config.index.block_bytes, Pace(1.0).pause)
        work = _work(compactor, args.channel, args.channel or reader.channels(), now=args.now)
        with progress_bar("channels") as show:
            for number, (channel, extent) in enumerate(work, 1):
                result = compactor.compact(channel, extent, dry_run=args.dry_run)
                totals.add(result)
                if result.outcome in ("damaged", "too large"):
                    output.warn(f"channel {channel}: {result.outcome}: {result.detail}")
                if result.outcome == "gone" and extent is Extent.FULL:
                    output.warn(f"channel {channel}: the index has nothing of it")
                show(number, len(work))
        if not (args.dry_run or args.channel):
            totals.pruned_starts = compactor.prune(reader.channels)
    if args.json:
        output.json_line(totals)
    else:
        for text in _report(totals, dry_run=args.dry_run):
            output.line(text)
    return exits.CORRUPT if totals.outcomes.get("damaged") else exits.OK


def _work(
    compactor: Compactor, asked: Sequence[str] | None, channels: Sequence[str] | Iterator[str], *, now: bool
) -> list[tuple[str, Extent]]:
    """The channels to compact: those *asked* for, with *now* all, else those that are due."""
    if now or asked:
        return [(channel, Extent.FULL) for channel in channels]
    return [(due.channel, due.extent) for due in compactor.find_due(channels)]


def _report(totals: CompactTotals, *, dry_run: bool) -> Iterator[str]:
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(totals.outcomes.items()))
    yield f"channels  {outcomes or 'none is due'}" + (" (dry run: nothing was written)" if dry_run else "")
    if totals.pruned_starts:
        yield f"epochs    {totals.pruned_starts} starts pruned"
    if not totals.channels:
        return
    yield (
        f"entries   {totals.entries_read} read, {totals.entries_left} left: {totals.superseded} superseded, "
        f"{totals.dead} dead, {totals.removals} old removals, {totals.repeated} repeated"
    )
    yield f"bytes     {totals.bytes_before} before, {totals.bytes_after} after"
    yield f"blocks    {totals.blocks_before} before, {totals.blocks_after} after"
    if totals.young_superseded or totals.young_dead:
        yield (
            f"not yet   {totals.young_superseded} superseded for less than compaction.min_lag_s, "
            f"{totals.young_dead} dead for less than compaction.dead_retention_s"
        )
