"""Programs of other projects that tests run: installed, or brought by `.ci/get_tools`."""

import os
import shutil
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / ".ci" / "tools" / "usr"


def program(*names: str, package: str) -> str:
    """The path of the first of *names* that is there; *package* is Debian's.

    Skips the test that asks where there is none, and fails it in CI, which has to have one.
    """
    for name in names:
        if found := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:{TOOLS}/bin:{TOOLS}/sbin"):
            return found
    missing = f"{names[0]} is not installed (Debian: apt-get install {package}): nothing was run with it"
    return str((pytest.fail if os.environ.get("CI") else pytest.skip)(missing))
