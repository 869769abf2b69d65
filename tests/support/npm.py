"""Packages of npm that tests run: installed once for each package-lock.json, in a folder that outlives the run."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CLIENTS = Path(__file__).resolve().parents[1] / "clients"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "channelindex-tests"
INSTALL_S = 300
"""For a slow registry; what is installed already takes no time."""


def folder_with_packages() -> Path:
    """A folder whose node_modules has what `tests/clients/package-lock.json` names.

    Skips the test that asks where there is no Node.js, and fails it in CI, which has to have one.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        missing = "Node.js and npm are not installed (Debian: apt-get install nodejs npm): no real client was run"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    lock = (CLIENTS / "package-lock.json").read_bytes()
    folder = _CACHE / f"npm-{hashlib.sha256(lock).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (folder / "installed").exists():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(CLIENTS / name, folder)
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S)
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "installed").touch()
    return folder
