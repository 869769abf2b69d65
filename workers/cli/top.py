"""`channelindex top`: shows the whole cluster live."""

import argparse
import sys
import time
from contextlib import ExitStack, closing

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from channelindex import exits
from channelindex.config import REQUIRED_TO_SEE_NODES
from channelindex.errors import InputInvalid, Transient
from channelindex.terminal import all_escaped, escaped
from workers.cli import options
from workers.cli.screens import Screen
from workers.cli.status import StatusReader
from workers.cli.top_keys import Choice, Keyboard, pressed
from workers.cli.top_model import State, Trend, nodes
from workers.cli.top_screen import screen

_UNBOUNDED = 1_000_000

_EPILOG = """\
examples:
  channelindex top --config /etc/channelindex/orders.toml
  channelindex top --interval 0.5

keys: q or Ctrl-C end it, s changes the order of the processes (fullest ring, CPU,
memory, node), n walks through the nodes, p and c give the room to partitions and
to channels, and back.

Nodes report every third of coordination.ttl_s; the stable clock is read at each
interval. For scripts: channelindex status --json.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--interval",
        type=options.seconds,
        default=1.0,
        metavar="S",
        help="seconds between updates (default: %(default)g)",
    )
    parser.add_argument("--once", action="store_true", help="read twice, an interval apart, print once and exit")
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Show the cluster until Ctrl-C."""
    config = options.config_of(args, REQUIRED_TO_SEE_NODES)
    console = Screen(file=sys.stdout, highlight=False)
    if not (args.once or console.is_terminal):
        raise InputInvalid("top needs a terminal; use --once, or channelindex status --json for scripts")
    with ExitStack() as stack:
        reader = stack.enter_context(closing(StatusReader(config)))
        if args.once:
            _print_once(reader, console, args.interval)
            return exits.OK
        live = stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
        _watch(reader, live, stack.enter_context(Keyboard()), args.interval)
    return exits.OK


def _print_once(reader: StatusReader, console: Console, interval_s: float) -> None:
    """Read twice, so that there are rates, and print."""
    trend = Trend()
    _read(reader, trend)
    time.sleep(interval_s)
    console.print(screen(_read(reader, trend), trend, console.width, _UNBOUNDED, clock=_clock()))


def _watch(reader: StatusReader, live: Live, keyboard: Keyboard, interval_s: float) -> None:
    """Draw anew at each interval and each key, until `q`."""
    trend, view, state, problem, read_at = Trend(), Choice(), None, "", float("-inf")
    while not view.is_over:
        now = time.monotonic()
        if now >= read_at + interval_s:
            read_at = now
            try:
                state, problem = _read(reader, trend), ""
            except Transient as error:
                problem = escaped(f"no answer: {error}")
        picture: RenderableType = Text(problem)
        if state and not problem:
            size = live.console.size
            picture = screen(state, trend, size.width, size.height, _clock(), view)
        live.update(picture, refresh=True)
        for key in keyboard.wait(max(0.0, read_at + interval_s - time.monotonic())):
            view = pressed(view, key, [node["node"] for node in nodes(state)] if state else [])


def _read(reader: StatusReader, trend: Trend) -> State:
    state: State = all_escaped(reader.read())
    trend.add(time.monotonic(), reader.stable())
    trend.note(state)
    return state


def _clock() -> str:
    return time.strftime("%H:%M:%S")
