"""Reads the values of the metrics from the board and from /proc at each scrape; collects nothing in between."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from channelindex.settings import MetricsSettings
from workers.telemetry.board import (
    BATCH_BYTES,
    BATCH_WRITER,
    COMPACTOR,
    FEED_WORKER,
    STORE_US,
    SUPERVISOR,
    Board,
    Histogram,
    NodePhase,
    ProcessStats,
)
from workers.telemetry.health import lag_s_of, readiness
from workers.telemetry.metrics import COUNTER, METRIC_BY_NAME, PREFIX

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STAT_UTIME = 11  # proc(5): fields 14 and 15 of stat, here counted from the one after the name

_WORD_BY_METRIC = {
    FEED_WORKER: {
        "feed_events": "events",
        "feed_entries": "entries",
        "feed_quarantined": "quarantined",
        "feed_stalls": "stalls",
        "feed_in_flight": "in_flight",
        "feed_ring_fill_bytes": "ring_fill",
        "feed_ring_capacity_bytes": "ring_bytes",
        "feed_store_errors": "store_errors",
    },
    BATCH_WRITER: {
        "writer_frames": "frames",
        "writer_appends": "channels",
        "writer_block_lookups": "block_lookups",
        "writer_store_errors": "store_errors",
    },
    COMPACTOR: {
        "compaction_due_channels": "due",
        "compaction_index_bytes": "index_bytes",
        "compaction_live_bytes": "live_bytes",
        "compaction_channels": "compacted",
        "compaction_refused": "refused",
        "compaction_skipped": "skipped",
        "compaction_left_entries": "left_entries",
        "compaction_read_bytes": "read_bytes",
        "compaction_written_bytes": "written_bytes",
        "compaction_store_errors": "store_errors",
    },
}
"""Metrics that are words of a worker's stats, unchanged."""

_HISTOGRAM_BY_METRIC = {"writer_batch_bytes": (BATCH_BYTES, 1.0), "writer_store_seconds": (STORE_US, 1e-6)}
"""With the factor from the words' unit to the metric's."""


class BoardCollector(Collector):
    """Collects all metrics of the node that *board* belongs to. Safe to use in several threads."""

    def __init__(self, board: Board, info: dict[str, str], limits: MetricsSettings) -> None:
        """*info* are the labels of `node_info`."""
        self._board = board
        self._info = info
        self._limits = limits

    def collect(self) -> Iterator[Metric]:
        """The families, in the order of the catalogue's groups."""
        now_ns = time.monotonic_ns()
        yield from self._node(now_ns)
        yield from self._partitions(now_ns)
        processes = self._board.processes
        for role, words in _WORD_BY_METRIC.items():
            workers = [(number, stats) for number, stats in processes if stats.role == role]
            for name, word in words.items():
                yield _family(name, [((str(number),), stats.get(word)) for number, stats in workers])
        yield from self._waiting(now_ns)
        for name, (histogram, unit) in _HISTOGRAM_BY_METRIC.items():
            yield self._histogram(name, histogram, unit)
        yield from self._processes(now_ns)

    def _node(self, now_ns: int) -> Iterator[Metric]:
        node = self._board.supervisor
        current = node.get("state")
        yield _family("node_info", [(tuple(self._info.values()), 1)])
        yield _family("node_state", [((state.value,), int(index == current)) for index, state in enumerate(NodePhase)])
        yield _single("node_ready", int(readiness(self._board, now_ns, self._limits).is_ok))
        outcomes = (("taken", "reloads"), ("refused", "refused_reloads"))
        yield _family("node_reloads", [((outcome,), node.get(word)) for outcome, word in outcomes])
        yield _single("supervisor_turn_age_seconds", node.silent_s(now_ns))
        if heard_ns := node.get("heard_ns"):
            yield _single("keeper_silent_seconds", max(0, now_ns - heard_ns) / 1e9)
        yield _single("lease_trouble", node.get("trouble"))
        yield _single("leases_gained", node.get("gained"))
        yield _single("leases_lost", node.get("lost"))
        yield _single("members", node.get("members"))
        yield _single("partitions_to_move", node.get("to_move"))
        yield _single("partitions_unowned", node.get("unowned"))

    def _partitions(self, now_ns: int) -> Iterator[Metric]:
        leased = [(number, row) for number, row in enumerate(self._board.partitions) if row.get("leased_ns")]
        yield _single("leases", len(leased))
        if leased:
            first_end_ns = min(row.get("deadline_ns") for _, row in leased)
            yield _single("lease_remaining_seconds", (first_end_ns - now_ns) / 1e9)
        for name, value_of in (
            ("partition_lag_seqnos", lambda row: row.get("lag")),
            ("partition_lag_seconds", lambda row: lag_s_of(row.get("behind_ns"), now_ns)),
            ("partition_lease_age_seconds", lambda row: lag_s_of(row.get("leased_ns"), now_ns)),
            ("partition_streaming", lambda row: row.get("streaming")),
        ):
            yield _family(name, [((str(number),), value_of(row)) for number, row in leased])

    def _waiting(self, now_ns: int) -> Iterator[Metric]:
        workers = [(number, stats) for number, stats in self._board.processes if stats.role == FEED_WORKER]
        values = [((str(number),), lag_s_of(stats.get("oldest_ns"), now_ns)) for number, stats in workers]
        yield _family("feed_oldest_unacknowledged_seconds", values)
        compactors = [(number, stats) for number, stats in self._board.processes if stats.role == COMPACTOR]
        values = [((str(number),), lag_s_of(stats.get("oldest_due_ns"), now_ns)) for number, stats in compactors]
        yield _family("compaction_oldest_due_seconds", values)

    def _histogram(self, name: str, histogram: Histogram, unit: float) -> Metric:
        catalogued = METRIC_BY_NAME[name]
        family = HistogramMetricFamily(PREFIX + name, catalogued.meaning, labels=catalogued.labels)
        for number, stats in self._board.processes:
            if stats.role == BATCH_WRITER:
                counts, total = stats.counts(histogram)
                assert len(counts) == len(histogram.bounds) + 1, "one above all bounds"
                bounds = [*(f"{bound * unit:g}" for bound in histogram.bounds), "+Inf"]
                running = [sum(counts[: index + 1]) for index in range(len(counts))]
                family.add_metric((str(number),), list(zip(bounds, running, strict=True)), total * unit)
        return family

    def _processes(self, now_ns: int) -> Iterator[Metric]:
        processes = [((stats.role, str(number)), stats) for number, stats in self._board.processes]
        children = [(labels, stats) for labels, stats in processes if stats.role != SUPERVISOR]
        alive = [(labels, stats) for labels, stats in processes if stats.get("pid")]
        beating = [(labels, stats) for labels, stats in alive if stats.role in (FEED_WORKER, BATCH_WRITER)]
        yield _family("process_restarts", [(labels, stats.get("restarts")) for labels, stats in children])
        yield _family("process_heartbeat_age_seconds", [(labels, stats.silent_s(now_ns)) for labels, stats in beating])
        used = {labels: usage for labels, stats in alive if (usage := _usage(stats))}
        yield _family("process_resident_bytes", [(labels, resident) for labels, (resident, _) in used.items()])
        yield _family("process_cpu_seconds", [(labels, cpu_s) for labels, (_, cpu_s) in used.items()])


def _usage(stats: ProcessStats) -> tuple[int, float] | None:
    """Resident bytes and CPU seconds of the process in *stats*; None if it has just ended."""
    with suppress(OSError, ValueError, IndexError):
        folder = Path("/proc") / str(stats.get("pid"))
        resident = int((folder / "statm").read_text().split()[1]) * _PAGE_BYTES
        after_name = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks = int(after_name[_STAT_UTIME]) + int(after_name[_STAT_UTIME + 1])
        return resident, ticks / _TICKS_PER_S
    return None


def _single(name: str, value: float) -> Metric:
    return _family(name, [((), value)])


def _family(name: str, values: Sequence[tuple[tuple[str, ...], float]]) -> Metric:
    assert all(len(labels) == len(METRIC_BY_NAME[name].labels) for labels, _ in values), "a value for each label"
    catalogued = METRIC_BY_NAME[name]
    kind = CounterMetricFamily if catalogued.kind == COUNTER else GaugeMetricFamily
    family = kind(PREFIX + name, catalogued.meaning, labels=catalogued.labels)
    for labels, value in values:
        family.add_metric(labels, value)
    return family
