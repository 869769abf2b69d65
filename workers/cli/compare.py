"""`channelindex compare`: compares the indexes that two stores make of the same bucket."""

import argparse
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace

from channelindex import exits
from channelindex.checking.compare import Comparison, compare
from channelindex.config import REQUIRED_TO_VERIFY, Config
from channelindex.decode.registry import make_decoder
from channelindex.errors import ConfigInvalid
from channelindex.settings import MEMORY_URL, SETTINGS, IndexSettings
from channelindex.stores import open_reader, remove_index
from channelindex.urls import mask_url
from workers.cli import options, output
from workers.cli.dual_feed import feed_both
from workers.cli.progress import progress_bar
from workers.node.start import configured_meta
from workers.pipeline.source import high_seqnos, open_feed

_EPILOG = """\
example:
  channelindex compare --left memory:// --right redis://127.0.0.1:6379/0
  channelindex compare --left memory:// --right redis://127.0.0.1:6379/0 --existing

Reads the whole bucket once, feeds it to a new index in each store, compares the
answers that readers of both would get, and removes both. With --existing it
compares the existing indexes named index.name, such as that of a running node
with index.store = memory:// and that of the other nodes. The exit code is 1 if
anything differs.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--left", required=True, metavar="URL", help="the reference store, in the form of index.store")
    parser.add_argument("--right", required=True, metavar="URL", help="the store to compare with it")
    parser.add_argument("--existing", action="store_true", help="compare existing indexes instead of feeding new ones")
    parser.add_argument("--channel", action="append", metavar="C", help="compare this channel only; may be repeated")
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, and print what differs."""
    config = options.config_of(args, REQUIRED_TO_VERIFY, {"index.store": args.left})
    sides = [_side(config.index, url) for url in (args.left, args.right)]
    with ExitStack() as stack:
        if args.existing:
            run_dir = config.node.run_dir
        else:
            run_dir = None
            name = f"compare-{secrets.token_hex(4)}"
            sides = [stack.enter_context(_temporary_index(replace(side, name=name))) for side in sides]
            _feed(config, sides)
        left, right = (stack.enter_context(closing(open_reader(side, run_dir))) for side in sides)
        found = compare(left, right, args.channel, stack.enter_context(progress_bar("channels")))
    if args.json:
        output.json_line({"ok": found.ok, **asdict(found)})
    else:
        _print(found)
    return exits.OK if found.ok else exits.DIFFERENCES


def _side(index: IndexSettings, url: str) -> IndexSettings:
    problem = SETTINGS["index.store"].wrong(url)
    if problem:
        raise ConfigInvalid(f"--left or --right = {mask_url(url)}: {problem}")
    return replace(index, store=url)


@contextmanager
def _temporary_index(side: IndexSettings) -> Iterator[IndexSettings]:
    """Yield the settings of an index and remove the index at the end, also after an error."""
    try:
        yield side
    finally:
        if not remove_index(side) and side.store != MEMORY_URL:
            output.line(f"index {side.name} could not be removed from {mask_url(side.store)}: remove it there")


def _feed(config: Config, sides: list[IndexSettings]) -> None:
    if sides[0].store == sides[1].store:
        raise ConfigInvalid("--left and --right name the same store: there is nothing to compare")
    meta = configured_meta(config)
    decoder = make_decoder(config.source.decoder, star_channel=config.source.star_channel)
    with closing(open_feed(config.source, "compare", meta.source_uuid, high_seqnos(config.source))) as feed:
        feed_both(feed, decoder, meta, sides)


def _print(found: Comparison) -> None:
    if found.details:
        header = ("problem", "channel", "document", "left", "right")
        output.table(header, [(row.kind, row.channel, row.id, row.left, row.right) for row in found.details])
        output.line("")
    for channel, counts in sorted(found.differences_by_channel.items()):
        output.line(f"channel {channel}: " + ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items())))
    compared = f"{found.channels} channels, {found.left_entries} entries left, {found.right_entries} right"
    output.line(f"{compared}: {found.missing} missing, {found.extra} extra, {found.different} different")
    for number, what in (
        (found.in_flux, "entries are beyond the stable clock of one side"),
        (found.forgotten, "entries are older than what one side retains of their channel"),
    ):
        if number:
            output.line(f"{number} {what}")
