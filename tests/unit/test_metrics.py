"""Metrics and alerts: what is exposed is what the catalogue says, and every rule asks for something that exists."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from channelindex.settings import MetricsSettings
from workers.cli import reference
from workers.node.report import NodeReport
from workers.telemetry.alerts import ALERTS, rules
from workers.telemetry.board import BATCH_BYTES, STORE_US, Board
from workers.telemetry.exposition import BoardCollector
from workers.telemetry.metrics import COUNTER, HISTOGRAM, METRICS, PREFIX

ROOT = Path(__file__).resolve().parents[2]
PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(ROOT / ".ci" / "tools" / "usr" / "bin"))
INFO = {"node": "n1", "index": "orders", "version": "1"}


def scrape(board: Board) -> dict[str, dict[tuple[str, ...], float]]:
    """What a scrape of *board* gives: sample name -> label values -> value."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BoardCollector(board, INFO, MetricsSettings()))
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return samples


@pytest.fixture
def board() -> Board:
    board = Board(4)
    NodeReport(board)
    now_ns = time.monotonic_ns()
    board.supervisor.set(heard_ns=now_ns)
    for slot in (board.keeper, board.compactor, board.feeds[0], board.writers[0], board.writers[1]):
        slot.start()
    board.partitions[2].set(leased_ns=now_ns - 10**9, deadline_ns=now_ns + 5 * 10**9, lag=7, streaming=1)
    board.partitions[2].set(behind_ns=now_ns - 3 * 10**9)
    return board


def test_every_metric_of_the_catalogue_is_exposed_and_no_other(board: Board) -> None:
    suffixes = {COUNTER: ("",), HISTOGRAM: ("_bucket", "_sum", "_count")}
    expected = {metric.exposed_name + end for metric in METRICS for end in suffixes.get(metric.kind, ("",))}
    assert set(scrape(board)) == expected


def test_partitions_are_reported_while_they_are_leased(board: Board) -> None:
    samples = scrape(board)
    assert samples[f"{PREFIX}partition_lag_seqnos"] == {("2",): 7}
    assert 3 <= samples[f"{PREFIX}partition_lag_seconds"]["2",] < 60
    assert 1 <= samples[f"{PREFIX}partition_lease_age_seconds"]["2",] < 60
    assert samples[f"{PREFIX}leases"] == {(): 1}
    board.partitions[2].clear()
    samples = scrape(board)
    assert samples[f"{PREFIX}leases"] == {(): 0}
    assert f"{PREFIX}partition_lag_seqnos" not in samples


def test_histograms_count_cumulatively_in_base_units(board: Board) -> None:
    for us in (900, 1_000, 7_000, 9_000_000):
        board.writers[1].observe(STORE_US, us)
    board.writers[1].observe(BATCH_BYTES, 5_000)
    samples = scrape(board)
    buckets = {
        bound: value
        for (bound, worker), value in samples[f"{PREFIX}writer_store_seconds_bucket"].items()
        if worker == "1"
    }
    assert (buckets["0.001"], buckets["0.0025"], buckets["0.01"], buckets["2.5"], buckets["+Inf"]) == (2, 2, 3, 3, 4)
    assert samples[f"{PREFIX}writer_store_seconds_count"]["1",] == 4
    assert samples[f"{PREFIX}writer_store_seconds_sum"]["1",] == pytest.approx(9.0089)
    assert samples[f"{PREFIX}writer_batch_bytes_sum"]["1",] == 5_000


def test_a_process_that_ended_keeps_its_counters_and_has_no_memory(board: Board) -> None:
    board.feeds[0].add(events=5, restarts=1)
    assert samples_of_process(board, "process_resident_bytes", "feed_worker")
    board.feeds[0].set(pid=0)
    assert not samples_of_process(board, "process_resident_bytes", "feed_worker")
    assert samples_of_process(board, "process_restarts_total", "feed_worker") == [1]
    assert scrape(board)[f"{PREFIX}feed_events_total"]["0",] == 5


def samples_of_process(board: Board, name: str, role: str) -> list[float]:
    return [value for labels, value in scrape(board)[PREFIX + name].items() if labels[0] == role]


def names_in(expression: str) -> set[str]:
    return set(re.findall(rf"{PREFIX}\w+", expression))


def exposed_names() -> set[str]:
    ends = ("_bucket", "_sum", "_count")
    histograms = {metric.exposed_name + end for metric in METRICS if metric.kind == HISTOGRAM for end in ends}
    return histograms | {metric.exposed_name for metric in METRICS if metric.kind != HISTOGRAM}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_alerts_ask_for_metrics_that_exist(alert) -> None:
    assert names_in(alert.expr) <= exposed_names()
    assert names_in(alert.expr) or alert.expr.startswith("up{")


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    dashboard = json.loads((ROOT / "docs" / "dashboard.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(expressions) >= 12
    for expression in expressions:
        assert names_in(expression) <= exposed_names(), expression
        assert names_in(expression), expression
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_the_documents_are_what_make_docs_writes() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == reference.metrics_and_alerts()
    assert (ROOT / "docs" / "alerts.yml").read_text(encoding="utf-8") == rules()


def test_promtool_accepts_the_rules() -> None:
    if not PROMTOOL:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run(
        [PROMTOOL, "check", "rules", ROOT / "docs" / "alerts.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"SUCCESS: {len(ALERTS)} rules found" in done.stdout


def test_promtool_accepts_a_scrape(board: Board) -> None:
    if not PROMTOOL:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BoardCollector(board, INFO, MetricsSettings()))
    text = generate_latest(registry)
    done = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
