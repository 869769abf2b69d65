"""The alert rules: `make docs` writes docs/alerts.yml for Prometheus and the table of docs/metrics.md from them."""

from typing import NamedTuple

JOB = "channelindex"
"""The `job` under which Prometheus scrapes the nodes; only the alert of a node that is down needs it."""


class Alert(NamedTuple):
    """One rule. `for_` is the time for which the expression has to be true."""

    name: str
    expr: str
    for_: str
    severity: str
    meaning: str
    action: str


ALERTS = (
    Alert(
        "NodeDown", f'up{{job="{JOB}"}} == 0', "2m", "warning",
        "A node cannot be scraped.",
        "`systemctl status channelindex@NAME`, then its journal. Its peers index its partitions meanwhile.",
    ),
    Alert(
        "PartitionsUnowned", "max(channelindex_partitions_unowned) > 0", "2m", "critical",
        "Partitions have no owner: their changes are not indexed.",
        "Start the missing nodes (`channelindex status`). None missing: look for `leases.trouble` in their logs.",
    ),
    Alert(
        "LeaseTrouble", "channelindex_lease_trouble == 1", "1m", "critical",
        "A node cannot renew its leases; it stops indexing when they expire.",
        "Restore the Redis of `coordination.redis`. The node's log line `leases.trouble` has the reason.",
    ),
    Alert(
        "NotStreaming", "sum by (instance) (channelindex_partition_streaming == bool 0) > 0", "2m", "critical",
        "Partitions of a node have no running stream.",
        "Is the bucket's data service up? The log lines of `feed_worker` name the error; `child.ended` its exit code.",
    ),
    Alert(
        "Lagging", "max by (instance) (channelindex_partition_lag_seconds) > 60", "5m", "warning",
        "A change has waited for more than a minute.",
        "`channelindex top`: full rings: writers or store are slow; empty rings: feed workers or bucket. "
        "See tuning in docs/operations.md.",
    ),
    Alert(
        "Stalled", "max by (instance) (channelindex_partition_lag_seconds) > 600", "1m", "critical",
        "A partition has not moved for ten minutes.",
        "As `Lagging`. Only one partition: find its worker in `channelindex status --json` and restart the node.",
    ),
    Alert(
        "WorkersDie", "sum by (instance, role) (increase(channelindex_process_restarts_total[15m])) > 5", "0m",
        "warning", "Processes of a node keep dying.",
        "The log lines `child.failed` and `child.crashed` have the reason; exit codes are in docs/commands.md.",
    ),
    Alert(
        "StoreErrors",
        "sum by (instance) (rate(channelindex_writer_store_errors_total[5m])) "
        "+ sum by (instance) (rate(channelindex_feed_store_errors_total[5m])) > 0",
        "5m", "critical", "The index store refuses writes. They are kept and retried.",
        "The log lines `batch.write_failed` and `feed.advance_failed` have its error: `maxmemory`, disk, down.",
    ),
    Alert(
        "StoreSlow",
        "histogram_quantile(0.99, sum by (instance, le) (rate(channelindex_writer_store_seconds_bucket[5m]))) > 0.5",
        "10m", "warning", "One batch in a hundred takes the store more than half a second.",
        "Redis: `SLOWLOG GET`, `INFO persistence` (a fork or fsync), swap. A bucket: durability, its own load.",
    ),
    Alert(
        "RingsFull",
        "channelindex_feed_ring_fill_bytes / (channelindex_feed_ring_capacity_bytes > 0) > 0.8",
        "10m", "warning", "The writers cannot keep up with the feed.",
        "Raise `workers.batch_writers` and reload while cores are free; else see `StoreSlow`, or add a node.",
    ),
    Alert(
        "CompactionBehind", "max(channelindex_compaction_oldest_due_seconds) > 86400", "1h", "warning",
        "A channel has waited for a day to be compacted: the index grows.",
        "`compaction.cpu_share` too small, or the log line `compaction.skipped` names a damaged channel: repair it.",
    ),
    Alert(
        "CompactionSkips", "sum by (instance) (increase(channelindex_compaction_skipped_total[1h])) > 0", "0m",
        "warning", "Channels cannot be compacted: they are damaged, or too large.",
        "The log line `compaction.skipped` names channel and reason. Damaged: `channelindex repair --channel C`.",
    ),
    Alert(
        "CompactionRefused",
        "sum(increase(channelindex_compaction_refused_total[1h])) "
        "> sum(increase(channelindex_compaction_channels_total[1h])) + 10",
        "0m", "warning", "Most compactions come to nothing: the nodes compact the same channels at the same time.",
        "Set `workers.compactors` to 0 on some nodes.",
    ),
    Alert(
        "Quarantined", "sum by (instance) (increase(channelindex_feed_quarantined_total[1h])) > 0", "0m", "warning",
        "Documents could not be decoded. They are in no channel.",
        "`channelindex quarantine list` prints keys and reasons; fix the documents and save them again.",
    ),
    Alert(
        "QuarantineGrows",
        "sum by (instance) (rate(channelindex_feed_quarantined_total[15m])) "
        "> 0.01 * sum by (instance) (rate(channelindex_feed_events_total[15m]))",
        "5m", "critical", "More than one change in a hundred cannot be decoded: the index lacks them.",
        "`channelindex quarantine list` has the reasons. Not the documents' fault: repair the decoder, restart the "
        "nodes, then `channelindex quarantine retry --all`.",
    ),
    Alert(
        "LeasesFlap",
        "sum by (instance) (increase(channelindex_leases_gained_total[30m])) > 3 * sum by (instance) "
        "(channelindex_leases) + 30",
        "0m", "warning", "Partitions keep moving between nodes.",
        "`channelindex events` shows which node comes and goes: check its CPU, memory and network path to Redis.",
    ),
    Alert(
        "ReloadRefused", 'increase(channelindex_node_reloads_total{outcome="refused"}[15m]) > 0', "0m", "warning",
        "A node refused the configuration at a reload; it keeps the old one.",
        "`channelindex config check --config FILE` prints every problem; fix them, then `systemctl reload`.",
    ),
    Alert(
        "SupervisorSlow", "channelindex_supervisor_turn_age_seconds > 10", "1m", "critical",
        "A supervisor's loop has stopped: its workers are not watched.",
        "The machine has no CPU or was paused. systemd restarts the node when `WatchdogSec` is over.",
    ),
    Alert(
        "MemoryGrows", "channelindex_process_resident_bytes > 2e9", "10m", "warning",
        "A process of a node uses more than 2 GB.",
        "`systemctl reload` replaces the workers. Again at once: lower `workers.ring_bytes`; else report it.",
    ),
)  # fmt: skip
"""Every rule, without the prefix ChannelIndex of its name."""


def rules() -> str:
    """docs/alerts.yml."""
    lines = ["# Made by `make docs` from `workers/telemetry/alerts.py`; do not edit."]
    lines += ["groups:", "  - name: channelindex", "    rules:"]
    for alert in ALERTS:
        lines += [
            f"      - alert: ChannelIndex{alert.name}",
            f"        expr: {_quoted(alert.expr)}",
            f"        for: {alert.for_}",
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            f"          summary: {_quoted(alert.meaning)}",
            f"          action: {_quoted(alert.action)}",
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """*text* as YAML writes it in single quotes."""
    return "'" + text.replace("'", "''") + "'"
