"""How long to wait before the next attempt."""

import random


def delay_s(failures: int, first_s: float, longest_s: float) -> float:
    """A delay that doubles with each of *failures* in a row, less a random part so that peers do not march in step."""
    return float(min(longest_s, first_s * 2 ** min(failures, 30)) * random.uniform(0.5, 1.0))
