"""A key that a world's store has lost: what the product has to say of it, and how it is put back."""

import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from channelindex import exits
from tests.chaos.raw_layouts import AWAY, RedisLayout
from tests.support.node import until
from tests.support.running import cli

DEADLINE_S = 180.0
CATCH_UP_S = 20
"""How long one attempt to repair waits for the index to catch up."""


class LostKey(NamedTuple):
    """`name` is how the product names the key. One that is not `is_surely_missed` nobody may need any more."""

    key: bytes
    name: str
    is_surely_missed: bool = True
    channel: str = ""
    group: str = ""
    number: int = 0
    """Of a block; compaction may leave it behind."""

    def await_repair(self, store_url: str, config: Path, revive: Callable[[], None]) -> None:
        """Wait until the product has named the loss, and an operator has repaired the index without waiting for it."""

        def named() -> bool:
            revive()
            verified = _command(config, "verify", "--timeout", 1)
            if verified.returncode == exits.CORRUPT and self.name in verified.stderr:
                return True
            return (verified.returncode == exits.OK or self.is_surely_missed) and not self._is_missing(store_url)

        def repaired() -> bool:
            revive()
            return _command(config, "repair", "--yes", "--no-wait").returncode == exits.OK

        until(named, f"verify to name {self.name}", DEADLINE_S)
        until(repaired, "the index to be repaired", DEADLINE_S)

    def await_refill(self, config: Path, revive: Callable[[], None]) -> None:
        """Wait until an operator has had written again, from the bucket, what was lost with the key."""

        def filled() -> bool:
            revive()
            return _command(config, "repair", "--yes", "--timeout", CATCH_UP_S).returncode == exits.OK

        until(filled, "the index to be repaired from the bucket", DEADLINE_S)

    def _is_missing(self, store_url: str) -> bool:
        """Whether the key is still gone, and still needed; so if nobody can say now.

        A store that lost its newest writes has lost its deletion with them.
        """
        try:
            with closing(RedisLayout(store_url, "channels", 2.0)) as layout:
                if layout.exists(self.key):
                    return False
                if not self.channel:
                    return self.is_surely_missed
                groups = [group for group in layout.groups(self.channel) if group.name == self.group]
                return any(group.first <= self.number <= group.active for group in groups)
        except AWAY:
            return True


def _command(config: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command of an operator, and keep in the world's folder what it said and how long it took."""
    begun = time.monotonic()
    done = cli(*arguments, "--config", config)
    took = f"{arguments} ended with {done.returncode} after {time.monotonic() - begun:.2f} s\n"
    with config.with_name("repairs.log").open("a") as log:
        log.write(took + done.stdout + done.stderr)
    return done
