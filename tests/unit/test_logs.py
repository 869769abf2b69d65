"""Log lines: their form, what is bound, what is held back, and that nothing breaks a line in two."""

import io
import json
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from channelindex import logs


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("channelindex")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    logs._bound.clear()


def lines_of(stream: io.StringIO) -> list[dict[str, str]]:
    return [dict(pair.split("=", 1) for pair in shlex.split(line)) for line in stream.getvalue().splitlines()]


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    logs.configure(stream=stream, role="feed_worker", node="n1")
    return stream


def test_a_line_has_time_level_event_bound_fields_and_its_own_in_this_order(stream: io.StringIO) -> None:
    logs.get("feed_worker").info("stream.opened", vb=3, seqno=17)
    (line,) = lines_of(stream)
    assert list(line) == ["ts", "level", "event", "role", "node", "pid", "vb", "seqno"]
    assert (line["level"], line["event"], line["vb"], line["node"]) == ("info", "stream.opened", "3", "n1")


def test_values_are_quoted_so_that_a_line_stays_one_line(stream: io.StringIO) -> None:
    logs.get("x").info(
        "a.b", text='two "words"\nand=more', empty="", nothing=None, yes=True, part=1.23456, raw=b"k\xff"
    )
    assert len(stream.getvalue().splitlines()) == 1
    assert (
        'text="two \\"words\\"\\nand=more" empty="" nothing="" yes=true part=1.235 raw="k\\\\xff"' in stream.getvalue()
    )


def test_json_lines_hold_the_same_fields() -> None:
    stream = io.StringIO()
    logs.configure(style="json", stream=stream, role="supervisor")
    logs.get("x").warning("lease.lost", partition=7, error=ValueError("why"), rest=None)
    line = json.loads(stream.getvalue())
    assert list(line) == ["ts", "level", "event", "role", "pid", "partition", "error", "rest"]
    assert (line["partition"], line["error"], line["rest"]) == (7, "ValueError: why", None)


def test_lines_below_the_level_are_left_out() -> None:
    stream = io.StringIO()
    logs.configure(level="warning", stream=stream)
    logs.get("x").info("a.b")
    logs.get("x").warning("c.d")
    assert [line["event"] for line in lines_of(stream)] == ["c.d"]


def test_an_exception_brings_its_traceback_in_one_line_with_passwords_masked(stream: io.StringIO) -> None:
    try:
        raise ConnectionError("redis://:hunter2@h refused")
    except ConnectionError as error:
        logs.get("x").exception("store.failed", error=error)
    assert len(stream.getvalue().splitlines()) == 1
    assert "Traceback" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_warnings_of_other_libraries_come_in_the_same_form(stream: io.StringIO) -> None:
    logging.getLogger("redis.client").warning("retry %d", 3)
    logging.getLogger("redis.client").info("chatter")
    (line,) = lines_of(stream)
    assert (line["event"], line["msg"], line["node"]) == ("redis.client", "retry 3", "n1")


def test_configuring_again_replaces_and_binding_again_changes(stream: io.StringIO) -> None:
    second = io.StringIO()
    logs.configure(stream=second, role="supervisor")
    logs.bind(role="batch_writer")
    logs.get("x").info("a.b")
    assert stream.getvalue() == ""
    assert lines_of(second)[0]["role"] == "batch_writer"


def test_repeats_are_held_back_and_counted(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("channelindex.logs.time.monotonic", lambda: now)
    log = logs.get("x")
    for number in range(logs.MAX_REPEATS + 10):
        log.warning("source.refused", attempt=number)
    log.info("batch.flushed")
    assert [line["event"] for line in lines_of(stream)] == ["source.refused"] * logs.MAX_REPEATS + ["batch.flushed"]
    now += logs.WINDOW_S
    log.warning("source.refused", attempt=0)
    note, line = lines_of(stream)[-2:]
    assert (note["event"], note["of"], note["lines"], note["level"]) == (
        "log.suppressed",
        "source.refused",
        "10",
        "warning",
    )
    assert line["event"] == "source.refused"


def test_windows_that_ended_are_forgotten() -> None:
    limit = logs.RepeatLimit()
    for number in range(100):
        assert limit.admits(f"event.{number}", 0.0)
    assert limit.expired(logs.WINDOW_S) == []
    assert limit._windows == {}


def test_a_reader_that_went_away_does_not_break_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    logs.configure(stream=Gone())
    logs.get("x").info("a.b")
    assert capsys.readouterr().err == ""


def test_lines_for_the_journal_begin_with_their_priority() -> None:
    stream = io.StringIO()
    logs.configure("debug", stream=stream, with_priority=True)
    log = logs.get("x")
    for tell in (log.debug, log.info, log.warning, log.error):
        tell("a.b")
    assert [line[:4] for line in stream.getvalue().splitlines()] == ["<7>t", "<6>t", "<4>t", "<3>t"]


def test_the_journal_is_known_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        assert logs.goes_to_journal(stream, f"{status.st_dev}:{status.st_ino}")
        assert not logs.goes_to_journal(stream, f"{status.st_dev}:{status.st_ino + 1}")
        assert not logs.goes_to_journal(stream, "")
    assert not logs.goes_to_journal(io.StringIO(), "1:2")
