"""The keys of `channelindex top`: what each does to the view, and how they are read while a picture is shown."""

import os
import select
import sys
import termios
import tty
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

OVERVIEW, PARTITIONS, CHANNELS = "overview", "partitions", "channels"
SORTS = ("ring", "cpu", "memory", "node")
"""Orders of the processes: fullest rings, busiest, largest, by name. Stalled ones are first in any."""
HELP = "q quit  s sort  n node  p partitions  c channels"


class Choice(NamedTuple):
    """The part that a person wants to see: *node* "" is all of them, *focus* has the room that overview shares out."""

    sort: str = SORTS[0]
    node: str = ""
    focus: str = OVERVIEW
    is_over: bool = False


def pressed(view: Choice, key: str, nodes: Sequence[str]) -> Choice:
    """The view after *key*; the same where it means nothing. *nodes* are the names to walk through."""
    match key:
        case "q" | "Q":
            return view._replace(is_over=True)
        case "s":
            return view._replace(sort=SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)])
        case "n":
            stops = ["", *nodes]
            at = stops.index(view.node) if view.node in stops else 0
            return view._replace(node=stops[(at + 1) % len(stops)])
        case "p":
            return view._replace(focus=OVERVIEW if view.focus == PARTITIONS else PARTITIONS)
        case "c":
            return view._replace(focus=OVERVIEW if view.focus == CHANNELS else CHANNELS)
    return view


class Keyboard:
    """Gives single keys of the terminal that is standard input, without echo; none where that is no terminal."""

    def __enter__(self) -> Self:
        """Take the terminal over."""
        self._saved = None
        if sys.stdin.isatty():
            self._saved = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._saved is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)

    def wait(self, timeout_s: float) -> str:
        """Wait for keys, at most *timeout_s*; return those that were pressed."""
        inputs = [] if self._saved is None else [sys.stdin]
        ready, _, _ = select.select(inputs, [], [], timeout_s)
        return os.read(sys.stdin.fileno(), 64).decode(errors="replace") if ready else ""
