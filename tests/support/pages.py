"""Runs a page of the documents as a reader would: writes its files, types its commands, compares what they print.

A fence in `sh` is typed. Where it begins with `# in a terminal of its own` it stays, as does `# in the same terminal,
after Ctrl-C`, for which the one before is interrupted. A `text` below shows lines of what that prints, in their order;
`…` stands for anything. Any other fence behind a name in backticks and a colon is the file of that name.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.node import DEADLINE_S

_FENCE = re.compile(r"(?:`([\w.-]+)`:\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OWN_TERMINAL = "# in a terminal of its own\n"
_AFTER_CTRL_C = "# in the same terminal, after Ctrl-C\n"


@dataclass(frozen=True)
class Fence:
    """A fenced block, and the name of its file if it has one."""

    name: str
    language: str
    text: str


def fences_of(page: str) -> Iterator[Fence]:
    """The fenced blocks of *page*, in their order."""
    for name, language, text in _FENCE.findall(page):
        yield Fence(name, language, text)


def shows(printed: str, expected: str) -> bool:
    """Whether the lines of *expected* are in *printed*, in their order; spaces in a row count as one."""
    lines = [re.escape(" ".join(line.split())).replace("…", ".*") for line in expected.splitlines()]
    pattern = r"(?:.*\n)*".join(rf"{line} *\n" for line in lines)
    return re.search(f"^{pattern}", re.sub(r"[ \t]+", " ", printed), re.MULTILINE) is not None


class _Terminal:
    """A command that stays, and the file of what it prints."""

    def __init__(self, command: str, folder: Path, number: int, environ: Mapping[str, str]) -> None:
        self.command = command
        self._output = folder / f".terminal-{number}"
        with self._output.open("wb") as file:
            self._process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    def await_text(self, expected: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not shows(self.printed, expected):
            ended = self._process.poll()
            assert ended is None or shows(self.printed, expected), f"{self.command} ended: {ended}\n{self.printed}"
            assert time.monotonic() < deadline, f"{self.command} did not print\n{expected}but\n{self.printed}"
            time.sleep(0.05)

    def interrupt(self) -> None:
        """Press Ctrl-C, and wait for the end."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        self._process.wait(DEADLINE_S)


class Session:
    """Somebody who follows a page in *folder*. All that was started ends with the `with` statement, newest first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environ = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
        self._terminals: list[_Terminal] = []
        self._printed = ""

    def follow(self, page: str) -> None:
        """Do all that *page* says.

        Raises:
            AssertionError: a command failed, or printed something else.
        """
        for fence in fences_of(page):
            match fence.language:
                case "sh" if fence.text.startswith(_OWN_TERMINAL):
                    self._start(fence.text.removeprefix(_OWN_TERMINAL).strip())
                case "sh" if fence.text.startswith(_AFTER_CTRL_C):
                    self._terminals.pop().interrupt()
                    self._start(fence.text.removeprefix(_AFTER_CTRL_C).strip())
                case "sh":
                    self._type(fence.text)
                case "text":
                    self._compare(fence.text)
                case _ if fence.name:
                    (self._folder / fence.name).write_text(fence.text, encoding="utf-8")

    def _start(self, command: str) -> None:
        self._terminals.append(_Terminal(command, self._folder, len(list(self._folder.iterdir())), self._environ))
        self._printed = ""

    def _type(self, commands: str) -> None:
        done = subprocess.run(
            ["bash", "-e", "-c", commands],
            cwd=self._folder,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        self._printed = done.stdout
        assert done.returncode == 0, f"{commands}\n{self._printed}"

    def _compare(self, expected: str) -> None:
        if self._printed:
            assert shows(self._printed, expected), f"expected\n{expected}\nprinted\n{self._printed}"
        else:
            self._terminals[-1].await_text(expected)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for terminal in reversed(self._terminals):
            terminal.interrupt()
