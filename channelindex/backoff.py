"""Computes jittered exponential backoff; one instance per operation that is retried."""

import random

STORE_RETRY_S = (0.05, 1.0)
"""The first and the longest delay of who needs the index store: a server that failed may have a successor any time."""


class Backoff:
    """Delays that double from *first_s* to *max_s*, each shortened at random: peers must not march in step."""

    __slots__ = ("_first_s", "_max_s", "failures")

    def __init__(self, first_s: float, max_s: float) -> None:
        assert first_s > 0
        assert max_s > 0
        self._first_s = first_s
        self._max_s = max_s
        self.failures = 0
        """Failures since the last success."""

    def next_delay_s(self) -> float:
        """Seconds to wait after one more failure."""
        delay = min(self._max_s, self._first_s * 2.0 ** min(self.failures, 30))
        assert 0 < delay <= self._max_s
        self.failures += 1
        return delay * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start over after a success."""
        self.failures = 0
