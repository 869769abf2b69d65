"""`channelindex config`: prints the configuration, checks it, or documents all keys."""

import argparse

from channelindex import exits
from channelindex.config import REQUIRED_TO_RUN, Config, ConfigProblems
from channelindex.config_text import config_rows
from channelindex.errors import ChannelIndexError, ConfigInvalid
from channelindex.settings import MEMORY_URL
from channelindex.stores import describe_store
from coordinator.lease_redis import connect
from workers.cli import options, output, reference

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
        "--connect", action="store_true", help="with check: also ask the index store and the Redis of the leases"
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
    rows = list(config_rows(options.config_of(args, required=())))
    if args.json:
        output.json_line({key: {"value": value, "origin": origin} for key, value, origin in rows})
    else:
        output.table(("key", "value", "set in"), rows)
    return exits.OK


def _check(args: argparse.Namespace) -> int:
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    try:
        config = options.config_of(args, REQUIRED_TO_RUN, read_passwords=not args.no_passwords)
        warnings = config.warnings
        if args.connect:
            servers, problems = _ask_servers(config)
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


def _ask_servers(config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Facts about the servers of the index store, and every problem with them or those of the leases."""
    servers: list[str] = []
    problems: list[str] = []
    try:
        servers += describe_store(config.index)
    except ChannelIndexError as error:
        problems.append(str(error))
    if config.index.store != MEMORY_URL:
        try:
            with connect(config.coordination.redis, _TIMEOUT_S) as redis:
                for server in redis.servers():
                    server.execute("PING")
        except ChannelIndexError as error:
            problems.append(str(error))
    return tuple(servers), tuple(problems)
