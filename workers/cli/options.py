"""Defines the arguments that several commands share, and loads the configuration that they name."""

import argparse
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from channelindex.config import Config, load_config
from channelindex.errors import InputInvalid
from channelindex.settings import Value

DEFAULT_FILE = Path("channelindex.toml")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config and --set."""
    group = parser.add_argument_group("configuration")
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration file (default: ./channelindex.toml if there is one, else the environment alone)",
    )
    group.add_argument(
        "--set",
        type=_assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set one key, such as index.name=test; wins over file and environment",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def config_of(
    args: argparse.Namespace,
    required: Collection[str],
    extra: Mapping[str, Value] | None = None,
    *,
    read_passwords: bool = True,
) -> Config:
    """Load the configuration that *args* name. *extra* are keys that the command's own arguments set."""
    path = args.config or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    return load_config(path, os.environ, {**dict(args.set), **(extra or {})}, required, read_passwords=read_passwords)


def folder(text: str) -> Path:
    """A folder, as an argument's type; `made` makes it."""
    if "\0" in text or not text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return Path(text).absolute()


def made(path: Path) -> Path:
    """*path* as a folder that is there.

    Raises:
        InputInvalid: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputInvalid(f"{path} is no folder: name one, or a path where there is nothing yet") from error
    except OSError as error:
        raise InputInvalid(f"{path}: {error.strerror}") from error
    return path


def whole(text: str) -> int:
    """A whole number from 0 on, as an argument's type."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 on, as an argument's type."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def port(text: str) -> int:
    """A TCP port, or 0 for any, as an argument's type."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def seconds(text: str) -> float:
    """A time in seconds above 0, as an argument's type."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise argparse.ArgumentTypeError(f"{text!r} is not section.key=value")
    return key.strip(), value
