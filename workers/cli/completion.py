"""`channelindex completion`: prints what a shell needs to complete commands and options."""

import argparse
from pathlib import Path

import shtab

from channelindex import exits
from workers import cli
from workers.cli import options, output

SHELLS = ("bash", "zsh")

_EPILOG = """\
examples:
  source <(channelindex completion bash)
  channelindex completion zsh > ~/.zfunc/_channelindex

`make install` puts both where bash and zsh look for them.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")


def run(args: argparse.Namespace) -> int:
    """Print the script for one shell."""
    output.paragraph(script(args.shell))
    return exits.OK


def script(shell: str) -> str:
    """The script for *shell*, of the commands that this installation can run."""
    parser, parser_by_command = cli.build_parser([name for name in cli.COMMANDS if cli.is_installed(name)])
    for command in parser_by_command.values():
        _complete_paths(command)
    return shtab.complete(parser, shell=shell)


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Have files and folders completed where an argument is one."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to list them
        kinds = {Path: shtab.FILE, options.folder: shtab.DIRECTORY}
        if action.type in kinds:
            action.complete = kinds[action.type]  # type: ignore[attr-defined]  # the way shtab reads it
