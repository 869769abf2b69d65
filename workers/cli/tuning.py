"""Recommends numbers of workers from what the stages cost on this machine. Pure arithmetic."""

from itertools import product
from typing import NamedTuple

from workers.pipeline.stage_trial import StageCosts

MOST_WORKERS = 8
ENOUGH = 0.9
"""A share of the best rate that is worth fewer processes: each has its memory, and its frames and calls."""


class Costs(NamedTuple):
    """µs per document: of a feed worker's CPU, of a batch writer's CPU, and of waiting for the store."""

    feed_us: float
    writer_us: float
    store_us: float

    @classmethod
    def of(cls, found: StageCosts) -> "Costs":
        """From a trial. The frames are made by one side and taken by the other, about half of the work each."""
        per_document = 1e6 / max(1, found.n_documents)
        half = found.frames_s / 2
        return cls(
            (found.read_s + found.build_s + half) * per_document,
            (found.write_s + half) * per_document,
            max(0.0, found.write_wall_s - found.write_s) * per_document,
        )

    def rate(self, feed_workers: int, batch_writers: int, cores: int, *, store_is_here: bool) -> float:
        """Documents per second that so many workers can do: the slowest of four.

        The feed workers; the writers, each of which waits for the store; the store, which is taken to do one thing at a
        time; and the cores, of which the store takes its share if it is on this machine.
        """
        cpu_us = self.feed_us + self.writer_us + (self.store_us if store_is_here else 0.0)
        limits_us = (
            self.feed_us / feed_workers,
            (self.writer_us + self.store_us) / batch_writers,
            self.store_us,
            cpu_us / cores,
        )
        return 1e6 / max(*limits_us, 1e-3)


class WorkerCounts(NamedTuple):
    """Numbers of workers, and the documents per second that they can do."""

    feed_workers: int
    batch_writers: int
    rate: float


def all_counts(costs: Costs, cores: int, most: int = MOST_WORKERS, *, store_is_here: bool) -> list[WorkerCounts]:
    """Every combination of one to *most* workers of each kind."""
    return [
        WorkerCounts(feeds, writers, costs.rate(feeds, writers, cores, store_is_here=store_is_here))
        for feeds, writers in product(range(1, most + 1), repeat=2)
    ]


def recommended(counts: list[WorkerCounts]) -> WorkerCounts:
    """The fewest workers that do nearly what any can do; of equally many, those that do more."""
    best = max(each.rate for each in counts)
    enough = [each for each in counts if each.rate >= ENOUGH * best]
    return min(enough, key=lambda each: (each.feed_workers + each.batch_writers, -each.rate))
