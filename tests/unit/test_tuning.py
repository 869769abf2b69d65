"""Recommended are the fewest workers that are worth their processes."""

import pytest

from workers.cli.tuning import Costs, all_counts, recommended
from workers.pipeline.stage_trial import StageCosts


def _best(costs: Costs, cores: int, *, store_is_here: bool = False) -> tuple[int, int]:
    best = recommended(all_counts(costs, cores, store_is_here=store_is_here))
    return best.feed_workers, best.batch_writers


@pytest.mark.parametrize(
    ("costs", "cores", "counts"),
    [
        pytest.param(Costs(10.0, 2.0, 1.0), 1, (1, 1), id="one core can do no more whatever shares it"),
        pytest.param(Costs(10.0, 2.0, 1.0), 8, (6, 2), id="the feed is what is slow"),
        pytest.param(Costs(2.0, 2.0, 6.0), 8, (1, 2), id="the store does one thing at a time"),
        pytest.param(Costs(1.0, 1.0, 50.0), 8, (1, 1), id="the store alone is slow"),
    ],
)
def test_the_slowest_part_says_how_many_workers_there_should_be(costs, cores, counts):
    assert _best(costs, cores) == counts


def test_a_store_on_the_same_machine_takes_its_share_of_the_cores():
    costs = Costs(2.0, 2.0, 1.0)
    assert costs.rate(2, 2, 2, store_is_here=True) < costs.rate(2, 2, 2, store_is_here=False)


def test_rates_never_fall_with_more_workers_and_follow_from_the_trial():
    costs = Costs.of(StageCosts(1000, 100, 0.001, 0.004, 0.002, 0.003, 0.005))
    assert costs == pytest.approx((6.0, 4.0, 2.0))
    by_counts = {
        (each.feed_workers, each.batch_writers): each.rate for each in all_counts(costs, 4, store_is_here=True)
    }
    assert all(rate <= by_counts.get((feeds + 1, writers), rate) for (feeds, writers), rate in by_counts.items())
    assert by_counts[1, 1] == pytest.approx(1e6 / 6.0)
