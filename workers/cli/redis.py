"""`channelindex redis`: runs a private Redis on loopback, for development."""

import argparse
import time
from contextlib import ExitStack

from channelindex import exits
from channelindex.errors import CoordinationUnavailable
from devbucket.embedded_redis import EmbeddedRedis, free_port
from workers.cli import options, output
from workers.signals import interrupt_on_termination

_POLL_S = 0.2

_EPILOG = """\
examples:
  channelindex redis
  channelindex redis --port 0 --dir play/redis

For development: listens on loopback only, without a password. The first line on
stdout is its URL, for index.store. Without --dir it keeps everything in memory.
The server is redis-server or valkey-server of the PATH, what REDIS_SERVER names,
or the one that channelindex[embedded] brings.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--port", type=options.port, default=6379, help="port to listen on; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--dir", type=options.folder, metavar="DIR", help="folder of the data (default: in memory only)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the server until Ctrl-C or SIGTERM."""
    interrupt_on_termination()
    with ExitStack() as stack:
        try:
            folder = options.made(args.dir) if args.dir else None
            server = stack.enter_context(EmbeddedRedis(folder, save=bool(folder), port=args.port or free_port()))
            output.line(server.url)
            while server.running:
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            return exits.OK
    raise CoordinationUnavailable("the server has ended by itself")
