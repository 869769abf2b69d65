"""`channelindex run`: runs one node until it is stopped."""

import argparse
import os
import sys
from importlib.util import find_spec

from channelindex import logs
from channelindex.config import REQUIRED_TO_RUN, Config
from channelindex.errors import ExtraMissing
from workers.cli import options
from workers.node.start import run_node

_log = logs.get("node")

_EPILOG = """\
example:
  channelindex run --config /etc/channelindex/n1.toml

signals:
  SIGTERM, SIGINT  write what was read, release the leases and exit; a second
                   one exits at once
  SIGHUP           reload the configuration
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Run the node; return its exit code."""

    def load() -> Config:
        config = options.config_of(args, REQUIRED_TO_RUN)
        journal = logs.goes_to_journal(sys.stdout, os.environ.get("JOURNAL_STREAM", ""))
        logs.configure(
            config.log.level, config.log.format, with_priority=journal, role="supervisor", node=config.node.name
        )
        for warning in config.warnings:
            _log.warning("config.ignored", msg=warning)
        return config

    config = load()
    if config.metrics.listen and find_spec("prometheus_client") is None:  # before anything is forked
        raise ExtraMissing("node", "prometheus_client")
    return run_node(config, load)
