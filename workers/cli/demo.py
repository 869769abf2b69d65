"""`channelindex demo`: runs the whole system on private servers."""

import argparse
from pathlib import Path

from workers.cli import options
from workers.cli.demo_run import DemoOptions, run_demo

_EPILOG = """\
examples:
  channelindex demo
  channelindex demo --seconds 60
  channelindex demo --docs revisions.jsonl.gz --json

It starts a private Redis, a dev bucket and one node, writes documents, users
and roles while the node runs, kills one of its workers, drains it, and verifies
the index against the bucket. The exit code is 1 if anything differs.
The lines of --docs are those of `channelindex load`.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--seconds", type=options.seconds, default=20.0, metavar="N", help="approximate duration (default: 20)"
    )
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write these revisions instead of synthetic ones")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    return run_demo(DemoOptions(args.seconds, args.docs, args.json))
