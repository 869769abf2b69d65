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
from workers.cli.status import StatusReader
from workers.cli.top_model import Trend
from workers.cli.top_screen import screen

_UNBOUNDED = 1_000_000

_EPILOG = """\
examples:
  channelindex top --config /etc/channelindex/orders.toml
  channelindex top --interval 0.5

Ctrl-C ends it. Nodes report every third of coordination.ttl_s; the stable clock
is read at each interval. For scripts: channelindex status --json.
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
    console = Console(file=sys.stdout, highlight=False)
    if not (args.once or console.is_terminal):
        raise InputInvalid("top needs a terminal; use --once, or channelindex status --json for scripts")
    trend = Trend()
    with ExitStack() as stack:
        reader = stack.enter_context(closing(StatusReader(config)))
        live = None if args.once else stack.enter_context(Live(console=console, screen=True, auto_refresh=False))
        left = 2 if args.once else -1
        while left:
            left -= 1
            try:
                state, stable = all_escaped(reader.read()), reader.stable()
            except Transient as error:
                picture: RenderableType = Text(escaped(f"no answer: {error}"))
            else:
                trend.add(time.monotonic(), stable)
                height = console.height if live else _UNBOUNDED
                picture = screen(state, trend, console.width, height, clock=time.strftime("%H:%M:%S"))
            if live:
                live.update(picture, refresh=True)
            elif not left:
                console.print(picture)
            if left:
                time.sleep(args.interval)
    return exits.OK
