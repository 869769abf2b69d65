"""The command line: `channelindex COMMAND …`.

One module per command in this package, each with `configure(parser)` and `run(args) -> exit code`. Only the module of
the command that was asked for is imported, so that `--help` and `config` do not wait for Redis clients and decoders.
An error of this project becomes one line on stderr and the exit code that `channelindex.exits` names.
"""

import argparse
import contextlib
import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from channelindex import __version__, exits, logs
from channelindex.errors import ChannelIndexError, ExtraMissing
from channelindex.terminal import escaped
from channelindex.urls import mask_url
from workers.cli.output import ReaderGone

COMMANDS = {
    "run": "run one node until it is stopped",
    "changes": "print changes in channels; --follow to keep going",
    "serve": "serve the changes feed over HTTP until it is stopped",
    "token": "make, list and revoke the tokens by which clients of `serve` are let in",
    "status": "show the nodes, the owners of partitions, and the progress of the index",
    "top": "watch the whole cluster live: nodes, processes, lag, hot channels",
    "inspect": "print a block, the clocks of a channel or a partition record as stored",
    "nodes": "list the nodes and their shares",
    "partitions": "list the owner of each partition, since when and why",
    "events": "list the nodes that came and went, the partitions that moved, and why",
    "drain": "have a node release its partitions and take no others",
    "undrain": "give a drained node its share again",
    "release": "have the owners drain and release partitions",
    "rebalance": "show the moves that are due, and wait for them",
    "scale": "change the numbers of workers of running nodes",
    "rewind": "take partitions back to an earlier clock; the nodes index again from there",
    "rebuild": "have the nodes index the whole bucket again",
    "repair": "write anew what the store lost of the index's records, and verify",
    "compact": "take out of the index what is superseded, dead or old",
    "quarantine": "list the documents that could not be decoded, and retry them",
    "tune": "measure on this machine which numbers of workers are worth it",
    "size": "calculate workers, rings and the memory of the index",
    "verify": "compare the index with the bucket",
    "compare": "feed the bucket to two stores and compare the answers of both",
    "demo": "run a private Redis, a dev bucket and one node, and verify the index",
    "play": "keep a private Redis, a dev bucket and two nodes running, to try commands on",
    "load": "write revisions from a file to a bucket, as Sync Gateway would",
    "devbucket": "serve a bucket for development on loopback",
    "redis": "run a private Redis for development on loopback",
    "config": "show, check or explain the configuration",
    "completion": "print what a shell needs to complete commands and options",
}
"""Every command and what it does, in the order of `--help`."""

_EXTRA_BY_MODULE = {
    "rich": "cli",
    "shtab": "cli",
    "prometheus_client": "node",
    "uvicorn": "serve",
    "uvloop": "serve",
    "httptools": "serve",
    "orjson": "dev-bucket",
    "google_crc32c": "dev-bucket",
    "couchbase": "couchbase",
}
_EXTRAS_BY_COMMAND = {
    "run": "node",
    "serve": "serve",
    "demo": "node,dev-bucket,embedded",
    "play": "node,serve,dev-bucket,embedded",
    "load": "dev-bucket",
    "devbucket": "dev-bucket",
}
"""Extras that a command needs as a whole, where one missing package does not name them all."""

_SUMMARY = "The channel index of a Couchbase bucket: what changed in these channels since I last looked?"


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        """Print *message* and exit with USAGE."""
        _complain(f"{message} (see {self.prog} --help)")
        sys.exit(exits.USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in *argv*, by default the process's own arguments; return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    _open_what_is_closed()
    _print_anywhere()
    try:
        args = parse(arguments)
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        return _leave_quietly()
    except ChannelIndexError as error:
        return _failed(arguments, str(error), exits.code_for(error))
    except Exception as error:  # noqa: BLE001 - the top of the program: no error may reach the user as a traceback
        if missing := _missing_extra(error, _command_in(arguments)):
            return _failed(arguments, str(missing), exits.code_for(missing))
        reason = f"internal error: {type(error).__name__}: {error} (--debug shows where)"
        return _failed(arguments, reason, exits.INTERNAL)
    return code


def _open_what_is_closed() -> None:
    """Open the null device in place of standard files that are closed: a socket would take the number of one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def _print_anywhere() -> None:
    """Have a terminal or file that is not UTF-8 show `?` for what it cannot show, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command in *argv*; exit with USAGE where its arguments are invalid."""
    chosen = _command_in(argv)
    if chosen is not None and chosen not in COMMANDS:
        near = difflib.get_close_matches(chosen, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        Parser(prog="channelindex").error(f"unknown command {chosen!r}; {hint}")
    parser, parser_by_command = build_parser(() if chosen is None else (chosen,))
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser_by_command[chosen or ""].error(f"unknown argument {' '.join(unknown)}")
    return args


def _command_in(argv: Sequence[str]) -> str | None:
    return next((argument for argument in argv if not argument.startswith("-")), None)


def is_installed(command: str) -> bool:
    """True if all packages are installed that the arguments of *command* need."""
    try:
        importlib.import_module(f"workers.cli.{command}")
    except ModuleNotFoundError as error:
        if _missing_extra(error, command):
            return False
        raise
    return True


def _missing_extra(error: Exception, command: str | None) -> ExtraMissing | None:
    """Name the extra that installs the module that *command* misses; None where *error* is another one."""
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extra = _EXTRA_BY_MODULE.get(module)
    if extra is None:
        return None
    return ExtraMissing(_EXTRAS_BY_COMMAND.get(command or "", extra), module)


def build_parser(complete: Collection[str]) -> tuple[Parser, Mapping[str, Parser]]:
    """Build the parser of all commands, and each command's own. Only those in *complete* get their arguments."""
    parser = Parser(prog="channelindex", description=_SUMMARY)
    parser.add_argument("--version", action="version", version=f"channelindex {__version__}")
    _add_debug(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in complete:
            _complete(command, name)
    return parser, commands.choices


def _complete(command: Parser, name: str) -> None:
    module = importlib.import_module(f"workers.cli.{name}")
    module.configure(command)
    command.set_defaults(run=module.run)
    _add_debug(command)


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _failed(arguments: Sequence[str], reason: str, code: int) -> int:
    if "--debug" in arguments:
        for line in mask_url(traceback.format_exc()).splitlines():
            print(escaped(line), file=sys.stderr)
    _complain(reason)
    return code


def _complain(message: str) -> None:
    """Print *message* as one line on stderr, with the priority of an error under journald."""
    priority = "<3>" if logs.goes_to_journal(sys.stderr, os.environ.get("JOURNAL_STREAM", "")) else ""
    with contextlib.suppress(BrokenPipeError):  # nobody reads it: the exit code says it
        print(f"{priority}channelindex: {escaped(mask_url(' '.join(message.split())))}", file=sys.stderr)


def _leave_quietly() -> int:
    """Exit with OK after the reader (`head`, a pager) closed our output, without a complaint at the last flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return exits.OK
