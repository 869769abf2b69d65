"""Lua scripts as they are sent to Redis: a file for each, and what several of them share."""

import hashlib
import re
from importlib.resources.abc import Traversable
from typing import NamedTuple

_INCLUDE = re.compile(r"^-- include (\w+\.lua)$", re.MULTILINE)


class Script(NamedTuple):
    """A script and the digest by which Redis knows it once it has run."""

    source: str
    sha: str


class Scripts(dict[str, Script]):
    """The scripts in the `<name>.lua` of a folder, one atomic operation each. Read when first used.

    A line `-- include other.lua` is replaced by that file.
    """

    def __init__(self, folder: Traversable) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> Script:
        source = _INCLUDE.sub(lambda match: self._read(match[1]), self._read(f"{name}.lua"))
        assert not _INCLUDE.search(source), "what is included includes nothing itself"
        sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
        script = self[name] = Script(source, sha)
        return script

    def _read(self, file: str) -> str:
        return self._folder.joinpath(file).read_text(encoding="utf-8")
