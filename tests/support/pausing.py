"""A node whose processes stop (SIGSTOP) at a step of their work, where a file asks them to. Run like `channelindex`.

The steps are those of a batch, in its order: what comes out of the store is between "before" and "after" in the store,
but not yet known to the process.
"""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from channelindex.redis.link import Link
from tests.support.node import Node
from workers.cli import main
from workers.pipeline.outbox import RingOutbox
from workers.pipeline.ring import Ring

STEPS = (
    "before begin",
    "after begin",
    "before publish",
    "after publish",
    "before append_and_locate",
    "after append_and_locate",
    "before append",
    "after append",
    "before move",
    "after move",
    "before commit",
    "after commit",
    "before advance",
    "after advance",
)


class PausingNode(Node):
    """A node that `ask`s a process of its own to stop at a step."""

    module = "tests.support.pausing"

    def ask(self, step: str) -> None:
        """Have the next process that comes to *step* stop there."""
        self._asked(step).touch()

    def stopped(self) -> int | None:
        """The process that stopped, if one has."""
        mark = self.log.parent / "stopped"
        return int(mark.read_text() or 0) or None if mark.exists() else None

    def forget(self) -> None:
        """Let the process that stopped be forgotten."""
        (self.log.parent / "stopped").unlink()

    def _asked(self, step: str) -> Path:
        return self.log.parent / step.replace(" ", "-")


def stop_at(folder: Path, step: str) -> None:
    """Stop this process if that was asked for."""
    try:
        (folder / step.replace(" ", "-")).unlink()
    except FileNotFoundError:
        return
    mark = folder / "stopping"
    mark.write_text(str(os.getpid()))
    mark.rename(folder / "stopped")
    os.kill(os.getpid(), signal.SIGSTOP)


def surround(owner: type, name: str, folder: Path, step_of: Callable[..., str]) -> None:
    """Make a method stop before and after its work; *step_of* names the step, given its first argument."""
    original = getattr(owner, name)

    def method(self: Any, *args: Any, **more: Any) -> Any:
        step = step_of(*args)
        stop_at(folder, f"before {step}")
        result = original(self, *args, **more)
        stop_at(folder, f"after {step}")
        return result

    setattr(owner, name, method)


def install(folder: Path) -> None:
    """Make all processes of this node stop where *folder* has a file of a step's name."""
    surround(Link, "run_all", folder, lambda name, *_: name)
    surround(Link, "run_packed", folder, lambda name, *_: name)
    surround(Link, "count_packed", folder, lambda *_: "append")
    surround(RingOutbox, "put", folder, lambda *_: "publish")
    surround(Ring, "commit", folder, lambda *_: "commit")


if __name__ == "__main__":
    with suppress(ValueError, IndexError):
        install(Path(sys.argv[sys.argv.index("--config") + 1]).parent)
    sys.exit(main())
