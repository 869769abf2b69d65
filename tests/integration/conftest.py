"""Fixtures of tests with whole programs."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import starting
from tests.support.kernel_pairs import build_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have the tests that are marked so start the program by its entry point."""
    starting.forks = starting.MAY_FORK and item.get_closest_marker("real_start") is None


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from the source distribution by the first process that asks, for all of the run."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "dist"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return next(folder.glob("*.whl"), None) or _build(folder)


def _build(folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    script = build_script()
    # Where a kernel can be built, a wheel without it is an error that says why.
    environment = os.environ if script.missing() else {**os.environ, script.VARIABLE: "on"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    print(f"\n$ {' '.join(command)}", done.stdout, sep="\n")
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made
