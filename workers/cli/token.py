"""`channelindex token`: makes, lists and revokes the tokens of `channelindex serve`."""

import argparse
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from channelindex import exits
from channelindex.errors import ConfigInvalid, InputInvalid, OutputFailed
from workers.cli import options, output
from workers.serving.grants import Access, line_of, new_token, parse_file, read_file

_EPILOG = """\
example:
  channelindex token new billing --channels orders invoices
  channelindex token new team --channels 'team-*' --rate 50
  channelindex token list
  channelindex token revoke billing

A token is printed once and kept nowhere: the file has its SHA-256 alone.
Services read the file again within a second; feeds of a revoked token end.
A grant is a channel's name, or ends in one * and stands for all that begin
so; the channel * itself needs the grant '*'.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument("action", choices=("new", "list", "revoke"), help="what to do")
    parser.add_argument("name", nargs="?", metavar="NAME", help="whose token it is; not for list")
    parser.add_argument(
        "--channels", nargs="+", metavar="CHANNEL", default=(), help="what a new token may read; a trailing * is any"
    )
    parser.add_argument(
        "--rate", type=options.seconds, metavar="N", help="requests per second of a new token (default: any)"
    )
    parser.add_argument(
        "--proxy",
        action="store_true",
        help="the new token is for a proxy, which names its user's channels in the header Channelindex-Channels",
    )
    parser.add_argument("--file", type=Path, metavar="FILE", help="file of tokens (default: serve.tokens_file)")
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    path: Path = args.file or _configured(args)
    if args.action == "list":
        _list(path, as_json=args.json)
        return exits.OK
    if not args.name:
        raise InputInvalid(f"token {args.action} needs a NAME")
    if args.action == "new":
        token = new_token()
        line = line_of(args.name, token, args.channels, args.rate, is_proxy=args.proxy)
        _change(path, lambda text: _with(text, args.name, line, path))
        output.line(token)
    else:
        _change(path, lambda text: _without(text, args.name, path))
    return exits.OK


def _configured(args: argparse.Namespace) -> Path:
    configured = options.config_of(args, (), read_passwords=False).serve.tokens_file
    if not configured:
        raise ConfigInvalid("serve.tokens_file is not set: give it in the file, with --set, or use --file")
    return Path(configured)


def _list(path: Path, *, as_json: bool) -> None:
    tokens = sorted(parse_file(read_file(path), path).values())
    if as_json:
        output.json_line([_as_json(access) for access in tokens])
    else:
        rows = [(access.name, " ".join(access.grants), access.rate or "-", _kind(access)) for access in tokens]
        output.table(("name", "channels", "requests/s", "kind"), rows)


def _as_json(access: Access) -> dict[str, object]:
    return {"name": access.name, "channels": access.grants, "rate": access.rate, "proxy": access.is_proxy}


def _kind(access: Access) -> str:
    return "proxy" if access.is_proxy else "client"


def _change(path: Path, changed: Callable[[str], str]) -> None:
    """Replace the file by what *changed* makes of its text, whole; one at a time, and never by a malformed one."""
    with _locked(path):
        before = read_file(path) if path.exists() else ""
        after = changed(before if before.endswith("\n") or not before else f"{before}\n")
        parse_file(after, path)
        temporary = path.with_name(f"{path.name}.next")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                _like(path, file.fileno())
                file.write(after)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise OutputFailed(f"{path} cannot be written: {error.strerror}") from error


def _like(path: Path, descriptor: int) -> None:
    """Give the new file the owner and mode of the old one, so that a service can go on reading it."""
    if path.exists():
        status = path.stat()
        os.fchmod(descriptor, status.st_mode & 0o640)
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, status.st_uid, status.st_gid)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise OutputFailed(f"{path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _with(text: str, name: str, line: str, path: Path) -> str:
    if name in {access.name for access in parse_file(text, path).values()}:
        raise InputInvalid(f"{path}: there is a token {name} already: revoke it first, or give this one another name")
    return f"{text}{line}\n"


def _without(text: str, name: str, path: Path) -> str:
    lines = text.splitlines(keepends=True)
    left = [line for line in lines if line.lstrip().startswith("#") or line.split()[:1] != [name]]
    if len(left) == len(lines):
        raise InputInvalid(f"{path}: there is no token {name}")
    return "".join(left)
