"""`make demo` and its like name the packages that pip comes to, and show what it said where it failed."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[2] / ".ci" / "set_up.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("set_up", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("line", "package"),
    [
        ("Collecting rich>=13.9 (from channelindex==0.2.0)\n", "rich"),
        ("Collecting google-crc32c>=1.5 (from channelindex==0.2.0)\n", "google-crc32c"),
        ("Processing /files/google_crc32c-1.9.0-cp311-cp311-linux.whl (from channelindex==0.2.0)\n", "google-crc32c"),
        ("Processing /files/tree\n", None),
        ("Requirement already satisfied: redis>=7.2 in /x (from channelindex==0.2.0) (8.1.0)\n", None),
        ("  Downloading rich-15.0.0-py3-none-any.whl (310 kB)\n", None),
    ],
)
def test_a_line_of_pip_that_begins_a_package_names_it(line: str, package: str | None) -> None:
    assert load().package_of(line) == package


def test_a_failure_shows_what_pip_said_and_where_the_rest_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = tmp_path / "env" / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.touch()
    python = pip.with_name("python")
    python.write_text("#!/bin/sh\necho Collecting rich\necho no such package >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert load().set_up(Path("env"), "dev") == 3
    out, err = capsys.readouterr()
    assert "rich" in out
    assert "no such package" in err
    assert (tmp_path / "env" / "set-up.log").read_text().endswith("no such package\n")
