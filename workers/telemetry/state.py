"""What a node is doing."""

from enum import Enum


class State(Enum):
    """Of a node. Its place in this order is what the board holds."""

    RUNNING = "running"
    RELOADING = "reloading"
    DRAINING = "draining"
