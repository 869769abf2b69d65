"""`channelindex devbucket`: a server on loopback that speaks the bucket's protocol."""

import argparse
import sys

from channelindex import exits, logs
from channelindex.devbucket.server import serve
from channelindex.devbucket.setup import DevBucketConfig
from workers.cli import options, output

_DEFAULTS = DevBucketConfig(port=11210)

_EPILOG = """\
example:
  channelindex devbucket
  channelindex devbucket --port 0 --vbuckets 64

It is for development: it listens on loopback only and keeps everything in
memory. The first line on stdout is its URL, for source.url; log lines go to
stderr.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--host", default=_DEFAULTS.host, help="loopback address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=options.port, default=_DEFAULTS.port, help="port; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument("--bucket", default=_DEFAULTS.bucket, help="the bucket's name (default: %(default)s)")
    parser.add_argument("--user", default=_DEFAULTS.user, help="who may log in (default: %(default)s)")
    parser.add_argument("--password", default=_DEFAULTS.password, help="with which password (default: %(default)s)")
    parser.add_argument(
        "--vbuckets", type=options.positive, default=_DEFAULTS.n_vbuckets, help="how many (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    logs.configure(stream=sys.stderr, role="devbucket")
    config = DevBucketConfig(args.host, args.port, args.bucket, args.user, args.password, args.vbuckets)
    serve(config, ready=output.line)
    return exits.OK
