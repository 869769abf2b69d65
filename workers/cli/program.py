"""Writes commands as the person at this terminal can give them again."""

import os
import shutil
import sys
from pathlib import Path


def command() -> str:
    """The words that call this program here: `channelindex` where the PATH has it, else its path, or `python -m`."""
    called = Path(sys.argv[0])
    if called.name == "channelindex":
        on_path = shutil.which("channelindex")
        return "channelindex" if on_path and Path(on_path).samefile(called) else nearest(called)
    return f"{nearest(Path(sys.executable))} -m channelindex"


def nearest(path: Path) -> str:
    """*path* as it is shortest from here: relative if it lies below the current folder, else absolute."""
    here, full = Path.cwd(), Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a venv's link
    return str(full.relative_to(here)) if full.is_relative_to(here) else str(full)
