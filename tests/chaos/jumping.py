"""A node whose wall clock can be set, and that gives up a silent connection within seconds. Run like `channelindex`."""

import mmap
import struct
import sys
import time
from pathlib import Path

from tests.support import impatient
from tests.support.node import Node
from workers.cli import main

_OFFSET = struct.Struct("=d")


class JumpingNode(Node):
    """A node of which the wall clock jumps when told, in all its processes."""

    module = "tests.chaos.jumping"

    def jump(self, offset_s: float) -> None:
        """Let its wall clock be so many seconds ahead of the true time."""
        with _clock_of(self.config).open("r+b") as file:
            file.write(_OFFSET.pack(offset_s))

    def start(self) -> "JumpingNode":
        """Start the node; its clock is where it was."""
        clock = _clock_of(self.config)
        if not clock.exists():
            clock.write_bytes(_OFFSET.pack(0.0))
        super().start()
        return self


def _clock_of(config: Path) -> Path:
    return config.with_suffix(".clock")


def _follow(clock: Path) -> None:
    """Make the time of this process and its children what the file *clock* says."""
    with clock.open("rb") as file:
        offset = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
    true_time, true_time_ns = time.time, time.time_ns

    def offset_s() -> float:
        return float(_OFFSET.unpack_from(offset)[0])

    time.time = lambda: true_time() + offset_s()
    time.time_ns = lambda: true_time_ns() + int(offset_s() * 1e9)


if __name__ == "__main__":
    _follow(_clock_of(Path(sys.argv[sys.argv.index("--config") + 1])))
    impatient.hurry()
    sys.exit(main())
