"""Events per second over counters that start at 0 again whenever the process behind them does."""

from collections import deque
from collections.abc import Mapping

WINDOW_S = 5.0
"""Over which a rate is taken: shorter, and it jumps with every batch; longer, and it lags behind what one looks for."""


class Rate:
    """The rate of a sum of counters, each with a key that is new when the counter is (a process id)."""

    def __init__(self) -> None:
        self._last: Mapping[int, int] = {}
        self._steps: deque[tuple[float, int]] = deque()

    def per_s(self, now: float, counters: Mapping[int, int]) -> float:
        """Take over the *counters* as of *now*; what they rose by per second in the last window."""
        rise = sum(max(0, value - self._last.get(key, 0)) for key, value in counters.items())
        self._steps.append((now, rise if self._last or not self._steps else 0))
        self._last = dict(counters)
        while len(self._steps) > 2 and self._steps[1][0] <= now - WINDOW_S:
            self._steps.popleft()
        elapsed = now - self._steps[0][0]
        return sum(rise for _, rise in list(self._steps)[1:]) / elapsed if elapsed > 0 else 0.0
