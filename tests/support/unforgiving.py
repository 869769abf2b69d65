"""A node that bears being refused by the bucket for seconds in place of a minute. Run like `channelindex`."""

import sys

from channelindex.feeds.dcp import client
from tests.support.node import Node
from workers.cli import main


class UnforgivingNode(Node):
    """A node that ends within a test's time when its password is not accepted any more."""

    module = "tests.support.unforgiving"


if __name__ == "__main__":
    client.AUTHENTICATION_GRACE_S = 3.0
    sys.exit(main())
