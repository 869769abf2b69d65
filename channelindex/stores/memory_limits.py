"""Bounds an index in memory: retains each channel's newest entries by number and by age. Pure.

It forgets whole blocks, the oldest first. The header of the oldest block that is left says, as every header does, the
clock of what was before it: up to there a reader can no longer be answered.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

Chain = tuple[str, str]
"""(channel, group): whose blocks follow each other."""

_PARTS = 8
"""Blocks into which `max_entries` are cut. A channel that is written in parts no larger than these holds up to three of
them more than it has to: two in the active block, which it also holds whatever its age, and one in the oldest."""

_ENTRY_BYTES = 47
"""An entry of a usual revision and key."""

_LEAST_BLOCK_BYTES = 512


class MemoryLimits(NamedTuple):
    """Of each channel the newest *max_entries* are held, those older than *max_age_s* only if among the newest
    *min_entries*. 0 for *max_entries* or *max_age_s*: no such bound.
    """

    @property
    def part_entries(self) -> int:
        """Most entries of a channel to append at once, so that blocks stay small; 0 for any number."""
        return -(-self.max_entries // _PARTS)

    max_entries: int = 0
    min_entries: int = 0
    max_age_s: float = 0.0

    def block_bytes(self, target: int) -> int:
        """The size at which a block is full: *target*, or less where blocks that large would hold too much."""
        assert target > 0
        if not self.max_entries:
            return target
        return min(target, max(_LEAST_BLOCK_BYTES, self.part_entries * _ENTRY_BYTES))


class _Sealed(NamedTuple):
    number: int
    n_entries: int
    at: float


class HeldBlocks:
    """The full blocks of an index that are still held. The active one of each chain is always held, and not counted."""

    def __init__(self, limits: MemoryLimits) -> None:
        self._limits = limits
        self._sealed: dict[Chain, deque[_Sealed]] = {}
        self._n_entries: dict[Chain, int] = {}
        self._by_age: deque[tuple[float, Chain]] = deque()

    def seal(self, chain: Chain, number: int, n_entries: int, now: float) -> list[int]:
        """Block *number* is full, the next one begins; the numbers of the blocks to forget."""
        assert n_entries >= 0
        assert not self._sealed.get(chain) or self._sealed[chain][-1].number == number - 1, (
            "blocks are numbered in a row"
        )
        self._sealed.setdefault(chain, deque()).append(_Sealed(number, n_entries, now))
        self._n_entries[chain] = self._n_entries.get(chain, 0) + n_entries
        if self._limits.max_age_s:
            self._by_age.append((now, chain))
        return self._forget(chain, now, 0)

    def expire(self, now: float, count_active: Callable[[Chain], int]) -> list[tuple[Chain, int]]:
        """The blocks to forget because they became too old; to be asked now and then, for channels at rest.

        *count_active* says how many entries the active block of a chain has.
        """
        forgotten: list[tuple[Chain, int]] = []
        while self._by_age and self._is_old(self._by_age[0][0], now):
            _, chain = self._by_age.popleft()
            forgotten += [(chain, number) for number in self._forget(chain, now, count_active(chain))]
        return forgotten

    def oldest(self, chain: Chain, active: int) -> int:
        """The number of the oldest block that is held, where *active* is that of the active one."""
        assert active >= 0
        sealed = self._sealed.get(chain)
        return sealed[0].number if sealed else active

    def _forget(self, chain: Chain, now: float, n_active: int) -> list[int]:
        sealed, limits = self._sealed[chain], self._limits
        forgotten: list[int] = []
        while sealed:
            left = self._n_entries[chain] - sealed[0].n_entries
            too_many = limits.max_entries and left >= limits.max_entries
            too_old = left + n_active >= limits.min_entries and self._is_old(sealed[0].at, now)
            if not too_many and not too_old:
                break
            forgotten.append(sealed.popleft().number)
            assert left >= 0
            self._n_entries[chain] = left
        assert sealed or not self._n_entries[chain], "what is left is counted"
        return forgotten

    def _is_old(self, at: float, now: float) -> bool:
        return bool(self._limits.max_age_s) and at <= now - self._limits.max_age_s
