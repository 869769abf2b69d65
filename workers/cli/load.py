"""`channelindex load`: writes revisions from a file to a bucket, as Sync Gateway would."""

import argparse
import time
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from channelindex import exits
from channelindex.feeds.dcp.kv import KvClient
from devbucket.sync_gateway.layouts import InlineLayout, Layout, XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.resync import resync
from devbucket.sync_gateway.revisions import read_revisions
from workers.cli import options, output
from workers.cli.screens import Screen
from workers.pipeline.source import address_of

_LAYOUTS: dict[str, type[Layout]] = {"inline": InlineLayout, "xattr": XattrLayout}

_STANDARD_INPUT = Path("/dev/stdin")

_EPILOG = """\
example:
  channelindex load documents.jsonl.gz \\
      --bucket couchbase://127.0.0.1:11210/default \\
      --set source.user=Administrator --set source.password=password

Each line of the file is a revision, in the order in which they were made:
  {"id": "a", "rev": "1-ab12", "channels": ["orders"], "body": {"total": 12}}
"body" is optional; "deleted": true marks a deletion. Revisions that the bucket
already has are skipped, so an interrupted load can be repeated. A file is
checked as a whole before anything is saved; a pipe can be read only once, so
the lines before a malformed one are saved.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="JSON lines, or - for standard input; gzipped if the name ends in .gz"
    )
    parser.add_argument("--bucket", metavar="URL", help="couchbase://host:port/bucket (default: source.url)")
    parser.add_argument(
        "--metadata",
        choices=sorted(_LAYOUTS),
        default="inline",
        help="where Sync Gateway's metadata goes: into the body or an extended attribute (default: %(default)s)",
    )
    parser.add_argument(
        "--resync", action="store_true", help="only put existing documents into the channels of their last line"
    )
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Load the file."""
    bucket = {"source.url": args.bucket} if args.bucket else {}
    config = options.config_of(args, ("source.url",), bucket)
    file = _STANDARD_INPUT if args.file == Path("-") else args.file
    total = sum(1 for _ in read_revisions(file)) if file.is_file() or not file.exists() else None  # a pipe: once
    started = time.monotonic()
    layout = _LAYOUTS[args.metadata]()
    with KvClient(*address_of(config.source)) as client:
        if args.resync:
            lines = list(read_revisions(file))
            n_revisions, n_saved = len(lines), resync(client, layout, {line.id: line.channels for line in lines})
        else:
            n_revisions, n_saved = _load(Loader(client, layout), file, total)
    seconds = time.monotonic() - started
    if args.json:
        output.json_line({"revisions": n_revisions, "saved": n_saved, "seconds": round(seconds, 3)})
    else:
        saved = "documents moved to other channels" if args.resync else "revisions saved"
        output.line(f"{n_saved} {saved} in {seconds:.1f} s; {n_revisions - n_saved} lines changed nothing")
    return exits.OK


def _load(loader: Loader, file: Path, total: int | None) -> tuple[int, int]:
    """Write all revisions; return their number and that of new ones. Shows a progress bar on a terminal."""
    console = Screen(stderr=True)
    columns = (TextColumn("loading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=total)
        n_saved = loader.load(read_revisions(file), lambda n_done: bar.update(task, completed=n_done))
        return int(bar.tasks[task].completed), n_saved
