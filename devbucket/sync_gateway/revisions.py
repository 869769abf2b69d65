"""A revision of a document as a client sends it, and the files that hold one per line."""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from channelindex.decode.principals import is_internal
from channelindex.errors import InputInvalid

MAX_KEY_BYTES = 250
"""Longer keys are refused by the bucket."""

_Rev = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,8}-.+$", max_length=100)]
_Name = Annotated[str, msgspec.Meta(min_length=1)]


class Revision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One revision. `rev` is "generation-digest"; `channels` are those it is in, though a deletion is in none."""

    id: _Name
    rev: _Rev
    channels: tuple[_Name, ...]
    body: dict[str, Any] = {}
    deleted: bool = False

    def __post_init__(self) -> None:
        """Refuse what Sync Gateway would refuse."""
        if len(self.id.encode()) > MAX_KEY_BYTES:
            raise ValueError(f"id of {len(self.id.encode())} bytes, at most {MAX_KEY_BYTES} are possible")
        if is_internal(self.id.encode()):
            raise ValueError("this id is reserved for internal documents")
        if "_sync" in self.body:
            raise ValueError("the body must not have a property _sync")


def generation(rev: str) -> int:
    """Return the number before the dash of a revision id; 0 for an id without one."""
    number = rev.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def read_revisions(path: Path) -> Iterator[Revision]:
    """Return the revisions in the file *path*, JSON lines, gzipped if its name ends in ".gz".

    Raises:
        InputInvalid: the file cannot be read, or a line is no revision; those before it were yielded.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            yield from _parse_lines(path, lines)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputInvalid(f"{path}: cannot be read: {reason}") from error


def _parse_lines(path: Path, lines: Iterable[bytes]) -> Iterator[Revision]:
    parse = msgspec.json.Decoder(Revision).decode
    for number, line in enumerate(lines, start=1):
        try:
            revision = parse(line)
        except (ValueError, RecursionError) as error:
            raise InputInvalid(f"{path}:{number}: not a revision: {error}") from error
        yield revision
