"""What happens when: drawn from a seed, kept as JSON, made smaller where it fails. Pure."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.chaos.faults import KINDS

# They register their kinds, in the order by which a seed draws them.
# isort: off
from tests.chaos import node_faults, redis_faults, bucket_faults, operator_faults  # noqa: F401
from tests.chaos import bucket_store_faults, key_faults, store_faults  # noqa: F401
# isort: on

T = TypeVar("T")

WINDOW_S = 2.0
"""The faults of an episode begin within this time, so they overlap."""


class Fault(NamedTuple):
    """One fault: its kind, the seed of its choices, when in its episode it begins, how long it lasts, in seconds."""

    kind: str
    seed: int
    at_s: float
    for_s: float


Episode = tuple[Fault, ...]
"""Faults that overlap. After each episode all is healed, and the index has to become complete again."""


def draw(seed: str, n_episodes: int, store: str = "redis") -> list[Episode]:
    """Episodes of two to seven faults of a world with *store*, the same for the same seed."""
    rnd = random.Random(seed)
    return [_draw_episode(rnd, store) for _ in range(n_episodes)]


def _draw_episode(rnd: random.Random, store: str) -> Episode:
    possible = [name for name, kind in KINDS.items() if store in kind.stores]
    of_store = [name for name in possible if store != "redis" and "redis" not in KINDS[name].stores]
    others = [name for name in possible if name not in of_store]
    names = [rnd.choice(others) for _ in range(rnd.randint(2, 7))]
    if of_store:  # what this world is for; a second one often finds that the first has the store still
        names += rnd.choices(of_store, [KINDS[name].weight for name in of_store], k=rnd.choice((1, 1, 1, 2)))
    alone = [name for name in names if KINDS[name].alone]
    kept = [name for name in names if not KINDS[name].alone] + alone[:1]
    faults = (
        Fault(name, rnd.getrandbits(32), round(rnd.uniform(0, WINDOW_S), 3), _draw_length(rnd, KINDS[name].longest_s))
        for name in kept
    )
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


def _draw_length(rnd: random.Random, longest_s: float) -> float:
    """Mostly a moment, at times as long as may be: both hit other code."""
    if not longest_s:
        return 0.0
    short = rnd.random() < 0.75
    return round(rnd.uniform(0.1, min(1.5, longest_s)) if short else rnd.uniform(longest_s / 2, longest_s), 3)


def save(path: Path, episodes: Sequence[Episode]) -> None:
    """Write *episodes* to *path*, an episode on a line."""
    path.write_text("".join(json.dumps(episode) + "\n" for episode in episodes))


def load(path: Path) -> list[Episode]:
    """What `save` wrote."""
    return [tuple(Fault(*fault) for fault in json.loads(line)) for line in path.read_text().splitlines()]


def shrink(episodes: Sequence[Episode], fails: Callable[[list[Episode]], bool]) -> list[Episode]:
    """A part of *episodes*, which fail, that still fails: first whole episodes are left out, then single faults.

    *fails* is asked for ever smaller schedules; it may refuse to try any more by saying no. A fault that shows only
    now and then may make the result larger than it need be, never one that was not seen to fail.
    """
    fewer = _reduce(list(episodes), fails)
    for number in range(len(fewer)):

        def fails_with(faults: list[Fault], number: int = number) -> bool:
            return fails([*fewer[:number], tuple(faults), *fewer[number + 1 :]])

        if len(fewer[number]) > 1:
            fewer[number] = tuple(_reduce(list(fewer[number]), fails_with))
    return fewer


def _reduce(items: list[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """Delta debugging: leave out ever smaller runs of *items* as long as what remains fails."""
    size = len(items) // 2
    while size:
        start = 0
        while start < len(items):
            rest = items[:start] + items[start + size :]
            if rest and fails(rest):
                items = rest
            else:
                start += size
        size //= 2
    return items
