"""`channelindex verify`: compares the index with the bucket."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict

from channelindex import exits
from channelindex.checking.refill import Lacking
from channelindex.checking.verify import STABLE_TIMEOUT_S, VerifyReport, verify
from channelindex.config import REQUIRED_TO_VERIFY, Config
from channelindex.decode.registry import make_decoder
from channelindex.stores import open_reader
from workers.cli import options, output
from workers.cli.progress import progress_bar
from workers.pipeline.source import check_source, high_seqnos, open_feed

_EPILOG = """\
example:
  channelindex verify
  channelindex verify --channel orders --channel invoices --json

Reads the whole bucket, rebuilds the channels in memory (about 500 bytes per
document), and compares. Nodes and writers may continue: documents that change
are counted as in flux. The exit code is 1 if anything differs, if a document
cannot be decoded (the index lacks it), or if the index does not catch up with
the bucket.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--channel", action="append", metavar="C", help="compare this channel only; may be repeated")
    add_timeout(parser)
    options.add_json(parser)
    options.add_config(parser)


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add --timeout."""
    parser.add_argument(
        "--timeout",
        type=options.seconds,
        default=STABLE_TIMEOUT_S,
        metavar="S",
        help="seconds to wait for the index to catch up with the bucket (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Compare, and print what differs."""
    report = verify_index(options.config_of(args, REQUIRED_TO_VERIFY), args.channel, args.timeout)
    if args.json:
        output.json_line({"ok": report.ok, **asdict(report)})
    else:
        print_report(report)
    return exits.OK if report.ok else exits.DIFFERENCES


def verify_index(
    config: Config, channels: Sequence[str] | None, timeout_s: float, lacking: list[Lacking] | None = None
) -> VerifyReport:
    """Compare the configured index, or some of its channels, with the configured bucket; add what they lack to it."""
    found = [] if lacking is None else lacking

    def highs() -> Mapping[int, int]:
        return high_seqnos(config.source)

    decoder = make_decoder(config.source.decoder, star_channel=config.source.star_channel)
    with closing(open_reader(config.index, config.node.run_dir)) as store:
        source_uuid = store.meta().source_uuid
        check_source(config.source, source_uuid)
        with closing(open_feed(config.source, "verify", source_uuid, highs())) as feed, progress_bar("channels") as bar:
            return verify(
                store,
                feed,
                decoder,
                highs,
                channels,
                stable_timeout_s=timeout_s,
                progress=bar,
                on_lacking=lambda channel, document: found.append((channel, document)),
            )


def print_report(report: VerifyReport) -> None:
    """Print what differs, and how much was compared."""
    if report.details:
        header = ("problem", "channel", "document", "vbucket", "expected", "found")
        rows = [(row.kind, row.channel, row.id, row.vb, row.expected, row.found) for row in report.details]
        output.table(header, rows)
        output.line("")
    for channel in report.empty:
        output.warn(f"channel {channel}: neither the bucket nor the index has anything of it")
    compared = f"{report.documents} documents, {report.channels} channels, {report.entries} entries"
    output.line(f"{compared}: {report.missing} missing, {report.extra} extra, {report.different} different")
    if report.undecodable:
        output.line(
            f"undecodable documents: {report.undecodable}; the index lacks them, whatever channels they are in: "
            "channelindex quarantine list"
        )
    for number, what in (
        (report.in_flux, "entries of documents that changed meanwhile"),
        (report.foreign, "documents without channel metadata"),
        (report.undecoded, "entries of documents without channel metadata now, or undecodable"),
        (report.forgotten, "documents of channels older than what the index retains of these"),
        (
            report.behind,
            "vbuckets in which the index is behind the bucket (channelindex status says who indexes)",
        ),
        (report.ahead, "vbuckets in which the index is ahead of the bucket"),
    ):
        if number:
            output.line(f"{what}: {number}")
