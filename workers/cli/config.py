"""`channelindex config`: prints the configuration, checks it, or documents all keys."""

import argparse

from channelindex import exits
from channelindex.config import REQUIRED_TO_RUN, ConfigProblems
from channelindex.config_text import config_rows
from channelindex.errors import ConfigInvalid
from workers.cli import options, output, reference

_EPILOG = """\
example:
  channelindex config show --config /etc/channelindex/n1.toml
  channelindex config check --set workers.feed_workers=4
"""


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
    try:
        warnings = options.config_of(args, REQUIRED_TO_RUN, read_passwords=not args.no_passwords).warnings
    except ConfigProblems as found:
        problems = found.problems
    if args.json:
        output.json_line({"ok": not problems, "problems": problems, "warnings": warnings})
    else:
        for warning in warnings:
            output.warn(warning)
        for problem in problems or ("the configuration is valid",):
            output.line(problem)
    if problems:
        raise ConfigInvalid(f"{len(problems)} problem{'s'[: len(problems) > 1]} in the configuration")
    return exits.OK
