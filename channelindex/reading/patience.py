"""Decides how long a reader waits for an index that is away or behind, and when it gives up."""

import time

from channelindex.backoff import Backoff
from channelindex.errors import TokenAhead, Transient

FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 5.0
"""A follower notices within this that the store is back."""
BEHIND_S = 60.0
"""Wait of a follower for an index that went back: a store failed over, and the nodes write again what it lost."""


class Patience:
    """Pauses after failures in a row that may pass. One that lost its newest writes is given *behind_s* seconds."""

    def __init__(self, behind_s: float = BEHIND_S) -> None:
        self._behind_s = behind_s
        self._backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        self._behind_since: float | None = None

    def pause_after(self, error: Transient | TokenAhead) -> float:
        """Return the seconds to pause: jittered, doubling from FIRST_RETRY_S to LONGEST_RETRY_S.

        Raises:
            TokenAhead: *error*, where the index has been behind for *behind_s*.
        """
        if isinstance(error, TokenAhead):
            now = time.monotonic()
            self._behind_since = now if self._behind_since is None else self._behind_since
            if now - self._behind_since >= self._behind_s:
                raise error
        return self._backoff.next_delay_s()

    def reset(self) -> None:
        """Start over after a success."""
        self._behind_since = None
        self._backoff.reset()
