"""`channelindex serve`: serves the changes feed over HTTP until it is stopped."""

import argparse
import os
import sys
from contextlib import closing

from channelindex import logs
from channelindex.config import REQUIRED_TO_READ, Config
from channelindex.errors import CoordinationUnavailable
from channelindex.settings import MEMORY_URL
from workers.cli import options, output
from workers.cli.index_lag import BucketHighSeqnos
from workers.cli.status import StatusReader
from workers.serving.cluster_watch import ClusterSource
from workers.serving.service import run_service

_EPILOG = """\
example:
  channelindex serve --config /etc/channelindex/n1.toml
  channelindex serve --config n1.toml --listen 127.0.0.1:4994
  curl 'http://127.0.0.1:4994/channels/_changes?channels=orders&feed=continuous'

It reads the index only: run as many as there are clients for, behind any
balancer. docs/changes-feed.md says what it answers. Off loopback it needs
serve.tokens_file, see `channelindex token --help`.

signals:
  SIGTERM, SIGINT  end the open feeds in good order, and exit
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("--listen", metavar="HOST:PORT", help="address to serve on, instead of serve.listen")
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Serve; return the exit code."""
    config = options.config_of(args, REQUIRED_TO_READ, {"serve.listen": args.listen} if args.listen else None)
    journal = logs.goes_to_journal(sys.stdout, os.environ.get("JOURNAL_STREAM", ""))
    logs.configure(config.log.level, config.log.format, with_priority=journal, role="serve", node=config.node.name)
    announce = _announce if sys.stdout.isatty() else _say_nothing
    with closing(BucketHighSeqnos(config.source)) as bucket:
        return run_service(config, lambda: _source(config), bucket.read if config.source.url else None, announce)


def _source(config: Config) -> ClusterSource:
    """The page shows of the cluster what `status` prints."""
    if config.index.store != MEMORY_URL and not config.coordination.redis:
        raise CoordinationUnavailable("coordination.redis is not set: nobody knows the nodes")
    reader = StatusReader(config)
    return ClusterSource(reader.read, reader.waiting, reader.close)


def _announce(url: str) -> None:
    output.line(f"channelindex: serving on {url}; Ctrl-C ends it")


def _say_nothing(url: str) -> None:
    """The log line has it already."""
