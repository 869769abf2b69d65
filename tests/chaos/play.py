"""Plays a schedule in a world of its own and judges what is left of it."""

import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path

from channelindex import exits
from tests.chaos.checker import Finding, judge
from tests.chaos.faults import KINDS, Missed
from tests.chaos.raw_index import read_index
from tests.chaos.schedule import Episode, Fault
from tests.chaos.world import World
from tests.support.running import cli

CALM_S = 0.3
"""Between two episodes: the next one meets nodes at work."""
VERIFY_S = 30
"""How long `verify` waits for the index of a world at rest."""

Progress = Callable[[str], None]


@dataclass
class Outcome:
    """What came of a round: the faults that hit, how long each episode took to be mended, and what is wrong."""

    injected: Counter[str] = field(default_factory=Counter)
    recoveries: list[tuple[frozenset[str], float]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    n_events: int = 0
    n_lost_tails: int = 0
    """Failovers of the store to a replica that lacked what its master had acknowledged."""
    n_switches: int = 0
    """Times that a compactor switched a channel to what it wrote, of rounds that found nothing."""

    def add(self, other: "Outcome") -> None:
        """Count *other* in."""
        self.injected.update(other.injected)
        self.recoveries += other.recoveries
        self.findings += other.findings
        self.n_events += other.n_events
        self.n_lost_tails += other.n_lost_tails
        self.n_switches += other.n_switches


def play(
    folder: Path, episodes: Sequence[Episode], deadline: float, progress: Progress, store: str = "redis"
) -> Outcome:
    """Begin a world below *folder*, play *episodes* until *deadline* (monotonic), let it come to rest, judge it.

    Whatever goes wrong is a finding, an exception among it. The record and the index stay in *folder*.
    """
    outcome = Outcome()
    try:
        with World(folder, store) as world:
            steps: list[Callable[[], object]] = [
                lambda: _suffer_all(world, episodes, deadline, outcome, progress),
                world.come_to_rest,
                lambda: outcome.findings.extend(_judge(world, at_rest=not outcome.findings)),
            ]
            for step in steps:
                outcome.findings += _problems_of(step)
            outcome.n_events = world.n_events()
            outcome.n_lost_tails = world.n_lost_tails()
            outcome.n_switches = 0 if outcome.findings else world.n_switches()
    except Exception as error:  # a world that could not begin or end
        outcome.findings.append(_problem(error))
    return outcome


def _problems_of(step: Callable[[], object]) -> list[Finding]:
    """Carry out *step*; what ended it before its time. Whatever it was, what is left of the world is to be judged."""
    try:
        step()
    except Exception as error:
        return [_problem(error)]
    return []


def _problem(error: Exception) -> Finding:
    return Finding("broken", "".join(traceback.format_exception(error)))


def _suffer_all(
    world: World, episodes: Sequence[Episode], deadline: float, outcome: Outcome, progress: Progress
) -> None:
    for number, episode in enumerate(episodes):
        if time.monotonic() > deadline:
            break
        hit, seconds = _suffer(world, episode)
        outcome.injected.update(hit)
        outcome.recoveries.append((frozenset(hit), seconds))
        missed = sorted((Counter(fault.kind for fault in episode) - Counter(hit)).elements())
        others = f"; missed: {', '.join(missed)}" if missed else ""
        progress(f"{number + 1:>3} {seconds:6.2f} s to recover from {', '.join(hit)}{others}")
        time.sleep(CALM_S)


def _judge(world: World, *, at_rest: bool) -> Iterator[Finding]:
    world.record.save(world.folder)
    index = read_index(world.store.url)
    index.save(world.folder)
    yield from judge(world.record, index)
    patience_s = VERIFY_S if at_rest else 1  # else it would wait for what did not come before
    verified = cli("verify", "--timeout", patience_s, "--config", world.operator.config)
    if verified.returncode != exits.OK:
        yield Finding("verify", verified.stdout + verified.stderr)
    yield from (Finding("ended", end) for end in world.unexpected_ends())


def _suffer(world: World, episode: Episode) -> tuple[list[str], float]:
    """Inject the faults of *episode*, heal them all, wait until the index is complete.

    Returns:
        The kinds of those that hit, and how many seconds the index took.
    """
    hit: list[str] = []
    begun = time.monotonic()
    due: list[tuple[float, int, Fault | Iterator[None]]] = []
    for order, fault in enumerate(episode):
        heappush(due, (fault.at_s, order, fault))
    while due:
        at_s, order, step = heappop(due)
        time.sleep(max(0.0, begun + at_s - time.monotonic()))
        if not isinstance(step, Fault):
            next(step, None)  # heals
            continue
        harm = KINDS[step.kind].act(world, random.Random(step.seed))
        try:
            next(harm)
        except Missed:
            continue
        hit.append(step.kind)
        heappush(due, (time.monotonic() - begun + step.for_s, order, harm))
    return hit, world.await_recovery()
