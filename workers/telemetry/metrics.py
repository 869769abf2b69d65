"""The catalogue of the node's metrics: name, kind, labels, meaning, and the action when a value looks wrong.

`workers.telemetry.exposition` reads their values, `make docs` writes docs/metrics.md from them, and tests check the
alert rules and the dashboard against them. The unit is the end of the name.
"""

from typing import NamedTuple

PREFIX = "channelindex_"
COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


class Metric(NamedTuple):
    """One metric. A counter's `name` has no `_total`; the exposition adds it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str
    action: str

    @property
    def exposed_name(self) -> str:
        """The name under which it is scraped and queried; a histogram's is the stem of its three."""
        return f"{PREFIX}{self.name}_total" if self.kind == COUNTER else PREFIX + self.name

    @property
    def unit(self) -> str:
        """The unit, which the name ends with; empty for plain counts and flags."""
        return next((unit for unit in ("seconds", "bytes", "seqnos") if self.name.endswith(unit)), "")


_WORKER = ("worker",)
_PROCESS = ("role", "worker")
_PARTITION = ("partition",)

METRICS = (
    Metric("node_info", GAUGE, ("node", "index", "version"), "1; names the node, its index and its version.",
           "Different versions for long: an upgrade that was not finished."),
    Metric("node_state", GAUGE, ("state",), "1 for the state that the node is in: running, reloading or draining.",
           "Reloading for minutes: see `writer_store_errors`; the drain ends after `workers.drain_timeout_s`."),
    Metric("node_ready", GAUGE, (), "1 while `/readyz` answers 200.", "`/readyz` lists the reasons."),
    Metric("node_reloads", COUNTER, ("outcome",), "Reloads of the configuration, taken or refused.",
           "refused: the log line `config.refused` names the setting; the node goes on with the old one."),
    Metric("supervisor_turn_age_seconds", GAUGE, (), "Time since the supervisor's loop last turned; below 1 in health.",
           "The machine is paused or out of CPU; systemd restarts the node after `WatchdogSec`."),
    Metric("keeper_silent_seconds", GAUGE, (), "Time since the lease keeper's last report.",
           "Near `coordination.ttl_s`: see `lease_trouble`; the supervisor replaces a keeper that hangs."),
    Metric("lease_trouble", GAUGE, (), "1 while the leases cannot be renewed.",
           "Check the Redis of the leases; the log line `leases.trouble` has the reason. Indexing stops at expiry."),
    Metric("leases", GAUGE, (), "Partitions that this node owns.",
           "0 for long: no live feed; another node of the same name, a weight or an order of `drain` may keep it so."),
    Metric("lease_remaining_seconds", GAUGE, (), "Time until the first lease expires if it is not renewed.",
           "Falls towards 0: renewals fail; see `lease_trouble`."),
    Metric("leases_gained", COUNTER, (), "Leases that this node took: half of the moves.",
           "Keeps rising: nodes die again and again, or lack CPU."),
    Metric("leases_lost", COUNTER, (), "Leases that this node released, or that expired.", "As `leases_gained`."),
    Metric("members", GAUGE, (), "Live nodes of the index, as this node sees them.",
           "Fewer than you started: `channelindex status` names the dead."),
    Metric("partitions_to_move", GAUGE, (), "Partitions that the cluster has yet to move to be balanced.",
           "Does not reach 0: a node does not drain what it has to release; see its `partition_lag_seconds`."),
    Metric("partitions_unowned", GAUGE, (), "Partitions that no node owns.",
           "Their changes are not indexed. Start nodes; see `lease_trouble` of those that run."),
    Metric("partition_lag_seqnos", GAUGE, _PARTITION, "Seqnos between the bucket and the stable clock.",
           "See `partition_lag_seconds`."),
    Metric("partition_lag_seconds", GAUGE, _PARTITION, "Age of the oldest change that is not stable.",
           "Grows in all partitions: more workers, or a slow store. In some: their feed worker, its log lines."),
    Metric("partition_lease_age_seconds", GAUGE, _PARTITION, "Time since this node took the partition.",
           "Young again and again: leases move; see `leases_gained`."),
    Metric("partition_streaming", GAUGE, _PARTITION, "1 while the streams of the partition run.",
           "0 for long: the bucket's node is away or refuses us; the log lines of its feed worker have the reason."),
    Metric("feed_events", COUNTER, _WORKER, "Changes taken from the bucket.", "0 per second while the bucket changes: "
           "see `partition_streaming` and `feed_stalls`."),
    Metric("feed_entries", COUNTER, _WORKER, "Entries made of them, one per channel and change.",
           "Far above `feed_events`: documents in very many channels."),
    Metric("feed_quarantined", COUNTER, _WORKER, "Documents that could not be decoded; they are in no channel.",
           "`channelindex quarantine list` prints keys and reasons."),
    Metric("feed_stalls", COUNTER, _WORKER, "Turns on which a ring had no room.",
           "Rises steadily: the writers or the store are the bottleneck; see `writer_store_seconds`."),
    Metric("feed_in_flight", GAUGE, _WORKER, "Changes that are read and not yet stable.",
           "Grows: as `feed_stalls`."),
    Metric("feed_oldest_unacknowledged_seconds", GAUGE, _WORKER,
           "Age of the oldest round that some writer has not committed.",
           "Above some seconds: a writer retries; see `writer_store_errors`."),
    Metric("feed_ring_fill_bytes", GAUGE, _WORKER, "Bytes that wait in the worker's rings.",
           "Near `feed_ring_capacity_bytes`: as `feed_stalls`."),
    Metric("feed_ring_capacity_bytes", GAUGE, _WORKER, "Bytes that they can hold.", "Set by `workers.ring_bytes`."),
    Metric("feed_store_errors", COUNTER, _WORKER, "Advances of the stable clock that failed and were retried.",
           "Check the index store."),
    Metric("writer_frames", COUNTER, _WORKER, "Ring frames written.", "None; for ratios."),
    Metric("writer_appends", COUNTER, _WORKER, "Appends to channels, one per channel and batch.",
           "Close to the entries: batches merge little; larger `workers.batch_bytes`, fewer feed workers."),
    Metric("writer_block_lookups", COUNTER, _WORKER,
           "Appends before which the store had to look for the channel's block.",
           "One per channel and life of a worker. Near the appends for long: more channels than a writer remembers."),
    Metric("writer_batch_bytes", HISTOGRAM, _WORKER, "Bytes of entries per batch.",
           "Always at `workers.batch_bytes` or more: writers never catch up; raise it or add writers."),
    Metric("writer_store_seconds", HISTOGRAM, _WORKER, "Time that the store took for a batch.",
           "p99 above half a second: the store is slow (disk, memory, network, another client)."),
    Metric("writer_store_errors", COUNTER, _WORKER, "Batches that the store refused or did not answer, retried.",
           "The log line `batch.write_failed` has the store's error. Nothing is lost meanwhile."),
    Metric("compaction_due_channels", GAUGE, _WORKER, "Channels that wait to be compacted.",
           "Does not fall for hours: see `compaction_oldest_due_seconds`."),
    Metric("compaction_oldest_due_seconds", GAUGE, _WORKER, "Time for which a channel has been due, as this node saw.",
           "Above a day: `compaction.cpu_share` is too little, or `compaction_skipped` rises."),
    Metric("compaction_index_bytes", GAUGE, _WORKER, "Bytes in all blocks of the index.",
           "Above three times `compaction_live_bytes` for long: as `compaction_oldest_due_seconds`."),
    Metric("compaction_live_bytes", GAUGE, _WORKER, "Bytes that the last compaction of each channel left.",
           "0: nothing is old enough to leave, `compaction.min_lag_s`."),
    Metric("compaction_channels", COUNTER, _WORKER, "Channels that were compacted.", "None; for ratios."),
    Metric("compaction_refused", COUNTER, _WORKER, "Compactions that came to nothing: another node was faster.",
           "More than `compaction_channels`: the nodes do the same work; set `workers.compactors` to 0 on some."),
    Metric("compaction_skipped", COUNTER, _WORKER, "Channels that were left as they are: damaged or too large.",
           "The log line `compaction.skipped` names channel and reason."),
    Metric("compaction_left_entries", COUNTER, _WORKER, "Entries that left the index.", "None; for ratios."),
    Metric("compaction_read_bytes", COUNTER, _WORKER, "Bytes of blocks that were compacted.", "None; for ratios."),
    Metric("compaction_written_bytes", COUNTER, _WORKER, "Bytes of blocks that compaction wrote.",
           "Above the bytes that batch writers write: report it."),
    Metric("compaction_store_errors", COUNTER, _WORKER, "Times that compaction stopped because the store was away.",
           "Check the index store."),
    Metric("process_restarts", COUNTER, _PROCESS, "Processes that ended unexpectedly and were replaced.",
           "The log line `child.ended` has the code, the one before it the reason."),
    Metric("process_heartbeat_age_seconds", GAUGE, _PROCESS, "Time since the process's main loop last turned.",
           "At `workers.heartbeat_timeout_s` it is killed and replaced."),
    Metric("process_resident_bytes", GAUGE, _PROCESS, "Resident memory, what it shares with the others included.",
           "Grows without end: report it; a reload replaces the process."),
    Metric("process_cpu_seconds", COUNTER, _PROCESS, "CPU time used.",
           "1 per second: this process is at its limit; add workers of its kind if cores are free."),
)  # fmt: skip
"""Every metric, from the node down to its processes."""

METRIC_BY_NAME = {metric.name: metric for metric in METRICS}
