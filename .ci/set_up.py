"""Makes the virtual environment of `make`: set_up.py FOLDER EXTRAS installs the project (editable) with EXTRAS into it.

Names each package as pip comes to it. What else pip has to say is in FOLDER/set-up.log, and is shown if it fails.
"""

import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

_PACKAGE = re.compile(r"(?:Collecting ([\w.-]+)|Processing \S*/([\w.]+)-\d)")
"""The lines with which pip begins a package: from an index, or from a file."""
LAST_LINES = 25


def package_of(line: str) -> str | None:
    """The package that pip begins with *line* of its output; None where it begins none."""
    found = _PACKAGE.match(line)
    return (found[1] or found[2]).replace("_", "-") if found else None


def set_up(folder: Path, extras: str) -> int:
    """Make or complete the environment in *folder*; the exit code."""
    begun = time.monotonic()
    version = ".".join(map(str, sys.version_info[:3]))
    print(f"make: setting up {folder} on Python {version} for {extras}:", end="", flush=True)
    if not (folder / "bin" / "pip").exists():
        venv.create(folder, with_pip=True, symlinks=True)
    log = folder / "set-up.log"
    code = _install(folder, extras, log)
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        print("", *lines[-LAST_LINES:], f"make: pip failed; all that it said is in {log}", sep="\n", file=sys.stderr)
    else:
        print(f"\nmake: ready after {time.monotonic() - begun:.0f} s", flush=True)
    return code


def _install(folder: Path, extras: str, log: Path) -> int:
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-color"]
    command = [*pip, "install", "--progress-bar", "off", "--editable", f".[{extras}]"]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        log.open("w", encoding="utf-8") as written,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ, errors="replace"
        ) as process,
    ):
        assert process.stdout
        for line in process.stdout:
            written.write(line)
            if package := package_of(line):
                print(f" {package}", end="", flush=True)
            elif line.startswith("Installing collected packages"):
                print(" … installing them", end="", flush=True)
    return process.returncode


if __name__ == "__main__":
    sys.exit(set_up(Path(sys.argv[1]), sys.argv[2]))
