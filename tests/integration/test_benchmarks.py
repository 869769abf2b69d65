"""What `make bench` measures can be measured: each stage costs something, and what starting costs is not counted."""

from contextlib import closing

import pytest
from rich.console import Console

from benchmarks import counts, dcp_reader, growth, prior, removal, ring, serve, stages, store, throughput
from benchmarks.cases import CASES
from benchmarks.compare import Run
from benchmarks.growth import Pair
from benchmarks.removal_index import Shares
from benchmarks.throughput import FEW_DOCUMENTS
from channelindex.opening import open_index
from devbucket.embedded_redis import EmbeddedRedis
from tests.support.running import source_of
from tests.support.shared import shared_path
from workers.pipeline.source import describe


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


def test_a_node_that_finds_entries_is_measured_with_each_of_its_processes():
    case, count = CASES[1], 3_000
    above = prior.seqno_of(20_000)
    with throughput.loaded(case, count, above=above) as bucket, EmbeddedRedis() as redis:
        source = describe(source_of(bucket))
        prior.make_index(redis.url, source.uuid, case, 20_000, above)
        run = throughput.run_node_into(redis.url, bucket, count)
        with closing(open_index(redis.url)) as reader:
            entries = reader.changes(["ch_000000"]).entries
        plain = throughput.run_plain(bucket, 300)
    assert sum(entry.id.startswith("p") for entry in entries) == prior.APPEND_ENTRIES * prior.N_FEED_WORKERS
    assert {"supervisor", "feed_worker", "batch_writer"} <= run.us_by_role.keys()
    assert run.cpu_us == pytest.approx(sum(run.us_by_role.values()) + run.redis_us)
    assert plain.us_by_role.keys() == {"plain"}
    assert len(throughput.table_of([throughput.CaseFigures("c1000", [run], [plain])], "").rows) == 1
    assert counts.table_of("c1000", {(1, 1): run}).row_count == 1
    assert growth.table_of("", [Pair(run, run)]).row_count == 2


def test_the_parts_that_others_have_too_are_measured_beside_theirs():
    assert {"ring", "multiprocessing.Queue"} <= ring.measure(0.001)[400].keys()
    ours = store.measure(1, store.BATCH)[0]
    assert ours.redis_us > 0
    counted, *read = dcp_reader.measure(CASES[0], 3_000)
    assert counted.n_bytes > 0
    assert len(read) == 2


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
