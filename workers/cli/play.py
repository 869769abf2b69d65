"""`channelindex play`: keeps the whole system running on private servers, to try every command on."""

import argparse
import importlib

from channelindex import exits
from workers.cli import options
from workers.cli.playground import PlayOptions, play

_EPILOG = """\
examples:
  channelindex play
  channelindex play --dir play --rate 500

Starts a private Redis, a dev bucket, two nodes and the changes feed, lets
documents change, and prints commands to try in another terminal. A node that
ends, or the Redis, is started again after a moment, as systemd would. Ctrl-C
ends everything. With --dir the bucket and the index are still there next time.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--dir",
        type=options.folder,
        metavar="DIR",
        help="folder that keeps everything (default: a temporary one)",
    )
    parser.add_argument(
        "--rate", type=options.positive, default=100, metavar="N", help="changes per second (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Play until Ctrl-C."""
    importlib.import_module("uvicorn")  # the changes feed is a process of its own, which would end and begin for ever
    play(PlayOptions(folder=args.dir, rate=args.rate))
    return exits.OK
