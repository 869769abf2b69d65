"""A node that gives up a silent connection after seconds in place of most of a minute. Run like `workers.cli`."""

import sys

from channelindex.feeds.dcp import connection
from tests.support.node import Node
from workers.cli import main

SILENCE_S = 4.0
"""Longer than the second after which the feed asks for seqnos: a connection that lives is never silent for so long."""


class ImpatientNode(Node):
    """A node that notices a half-open connection within a test's time."""

    module = "tests.support.impatient"


def hurry() -> None:
    """Make this process and its children impatient."""
    connection.SILENCE_S = SILENCE_S


if __name__ == "__main__":
    hurry()
    sys.exit(main())
