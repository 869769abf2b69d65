"""Shows the progress of the demo: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from workers.cli.screens import Screen

REDRAW_S = 0.25
PLAIN_LINE_S = 2.0
"""Interval of progress lines without a terminal (a pipe, CI)."""


class DemoScreen:
    """Progress of the demo, on stderr, so that standard output has the result alone."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Screen(file=sys.stderr, quiet=quiet, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._started = time.monotonic()
        self._next_at = 0.0
        self._measured_at = 0.0
        self._events_by_pid: dict[int, int] = {}
        self._rate = 0.0

    def __enter__(self) -> Self:
        if self._live and not self._quiet:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(f"[{time.monotonic() - self._started:5.1f} s] {text}", markup=False, soft_wrap=True)

    def freeze(self, status: dict[str, Any], n_written: int, n_total: int) -> None:
        """Draw the last picture, above which nothing is printed any more."""
        self._next_at = 0.0
        self.show(status, n_written, n_total)
        if self._live:
            self._live.stop()

    def show(self, status: dict[str, Any], n_written: int, n_total: int) -> None:
        """Redraw, if it is time, from the node's last status report and the number of revisions written."""
        now = time.monotonic()
        if self._quiet or not status or now < self._next_at:
            return
        self._next_at = now + (REDRAW_S if self._live else PLAIN_LINE_S)
        self._measure(status)
        headline = (
            f"{n_written:,} of {n_total:,} revisions written · {self._rate:,.0f} events/s · "
            f"lag {status['lag']:,} · in flight {status['in_flight']:,}"
        )
        if self._live:
            self._live.update(Group(Text(headline), _processes(status)), refresh=True)
        else:
            self.say(headline)

    def _measure(self, status: dict[str, Any]) -> None:
        """Events per second between two statuses, over the workers that lived at both."""
        events_by_pid = {process["pid"]: process.get("events", 0) for process in status["processes"]}
        seconds = status["at"] - self._measured_at
        if seconds > 0:
            known = events_by_pid.keys() & self._events_by_pid.keys()
            self._rate = sum(events_by_pid[pid] - self._events_by_pid[pid] for pid in known) / seconds
            self._measured_at, self._events_by_pid = status["at"], events_by_pid


def _processes(status: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("process", "pid", "up", "restarts", "work"):
        table.add_column(heading, justify="right" if heading in {"pid", "up", "restarts"} else "left")
    for process in status["processes"]:
        table.add_row(
            f"{process['role']} {process['number']}",
            str(process["pid"]),
            f"{process['age_s']:.0f} s",
            str(process["restarts"]),
            _work(process),
        )
    return table


def _work(process: dict[str, Any]) -> str:
    match process["role"]:
        case "feed_worker":
            return f"{process['events']:,} events, {process['entries']:,} entries, lag {process['lag']:,}"
        case "batch_writer":
            return f"{process['batches']:,} batches, {process['channels']:,} appends, ring {process['ring_fill']:,} B"
        case "compactor":
            return f"{process['compacted']:,} channels compacted"
    return "leases"
