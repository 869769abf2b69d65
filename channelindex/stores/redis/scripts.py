"""The Lua scripts of this folder, one atomic operation each."""

import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

_GUARDED = frozenset({"append", "touch", "rotate"})
"""Scripts that begin with guard.lua."""


class Script(NamedTuple):
    """A script and the digest by which Redis knows it once it is loaded."""

    source: str
    sha: str


@cache
def script(name: str) -> Script:
    """The script in `<name>.lua`."""
    folder = files(__package__)
    source = folder.joinpath(f"{name}.lua").read_text()
    if name in _GUARDED:
        source = folder.joinpath("guard.lua").read_text() + source
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
