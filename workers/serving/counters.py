"""Counts what the service does, for Prometheus. `docs/metrics.md` explains each."""

from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from workers.telemetry.metrics import COUNTER, GAUGE, HISTOGRAM, PREFIX, Metric

WAKE_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

SERVE_METRICS = (
    Metric("serve_connections", GAUGE, (), "Connections of clients.",
           "Near `serve.max_connections`: start another service."),
    Metric("serve_followers", GAUGE, ("feed",), "Feeds that are open.", "0 with clients at work: see `serve_refused`."),
    Metric("serve_requests", COUNTER, ("feed",), "Requests for changes that were answered, by feed.",
           "Many longpolls a second and few rows: clients that ignore `last_seq`."),
    Metric("serve_rows", COUNTER, ("feed",), "Rows that were sent.", "None; for rates."),
    Metric("serve_refused", COUNTER, ("error",), "Requests that were refused, by the `error` in the answer.",
           "unauthorized: tokens that were withdrawn are still used. too_many_requests: a client in a loop."),
    Metric("serve_cut", COUNTER, ("reason",), "Answers that were cut off: slow readers, late heads, errors on the way.",
           "slow_reader: clients or networks that do not keep up. error: the log line `serve.refused`."),
    Metric("serve_wake_seconds", HISTOGRAM, (), "From the look that found a change to its row being given to a client.",
           "Above a second: too many followers of one channel, or too little CPU."),
    Metric("serve_scans", GAUGE, (), "Reads of the index that are under way or wait for their turn.",
           "At the limit for long: clients begin at 0 again and again, or Redis is slow."),
)  # fmt: skip
"""Every metric of `channelindex serve`, beside those of its process."""


class Counters(NamedTuple):
    """The metrics of one service; each has the name of its `Metric` without `serve_`."""

    registry: CollectorRegistry
    connections: Gauge
    followers: Gauge
    requests: Counter
    rows: Counter
    refused: Counter
    cut: Counter
    wake_seconds: Histogram
    scans: Gauge


def make_counters() -> Counters:
    """All of them at 0, in a registry of their own."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    made: dict[str, Counter | Gauge | Histogram] = {}
    for metric in SERVE_METRICS:
        name = metric.name.removeprefix("serve_")
        match metric.kind:
            case "counter":
                made[name] = Counter(PREFIX + metric.name, metric.meaning, metric.labels, registry=registry)
            case "gauge":
                made[name] = Gauge(PREFIX + metric.name, metric.meaning, metric.labels, registry=registry)
            case _:
                made[name] = Histogram(PREFIX + metric.name, metric.meaning, buckets=WAKE_BOUNDS_S, registry=registry)
    return Counters(registry=registry, **made)  # type: ignore[arg-type]  # by name, each of its kind


assert {metric.kind for metric in SERVE_METRICS} <= {COUNTER, GAUGE, HISTOGRAM}, "make_counters knows these"
