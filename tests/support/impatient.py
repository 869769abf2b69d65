"""A node that gives up within seconds what is silent or stands still, and tries again soon. Run like `channelindex`."""

import sys

from channelindex.feeds.dcp import connection, node
from tests.support.node import Node
from workers.cli import main

SILENCE_S = 4.0
"""Longer than the second after which the feed asks for seqnos: a connection that lives is never silent for so long."""
FRAME_S = 4.0
LONGEST_RETRY_S = 1.0
"""A test that breaks a connection again and again does not want to wait longer each time."""


class ImpatientNode(Node):
    """A node that notices a half-open connection, or a frame that never completes, within a test's time."""

    module = "tests.support.impatient"


def hurry() -> None:
    """Make this process and its children impatient."""
    connection.SILENCE_S = SILENCE_S
    connection.FRAME_S = FRAME_S
    node.LONGEST_RETRY_S = LONGEST_RETRY_S


if __name__ == "__main__":
    hurry()
    sys.exit(main())
