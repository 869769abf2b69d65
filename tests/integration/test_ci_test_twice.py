"""What CI makes of tests that fail beside others: only few, of processes, that pass alone are forgiven, and named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci/test_twice.py"
OPTIONS = "--import-mode=importlib -p no:cacheprovider -p xdist.plugin"
PASSES = "def test_good(): pass\n"
FAILS = "def test_bad(): assert False\n"
FAILS_ONCE = """
from pathlib import Path
import pytest
@pytest.mark.parametrize("n", range({n}))
def test_at_times(n):
    mark = Path(f"{{Path(__file__).stem}}-{{n}}")
    if not mark.exists():
        mark.touch()
        assert False
"""
SKIPPED_ALONE = """
from pathlib import Path
import pytest
def test_hides():
    if Path("failed").exists():
        pytest.skip("not again")
    Path("failed").touch()
    assert False
"""
DIES_ONCE = """
import os
from pathlib import Path
def test_dies():
    if not Path("died").exists():
        Path("died").touch()
        os._exit(3)
"""


def run(folder: Path, files: dict[str, str], *options: str) -> tuple[int, list[str]]:
    """The exit code for a suite of *files*, and the tests that are named as flaky."""
    (folder / "pytest.ini").write_text(
        "[pytest]\naddopts = --import-mode=importlib -p no:cacheprovider -p xdist.plugin\n"
    )
    for name, code in files.items():
        path = folder / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    command = [sys.executable, str(SCRIPT), "flaky", *(options or ("-n0",))]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # it takes longer than these tests do
    done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    flaky = folder / "flaky"
    return done.returncode, flaky.read_text().splitlines() if flaky.exists() else []


def test_what_passes_is_run_once(tmp_path: Path) -> None:
    assert run(tmp_path, {"integration/test_a.py": PASSES}) == (0, [])


def test_what_fails_beside_others_and_passes_alone_is_named(tmp_path: Path) -> None:
    once = FAILS_ONCE.format(n=1)
    files = {"integration/test_a.py": once, "chaos/test_b.py": once, "unit/test_c.py": PASSES}
    code, named = run(tmp_path, files)
    assert code == 0
    assert sorted(named) == [f"tests/{name}.py::test_at_times[0]" for name in ("chaos/test_b", "integration/test_a")]


@pytest.mark.parametrize(
    "files",
    [
        {"unit/test_a.py": FAILS_ONCE.format(n=1), "integration/test_b.py": FAILS_ONCE.format(n=1)},
        {"integration/test_a.py": FAILS, "integration/test_b.py": FAILS_ONCE.format(n=1)},
        {"integration/test_a.py": FAILS_ONCE.format(n=6)},
        {"integration/test_a.py": FAILS_ONCE.format(n=1), "integration/test_b.py": "import nothing_of_that_name"},
        {"integration/test_a.py": SKIPPED_ALONE},
        {},
    ],
    ids=["unit", "fails alone", "many", "not collected", "skipped alone", "no test"],
)
def test_nothing_else_is_forgiven(tmp_path: Path, files: dict[str, str]) -> None:
    code, named = run(tmp_path, files)
    assert code != 0
    assert named == []


def test_a_process_that_died_is_not_forgiven(tmp_path: Path) -> None:
    code, named = run(tmp_path, {"integration/test_a.py": DIES_ONCE}, "-n1")
    assert code != 0
    assert named == []
