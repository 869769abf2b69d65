"""Tests in an interpreter of their own: one that has imported all tests forks ten times as slowly."""

import functools
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.leaks import no_leaks

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 100.0
"""Below pytest's: what the test said until then is shown."""


def lean(test: Callable[[], None]) -> Callable[[], None]:
    """Have *test*, a function of a module that takes no fixtures, run by an interpreter of its own."""

    @functools.wraps(test)
    def run() -> None:
        command = [sys.executable, "-W", "error", "-m", __name__, test.__module__, test.__name__]
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


if __name__ == "__main__":
    with no_leaks():
        getattr(importlib.import_module(sys.argv[1]), sys.argv[2]).__wrapped__()
