"""`channelindex config`: prints the configuration, checks it, or documents all keys."""

import argparse
from collections.abc import Callable

from channelindex import exits
from channelindex.config import REQUIRED_TO_RUN, Config, ConfigProblems
from channelindex.config_text import config_rows, config_values
from channelindex.decode.registry import make_decoder
from channelindex.errors import ChannelIndexError, ConfigInvalid
from channelindex.settings import MEMORY_URL
from channelindex.stores import describe_store
from coordinator.lease_redis import connect
from workers.cli import options, output, reference
from workers.pipeline.source import describe

_EPILOG = """\
example:
  channelindex config show --config /etc/channelindex/n1.toml
  channelindex config check --set workers.feed_workers=4
  channelindex config check --connect --config /etc/channelindex/n1.toml
"""

_TIMEOUT_S = 5.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "action",
        choices=("show", "check", "docs"),
        help="show: each key, its value and origin; check: every problem; docs: all keys explained, as Markdown",
    )
    parser.add_argument(
        "--no-passwords",
        action="store_true",
        help="with check: do not read password files, for users who may not",
    )
    parser.add_argument(
        "--connect",
        action="store_true",
        help="with check: also ask the bucket, the index store, the Redis of the leases",
    )
    options.add_config(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    if args.action == "docs":
        output.paragraph(reference.configuration().rstrip())
        return exits.OK
    return _check(args) if args.action == "check" else _show(args)


def _show(args: argparse.Namespace) -> int:
    config = options.config_of(args, required=())
    if args.json:
        output.json_line(config_values(config))
    else:
        output.table(("key", "value", "set in"), config_rows(config))
    return exits.OK


def _check(args: argparse.Namespace) -> int:
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    try:
        config = options.config_of(args, REQUIRED_TO_RUN, read_passwords=not args.no_passwords)
        warnings = config.warnings
        problems = _refusals(lambda: make_decoder(config.source.decoder, star_channel=config.source.star_channel))
        if args.connect:
            servers, refusals = _ask_servers(config)
            problems += refusals
    except ConfigProblems as found:
        problems = found.problems
    if args.json:
        output.json_line({"ok": not problems, "problems": problems, "warnings": warnings, "servers": servers})
    else:
        for warning in warnings:
            output.warn(warning)
        for server in servers:
            output.line(server)
        for problem in problems or ("the configuration is valid",):
            output.line(problem)
    if problems:
        raise ConfigInvalid(f"{len(problems)} problem{'s'[: len(problems) > 1]} in the configuration")
    return exits.OK


def _refusals(use: Callable[[], object]) -> tuple[str, ...]:
    """Call *use*; return the error that it ends with, or nothing."""
    try:
        use()
    except ChannelIndexError as error:
        return (str(error),)
    return ()


def _ask_servers(config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Facts about the servers of the index store, and every problem with them, the bucket or those of the leases."""
    servers: list[str] = []
    problems = _refusals(lambda: describe(config.source))
    problems += _refusals(lambda: servers.extend(describe_store(config.index)))
    if config.index.store != MEMORY_URL:
        problems += _refusals(lambda: _ask_leases(config.coordination.redis))
    return tuple(servers), problems


def _ask_leases(url: str) -> None:
    with connect(url, _TIMEOUT_S) as redis:
        for server in redis.servers():
            server.execute("PING")
