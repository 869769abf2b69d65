"""`channelindex changes`: prints changes in channels."""

import argparse
from collections.abc import Iterator
from contextlib import closing

from channelindex import exits
from channelindex.blocks import refuse
from channelindex.config import REQUIRED_TO_READ
from channelindex.errors import IndexCorrupt
from channelindex.reading.changes_reader import ChangesReader
from channelindex.reading.paging import Change, Changes
from channelindex.reading.patience import BEHIND_S
from channelindex.stores import open_reader
from workers.cli import options, output

PAGE = 1000
"""Documents that are printed together."""

_EPILOG = """\
example:
  channelindex changes orders invoices --limit 20
  channelindex changes orders --since TOKEN --json
  channelindex changes orders --follow

With --json each change is one line, and after each page comes a line
{"since": TOKEN, "pending": N}. Give TOKEN to --since to go on after that page,
with the same channels: for others it is refused. "pending" are changes beyond it.
Without --json TOKEN comes at the end, with --follow when it is interrupted.

A damaged block ends the command with an error that names it. --skip-corrupt
reports it on stderr and continues with what is intact; what was lost with the
block is not reported later either.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("channels", nargs="+", metavar="CHANNEL", help="a channel's name; * has all documents")
    parser.add_argument(
        "--since", metavar="TOKEN", help="continue where an earlier answer ended (default: the beginning)"
    )
    parser.add_argument("--follow", action="store_true", help="wait for further changes until interrupted")
    parser.add_argument(
        "--max-behind",
        type=options.seconds,
        default=BEHIND_S,
        metavar="SECONDS",
        help="with --follow: end once the index has been behind TOKEN for so long; for a moment it is after its store "
        f"lost its newest writes (default: {BEHIND_S:.0f})",
    )
    parser.add_argument("--limit", type=options.positive, metavar="N", help="end after N documents")
    parser.add_argument("--skip-corrupt", action="store_true", help="continue beyond damaged or missing blocks")
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Print the changes."""
    config = options.config_of(args, REQUIRED_TO_READ)
    with closing(open_reader(config.index, config.node.run_dir)) as store:
        store.meta()  # a follower retries a store that is away; at the start, a wrong address is more likely
        reader = ChangesReader(store, _Skipped() if args.skip_corrupt else refuse)
        pages = _followed(reader, args) if args.follow else _present(reader, args)
        if args.json:
            _print_json(pages)
        else:
            _print_tables(pages, args.since, follows=args.follow)
    return exits.OK


class _Skipped:
    """Reports each skipped block once: a follower meets it again and again."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, error: IndexCorrupt) -> None:
        message = str(error)
        if message not in self._known:
            self._known.add(message)
            output.warn(f"skipped: {message}")


def _present(reader: ChangesReader, args: argparse.Namespace) -> Iterator[Changes]:
    if args.limit is None:
        yield from reader.pages(args.channels, args.since, PAGE)
    else:
        yield reader.changes(args.channels, args.since, args.limit)


def _followed(reader: ChangesReader, args: argparse.Namespace) -> Iterator[Changes]:
    if args.limit is None:
        yield from reader.follow(args.channels, args.since, PAGE, behind_s=args.max_behind)
        return
    since, left = args.since, args.limit
    while left:
        page = next(reader.follow(args.channels, since, left, behind_s=args.max_behind))  # ends only when stopped
        yield page
        since, left = page.since, left - len(page.entries)


def _print_json(pages: Iterator[Changes]) -> None:
    for page in pages:
        for change in page.entries:
            output.json_line(change._asdict())
        output.json_line({"since": page.since, "pending": page.pending})


def _print_tables(pages: Iterator[Changes], since: str | None, *, follows: bool) -> None:
    """Print *pages*, and at the end the token: of a follower when it is interrupted, of the last page printed whole."""
    pending = n_shown = 0
    try:
        for page in pages:
            if page.entries:
                n_shown += len(page.entries)
                header = ("document", "revision", "change", "vbucket", "seqno", "channels")
                output.table(header, [_row(change) for change in page.entries])
            since, pending = page.since, page.pending
    except KeyboardInterrupt:
        if follows and since:
            output.line("")
            output.line(f"continue with --since {since}")
        raise
    if n_shown:
        output.line("")
    output.line(f"{f'{pending} more' if n_shown or pending else 'no changes'}; continue with --since {since}")


def _row(change: Change) -> tuple[object, ...]:
    kind = (
        "withdrawn" if change.withdrawn else "removed" if change.removed else "deleted" if change.deleted else "changed"
    )
    return change.id, change.rev, kind, change.vb, change.seqno, " ".join(change.channels)
