"""What `make bench` measures can be measured: each stage costs something, and what starting costs is not counted."""

import pytest
from rich.console import Console

from benchmarks import removal, serve, stages
from benchmarks.cases import CASES
from benchmarks.compare import FEW_DOCUMENTS, Run
from benchmarks.removal_index import Shares
from tests.support.shared import shared_path


@pytest.mark.parametrize("n_vbuckets", [64, 1024])
def test_every_stage_of_a_change_is_measured(n_vbuckets):
    found = stages.measure(CASES[0], 300, n_vbuckets)
    assert found.us_by_stage.keys() == set(stages.STAGES)
    assert all(us >= 0 for us in found.us_by_stage.values())
    assert found.total_us > 0
    assert 0 < found.updates_per_document <= CASES[0].per_document


def test_compared_is_what_documents_cost_beyond_those_of_a_start():
    few = Run(1.0, 500.0, 50.0)  # 0.5 s for the first thousand
    whole = Run(1.0, 600.0 * FEW_DOCUMENTS / (10 * FEW_DOCUMENTS), 10.0)
    run = whole.without_start(10 * FEW_DOCUMENTS, few)
    assert run.cpu_us == pytest.approx((600.0 - 500.0) / 9)
    assert run.redis_us == pytest.approx((100.0 - 50.0) / 9)


def test_a_year_of_removal_keeps_within_its_bounds():
    months = removal.year(share=1_000, hours=96, shares=Shares(3, 2), url="memory://", console=Console(quiet=True))
    assert len(months) == 12
    assert all(month.share <= 1 for month in months)
    assert months[-1].rewritten <= months[-1].written


@pytest.mark.nightly
def test_a_first_read_of_a_compacted_channel_reads_no_more_than_twice_what_it_tells():
    found = removal.history(shared_path("data/repo-history.jsonl.gz"), n_hand_overs=10)
    after = found["after"]
    assert found["channel"] == "*"
    assert after["told"] == found["before"]["told"]
    assert after["read_bytes"] <= 2 * after["told_bytes"]
    assert after["entries"] * 5 <= found["before"]["entries"]


def test_every_figure_of_the_changes_feed_is_measured():
    figures = serve.measure("hot", serve.Load(followers=3))
    assert [each.value >= 0 for each in figures[:3]] == [True] * 3
    assert len(serve.table_of(figures).rows) == len(figures)
