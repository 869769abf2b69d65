"""A node that does not notice what its store loses, for `benchmarks.vigilance` alone. Run like `channelindex`.

It asks no server who it is, sets no marks and notes no moments. What is left of the mechanism is a number that is
compared with each committed frame.
"""

import sys
from collections.abc import Collection
from unittest.mock import patch

from channelindex import stores
from channelindex.stores.redis.owner import RedisOwner
from channelindex.stores.redis.writer import RedisBlocks
from workers.cli import main

ANYBODY = 1
"""The digest of whatever servers there are."""


class CarelessOwner(RedisOwner):
    """An owner that takes every server for the one it began in."""

    def note_moments(self, epoch: int, partitions: Collection[int], now_s: float) -> None:
        """Note nothing."""

    def _identify_server(self) -> None:
        self._servers = ANYBODY

    def _require_first_servers(self, epoch: int, *, asks: bool) -> None:  # noqa: ARG002 the product's arguments
        self._first_servers = ANYBODY


class CarelessBlocks(RedisBlocks):
    """Blocks that were taken by whatever server there is."""

    def servers(self) -> int:
        """Ask nobody."""
        return ANYBODY


if __name__ == "__main__":
    with patch.object(stores, "RedisOwner", CarelessOwner), patch.object(stores, "RedisBlocks", CarelessBlocks):
        sys.exit(main())
