"""Fixtures of tests with whole programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kernel_pairs import build_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from the source distribution. `WHOLE_FILES` use it: it is made once for each."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    script = build_script()
    # Where a kernel can be built, a wheel without it is an error that says why.
    environment = os.environ if script.missing() else {**os.environ, script.VARIABLE: "on"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    print(f"\n$ {' '.join(command)}", done.stdout, sep="\n")
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made
