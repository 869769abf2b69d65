"""Keeps a compactor to its share of a core."""

import time
from collections.abc import Callable

LONGEST_PAUSE_S = 1.0
"""A pause that is due is taken in such parts at most: whoever waits for us to stop waits no longer."""


class Pace:
    """Sleeps after work so that the thread's CPU time is at most *share* of the time that goes by.

    *sleep* may raise to stop. The time that a store takes to answer is not counted: it is the store's own.
    """

    def __init__(
        self,
        share: float,
        sleep: Callable[[float], None] = time.sleep,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        assert 0 < share <= 1, "a share of a core"
        self._idle_per_busy = (1 - share) / share
        self._sleep = sleep
        self._cpu = cpu
        self._busy_until_s = cpu()

    def pause(self) -> None:
        """Sleep for the work since the last call."""
        now_s = self._cpu()
        assert now_s >= self._busy_until_s, "CPU time does not go back"
        idle_s = (now_s - self._busy_until_s) * self._idle_per_busy
        self._busy_until_s = now_s
        while idle_s > 0:
            part_s = min(idle_s, LONGEST_PAUSE_S)
            self._sleep(part_s)
            idle_s -= part_s
