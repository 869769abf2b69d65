"""Writes log lines: one fact each, `key=value` pairs or JSON, on standard output. Files and rotation are journald's.

What goes straight to journald begins with a priority, `<4>`, which journald takes off again (sd-daemon(3)).

    log = logs.get("feed_worker")
    log.info("stream.opened", vb=3, seqno=17)

`event` is a stable dotted name; prose, where it helps, goes into `msg`. Fields that a whole process shares (node, role)
are bound once. Never log a document's body or a credential; passwords in URLs are masked all the same.
The standard library's logging lies underneath, so that the lines of other libraries come out in the same form.
"""

import json
import logging
import os
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from channelindex.terminal import escaped
from channelindex.urls import mask_url

MAX_REPEATS = 64
"""Lines of one event that pass in one window: one for each partition, of which there are 64 by default."""

WINDOW_S = 10.0
"""Length of a window. Keeps a loop that fails a thousand times a second from filling the disk."""

_ROOT = "channelindex"
_PLAIN = re.compile(r'[^\s"=\\\x00-\x1f\x7f]+')
_PRIORITY_BY_LEVEL = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
_NOTICE = 5
_bound: dict[str, Any] = {}

logging.getLogger(_ROOT).addHandler(logging.NullHandler())  # a library is silent until its program asks for lines


class EventLog:
    """Logs the events of one part of the program; a thin front of `logging.Logger`."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: Any) -> None:
        """Log details for fault finding."""
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Log ownership, lifecycle, rollback."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Log a fault that the program handled."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Log a fault that needs a person."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log an error with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, event, fields, with_trace=True)

    def _log(self, level: int, event: str, fields: dict[str, Any], *, with_trace: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", event, exc_info=with_trace, extra={"event": event, "fields": fields})


def get(name: str) -> EventLog:
    """The log of the part *name*. Cheap; ask for it at the top of a module."""
    return EventLog(logging.getLogger(f"{_ROOT}.{name}"))


def goes_to_journal(stream: TextIO, journal_stream: str) -> bool:
    """True if *stream* is the connection to journald that JOURNAL_STREAM names (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:  # no file underneath
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"


def configure(
    level: str = "info",
    style: str = "logfmt",
    stream: TextIO | None = None,
    *,
    with_priority: bool = False,
    **fields: Any,
) -> None:
    """Send lines from *level* on to *stream* (standard output), each with *fields*. Replaces what was set before.

    Call it once per process; a child that was forked keeps its parent's and only calls `bind`.
    """
    assert style in {"logfmt", "json"}
    _bound.clear()
    bind(**fields)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _LineHandler)]:
        root.removeHandler(handler)
    root.addHandler(_LineHandler(stream or sys.stdout, style, with_priority=with_priority))
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(level.upper())


def bind(**fields: Any) -> None:
    """Add *fields* to every later line of this process, or change them."""
    _bound.update(fields)


class _LineHandler(logging.StreamHandler[TextIO]):
    """Writes records as lines, suppresses repeats, and later logs how many it suppressed."""

    def __init__(self, stream: TextIO, style: str, *, with_priority: bool) -> None:
        super().__init__(stream)
        self._with_priority = with_priority
        self._encode = _json_line if style == "json" else _logfmt_line
        self._repeats = RepeatLimit()

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record*, unless its event has used up its window. Runs under the handler's lock."""
        now = time.monotonic()
        for event, count in self._repeats.expired(now):
            note = {"event": "log.suppressed", "fields": {"of": event, "lines": count, "window_s": WINDOW_S}}
            super().emit(logging.makeLogRecord({"levelname": "WARNING", "name": _ROOT, **note}))
        if self._repeats.admits(_event_of(record), now):
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The line of *record*, without its end."""
        priority = f"<{_PRIORITY_BY_LEVEL.get(record.levelname, _NOTICE)}>" if self._with_priority else ""
        return priority + self._encode(_line_of(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop the line where the reader of our output is gone; all other failures are logging's to report."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class RepeatLimit:
    """Lets MAX_REPEATS lines of one event pass in WINDOW_S seconds and counts the rest. Bounded by the events alive."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[float, int]] = {}  # event -> end of its window, lines seen in it

    def admits(self, event: str, now: float) -> bool:
        """Count a line of *event* at *now*; return true if it may pass."""
        end, seen = self._windows.get(event, (now + WINDOW_S, 0))
        self._windows[event] = (end, seen + 1)
        return seen < MAX_REPEATS

    def expired(self, now: float) -> list[tuple[str, int]]:
        """Forget the windows that ended by *now*; the events of which lines were held back, and how many."""
        over = [event for event, (end, _) in self._windows.items() if end <= now]
        counts = [(event, self._windows.pop(event)[1] - MAX_REPEATS) for event in over]
        assert not any(event in self._windows for event in over)
        return [(event, held_back) for event, held_back in counts if held_back > 0]


def _event_of(record: logging.LogRecord) -> str:
    return getattr(record, "event", record.name)


def _line_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a line in the order in which they are written."""
    stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    line: dict[str, Any] = {"ts": stamp.replace("+00:00", "Z"), "level": record.levelname.lower()}
    line["event"] = _event_of(record)
    line |= _bound
    line["pid"] = record.process
    if hasattr(record, "fields"):
        line |= {name: _plain(value) for name, value in record.fields.items()}
    else:  # another library's record
        line["msg"] = mask_url(record.getMessage())
    if record.exc_info:
        line["trace"] = mask_url(logging.Formatter().formatException(record.exc_info))
    return line


def _plain(value: Any) -> Any:
    """*value* as something that both forms can write."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, BaseException):
        return mask_url(f"{type(value).__name__}: {value}")
    return mask_url(str(value))


def _json_line(line: dict[str, Any]) -> str:
    return escaped(msgspec.json.encode(line, enc_hook=str).decode())


def _logfmt_line(line: dict[str, Any]) -> str:
    return " ".join(f"{name}={_logfmt_value(value)}" for name, value in line.items())


def _logfmt_value(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)
    is_plain = _PLAIN.fullmatch(text) and escaped(text) == text
    return text if is_plain else escaped(json.dumps(text, ensure_ascii=False))
