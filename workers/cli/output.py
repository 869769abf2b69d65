"""Prints results: JSON for programs, tables for people.

Keys, channels and reasons come from outside: control characters in them are escaped, so they stay on their line and no
terminal obeys them.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Self

import msgspec

from channelindex.errors import OutputFailed
from channelindex.terminal import escaped

RED, YELLOW = "31", "33"
"""Colours on a terminal (ECMA-48, "select graphic rendition")."""


class Tinted(str):  # noqa: SLOT000 - mypy knows no slots of a str that are set in __new__
    """A cell of a table that has a colour on a terminal; none where *tint* is ""."""

    tint: str

    def __new__(cls, text: str, tint: str) -> Self:
        """Make *text* with *tint*, one of the colours above."""
        made = super().__new__(cls, text)
        made.tint = tint
        return made


class ReaderGone(Exception):
    """The reader of our standard output (`head`, a pager) has closed it; stop."""


def line(text: str) -> None:
    """Print one line unbuffered, so that a reader behind a pipe gets it at once."""
    _put(escaped(text))


def _put(text: str) -> None:
    """Print one line in which nothing is to be escaped any more."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        raise OutputFailed(f"standard output cannot be written: {error.strerror or error}") from error


def paragraph(text: str) -> None:
    """Print a text of several lines."""
    for each in text.splitlines():
        line(each)


def warn(text: str) -> None:
    """Print one line on standard error, for people; not part of the result."""
    print(f"channelindex: {escaped(text)}", file=sys.stderr, flush=True)


def json_line(value: object) -> None:
    """Print *value* as JSON on one line."""
    line(msgspec.json.encode(value).decode())


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print *rows* in columns; on a terminal that is too narrow, each row as a block."""
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # no-color.org
    for text in table_lines(header, rows, shutil.get_terminal_size((0, 0)).columns, colours=colours):
        _put(text)


def table_lines(
    header: Sequence[str], rows: Iterable[Sequence[object]], width: int, *, colours: bool = False
) -> list[str]:
    """The lines of a table that is at most *width* characters wide; 0 for one of any width."""
    texts = [[_escaped_cell(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *texts, strict=True)]
    if width and sum(widths) + 2 * (len(widths) - 1) > width:
        return _blocks(header, texts)
    return [_columns(row, widths, colours=colours) for row in (header, *texts)]


def _escaped_cell(cell: object) -> str:
    text = escaped(str(cell))
    return Tinted(text, cell.tint) if isinstance(cell, Tinted) else text


def _columns(row: Sequence[str], widths: Sequence[int], *, colours: bool) -> str:
    return "  ".join(_padded(cell, width, colours=colours) for cell, width in zip(row, widths, strict=True)).rstrip()


def _padded(cell: str, width: int, *, colours: bool) -> str:
    padded = cell.ljust(width)
    return f"\x1b[{cell.tint}m{padded}\x1b[0m" if colours and isinstance(cell, Tinted) and cell.tint else padded


def _blocks(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    label = max(map(len, header)) + 2
    lines: list[str] = []
    for row in rows:
        lines += [f"{name + ':':<{label}}{cell}".rstrip() for name, cell in zip(header, row, strict=True)]
        lines.append("")
    return lines[:-1]
