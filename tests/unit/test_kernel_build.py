"""The kernel is built where that is possible, and its absence is one line and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from channelindex import kernel
from tests.support.kernel_pairs import build_script, using

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_compiler_it_says_so_in_one_line_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    target = tmp_path / "kernel.so"
    assert build_script().main(str(target)) == 0
    assert capfd.readouterr().err == (
        f"channelindex is without its compiled kernel, and slower: there is no C compiler {tmp_path}/none\n"
    )
    assert not target.exists()


def test_whoever_asks_for_a_kernel_learns_it_by_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = build_script()
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    monkeypatch.setenv(script.VARIABLE, "on")
    assert script.main(str(tmp_path / "kernel.so")) == 1


def test_a_compiler_that_fails_leaves_the_kernel_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, target = tmp_path / "cc", tmp_path / "kernel.so"
    compiler.write_text("#!/bin/sh\necho 'kernel/scan.c: error: nothing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    target.write_bytes(b"before")
    monkeypatch.setenv("CC", str(compiler))
    script = build_script()
    if script.missing():
        pytest.skip(script.missing())
    assert script.build(target) == f"{compiler}: kernel/scan.c: error: nothing"
    assert script.main("--strict") == 1
    assert target.read_bytes() == b"before"


def test_built_by_any_python_it_takes_sizes_as_the_oldest_one_does(tmp_path: Path) -> None:
    """From 3.13 on the headers name functions that on 3.11 read a size as an int, and then refuse the call."""
    target = tmp_path / "kernel.so"
    reason = build_script().build(target)
    if reason is not None:
        assert reason == build_script().missing()
        return
    names = set(target.read_bytes().split(b"\0"))
    assert {b"_PyArg_ParseTuple_SizeT", b"_Py_BuildValue_SizeT"} <= names
    assert names.isdisjoint({b"PyArg_Parse", b"PyArg_ParseTuple", b"PyArg_ParseTupleAndKeywords", b"Py_BuildValue"})
    assert names.isdisjoint({b"PyObject_CallFunction", b"PyObject_CallMethod"})


def test_what_is_used_is_said_in_words() -> None:
    with using(kernel.OFF):
        assert kernel.chosen() is None
        assert kernel.description().startswith("python (")
    with using(kernel.AUTO):
        assert kernel.description() in {"compiled", "python (not built)"}


@pytest.mark.packaging
def test_without_a_compiler_the_wheel_is_one_for_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    assert "without its compiled kernel, and slower: there is no C compiler" in done.stdout + done.stderr
