"""What others wrote stays text: on one line, and nothing that a terminal obeys."""

import io
import json
import logging

import orjson
import pytest
from rich.console import Console

from channelindex import logs
from channelindex.terminal import all_escaped, escaped
from workers.cli import output
from workers.cli.top_model import Trend
from workers.cli.top_screen import screen

HOSTILE = [
    "a\nlevel=error event=forged",
    "a\r\nb",
    "\x1b[2J\x1b[31mred",
    "\x9b31m as one character",
    "\x85 next line",
    "\u2028\u2029 line separators",
    "\u202egnp.exe",
    "zero\u200bwidth\ufeff",
    "\x7f\b\b\bdel",
    "half \ud800 pair",
]
ODD_BUT_SEEN = 'ü ñ 漢字 😀 "quoted" \\n back\\slash   spaces'


def is_harmless(text: str) -> bool:
    return len(text.splitlines()) == 1 and all(each.isprintable() or each == "\xa0" for each in text)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_a_terminal_obeys_is_shown_instead(text: str) -> None:
    shown = escaped(text)
    assert is_harmless(shown)
    assert escaped(shown) == shown
    shown.encode()


def test_what_is_only_text_stays_as_it_is() -> None:
    assert escaped(ODD_BUT_SEEN) == ODD_BUT_SEEN


@pytest.mark.parametrize("text", [each for each in HOSTILE if "\ud800" not in each], ids=ascii)
def test_json_says_the_same_with_it(text: str) -> None:
    shown = escaped(orjson.dumps({text: [text]}).decode())
    assert is_harmless(shown)
    assert orjson.loads(shown) == {text: [text]}


@pytest.mark.parametrize("style", ["logfmt", "json"])
@pytest.mark.parametrize("text", [each for each in HOSTILE if "\ud800" not in each], ids=ascii)
def test_a_key_cannot_forge_a_log_line(text: str, style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    stream = io.StringIO()
    logs.configure(style=style, stream=stream)
    logs.get("x").error("document.refused", key=text, raw=text.encode())
    assert is_harmless(stream.getvalue().rstrip("\n"))
    if style == "json":
        assert json.loads(stream.getvalue())["key"] == text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_key_cannot_forge_what_a_command_prints(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.line(f"document {text} is fine")
    output.table(("key", "reason"), [(text, "why"), ("b", text)])
    output.warn(text)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 4
    assert all(is_harmless(line) for line in (printed.out + printed.err).splitlines())


def test_json_of_a_command_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    values = [each for each in HOSTILE if "\ud800" not in each]
    output.json_line({"keys": values})
    printed = capsys.readouterr().out
    assert is_harmless(printed.rstrip("\n"))
    assert json.loads(printed) == {"keys": values}


@pytest.mark.parametrize("text", [each for each in HOSTILE if "\n" not in each], ids=ascii)
def test_a_channel_cannot_reach_the_terminal_of_top(text: str) -> None:
    process = {"role": "batch_writer", "number": 0, "pid": 1, "restarts": 0, "age_s": 1.0, "silent_s": 0.1}
    hot = {"channel": text, "bytes_per_s": 5, "batch_ms": 1, "percent": 9}
    status = {
        "state": "running",
        "trouble": text,
        "processes": [process | {"store_errors": 0, "batches": 1, "hottest": [hot]}],
    }
    node = {"node": text, "alive": True, "draining": False, "n_partitions": 1, "silent_s": 0.1, "status": status}
    node["heard"] = True
    index = {"name": text, "partitions": 1, "quarantined": 1}
    state = {"index": index, "lag": {"seconds": 0.0}, "nodes": [node], "unowned": [], "partitions": []}
    stream = io.StringIO()
    Console(file=stream, width=150, force_terminal=False).print(screen(all_escaped(state), Trend(), 150, 100, "now"))
    drawn = [line for line in stream.getvalue().splitlines() if line]
    assert all(map(is_harmless, drawn))
    assert any(escaped(text)[:8] in line for line in drawn)


def test_characters_beyond_the_plane_are_escaped_as_json_has_them():
    hidden = "a\U000e0041b"
    assert escaped(hidden) == "a\\udb40\\udc41b"
    assert json.loads(f'"{escaped(hidden)}"') == hidden
