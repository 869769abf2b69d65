"""`channelindex demo`: runs the whole system on private servers."""

import argparse
import importlib
from pathlib import Path

from channelindex import exits
from workers.cli import options
from workers.cli.demo_run import DemoOptions, run_demo
from workers.cli.playground import PlayOptions, play

_EPILOG = """\
examples:
  channelindex demo
  channelindex demo --seconds 60
  channelindex demo --docs revisions.jsonl.gz --json
  channelindex demo --stay

It starts a private Redis, a dev bucket and one node, writes documents, users
and roles while the node runs, kills one of its workers, drains it, and verifies
the index against the bucket. The exit code is 1 if anything differs.
The lines of --docs are those of `channelindex load`. With --stay it goes on as
`channelindex play`, which prints the address of its page, until Ctrl-C.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--seconds", type=options.seconds, default=20.0, metavar="N", help="approximate duration (default: 20)"
    )
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write these revisions instead of synthetic ones")
    parser.add_argument(
        "--stay", action="store_true", help="afterwards keep nodes, changes feed and its page open until Ctrl-C"
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    if args.stay:
        importlib.import_module("uvicorn")  # before the demo, not after it; see `channelindex play`
    code = run_demo(DemoOptions(args.seconds, args.docs, args.json, args.stay))
    if code == exits.OK and args.stay:
        play(PlayOptions())
    return code
