"""Finds the compiled kernel of the feed (`kernel/`, docs/design/016-kernel.md), and says whether this process uses it.

Python does all that it does, in the same way: without it everything works, only slower. Each process chooses once, at
its start; what was made before keeps what it has.
"""

import os
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

VERSION = 10
"""Version that Python expects. A kernel of another (kernel/module.c) was built from other sources, and is not used."""
AUTO = "auto"
OFF = "off"
MODES = (AUTO, OFF)
VARIABLE = "CHANNELINDEX_WORKERS_KERNEL"
"""The environment variable of the setting workers.kernel. It also counts where no configuration is read."""

_mode = ""


class _Found(NamedTuple):
    """The kernel, or why there is none."""

    compiled: ModuleType | None
    missing: str


@cache
def _found() -> _Found:
    try:
        kernel = import_module("channelindex._kernel")
    except ModuleNotFoundError:
        return _Found(None, "not built")
    except ImportError as error:
        return _Found(None, f"cannot be loaded: {error}")
    if kernel.VERSION != VERSION:
        return _Found(None, f"built from other sources: version {kernel.VERSION}, not {VERSION}")
    return _Found(kernel, "")


def choose(mode: str) -> None:
    """Use the kernel in this process, and in those that it forks, if there is one (`AUTO`) or never (`OFF`)."""
    global _mode  # noqa: PLW0603 a property of the process, like its log level
    assert mode in MODES
    _mode = mode


def chosen() -> ModuleType | None:
    """Return the kernel that is to be used; None where Python does all."""
    mode = _mode or os.environ.get(VARIABLE, AUTO)
    return None if mode == OFF else _found().compiled


def description() -> str:
    """Say what this process uses, and why where it is not the kernel."""
    if chosen() is not None:
        return "compiled"
    return f"python ({_found().missing or OFF})"
