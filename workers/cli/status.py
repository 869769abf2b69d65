"""`channelindex status`: prints the nodes, the owners of partitions, and the progress of the index."""

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from channelindex import exits
from channelindex.checking.quarantine import newest_of_each
from channelindex.config import REQUIRED_TO_SEE_NODES, Config
from channelindex.epochs import PartitionRecord
from channelindex.redis.link import Link
from channelindex.settings import MEMORY_URL
from channelindex.stores import open_reader
from channelindex.stores.records import QUARANTINE_DOCUMENTS
from coordinator.cluster_state import ClusterState, MemberState, PartitionState, read_cluster
from coordinator.lease_redis import connect
from workers.cli import index_lag, options, output, store_state
from workers.cli.compaction_state import compaction_line, describe_compaction
from workers.cli.index_lag import BucketHighSeqnos
from workers.cli.node_state import describe_node, tinted
from workers.cli.store_state import describe_server, store_line

_TIMEOUT_S = 5.0
MAX_LAG_S = 60.0
"""The lag that `status --check` takes for well."""

_EPILOG = """\
example:
  channelindex status
  channelindex status --json
  channelindex status --check --max-lag 30 || page somebody

The lag is counted from the bucket's high seqnos where source.url and its
account are configured, else from what running nodes report.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 and the reasons if a partition is without a reporting owner or the index is too far behind",
    )
    parser.add_argument(
        "--max-lag",
        type=options.seconds,
        default=MAX_LAG_S,
        metavar="S",
        help="with --check: the lag in seconds that is still well (default: %(default)g)",
    )
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Print the state of the index and of its nodes; with --check, judge it."""
    config = options.config_of(args, REQUIRED_TO_SEE_NODES)
    with closing(StatusReader(config)) as reader:
        state = reader.read()
    if args.json:
        output.json_line(state)
    else:
        _print(state)
    problems = [*index_lag.problems(state, args.max_lag), *store_state.problems(state["store"])] if args.check else []
    for problem in problems:
        output.warn(problem)
    return exits.DIFFERENCES if problems else exits.OK


class StatusReader:
    """Reads the state of an index and its nodes, repeatedly. To be closed."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store = open_reader(config.index, config.node.run_dir)
        self._meta = self._store.meta()
        self._bucket = BucketHighSeqnos(config.source)
        in_memory = config.index.store == MEMORY_URL
        self._redis = None if in_memory else connect(config.coordination.redis, _TIMEOUT_S)

    def read(self) -> dict[str, Any]:
        """The document that `channelindex status --json` prints."""
        config, meta = self._config, self._meta
        asked_at = time.monotonic()
        self._records = self._store.partition_records()
        read_ms = (time.monotonic() - asked_at) * 1000
        n_quarantined, records = self._store.quarantined(QUARANTINE_DOCUMENTS)
        cluster = (
            read_cluster(self._redis, config.index.name, meta.n_partitions)
            if self._redis
            else _single_node(self._records)
        )
        high = self._high = self._bucket.read()
        ttl_s = config.coordination.ttl_s
        nodes = [describe_node(member, ttl_s) for member in cluster.members]
        partitions = _partitions(cluster, self._records, self.waiting())
        return {
            "index": {
                "name": config.index.name,
                "format": meta.format,
                "vbuckets": meta.n_vbuckets,
                "partitions": meta.n_partitions,
                "source_uuid": meta.source_uuid,
                "index_uuid": meta.index_uuid,
                "stable": sum(self.stable()),
                "quarantined": n_quarantined,
                "in_quarantine": len(newest_of_each(records)),
            },
            "lag": index_lag.describe_lag(nodes, partitions, self.stable(), high)
            | {"bucket_error": self._bucket.error or None},
            "store": {"read_ms": round(read_ms, 1)} | describe_server(self._store_redis()),
            "compaction": describe_compaction(nodes),
            "nodes": nodes,
            "partitions": partitions,
            "unowned": list(cluster.missing),
        }

    def _store_redis(self) -> Link | None:
        """The Redis of the index; None where it is another one than that of the leases, which alone is connected."""
        return self._redis if self._config.coordination.redis == self._config.index.store else None

    def stable(self) -> list[int]:
        """The stable clock at the last `read`, by vbucket."""
        return [seqno for record in self._records for seqno in record.stable]

    def waiting(self) -> list[int] | None:
        """The changes that waited at the last `read`, by vbucket; None if the bucket could not be asked."""
        if self._high is None:
            return None
        return [max(0, self._high.get(vb, stable) - stable) for vb, stable in enumerate(self.stable())]

    def close(self) -> None:
        """Close the connections."""
        self._store.close()
        self._bucket.close()
        if self._redis:
            self._redis.close()


def _single_node(records: Sequence[PartitionRecord]) -> ClusterState:
    """The state of a node that has all partitions in its memory, in the form of `read_cluster`."""
    owner = records[0].owner
    member = MemberState(owner, True, False, 0.0, 0.0, len(records), '{"state":"running"}')
    return ClusterState((member,), tuple(PartitionState(owner, None) for _ in records))


def _partitions(
    cluster: ClusterState, records: Sequence[PartitionRecord], waiting: Sequence[int] | None
) -> list[dict[str, Any]]:
    """Describe each partition; *waiting* are the changes that wait, by vbucket, None if the bucket was not asked."""
    lags = _by_partition(waiting, len(records)) if waiting else [None] * len(records)
    return [
        {"partition": number, **_lease(lease), "epoch": record.epoch, "stable": sum(record.stable), "lag": lag}
        for number, (lease, record, lag) in enumerate(zip(cluster.partitions, records, lags, strict=True))
    ]


def _by_partition(waiting: Sequence[int], n_partitions: int) -> list[int]:
    assert len(waiting) % n_partitions == 0, "partitions are of one width"
    width = len(waiting) // n_partitions
    return [sum(waiting[first : first + width]) for first in range(0, len(waiting), width)]


def _lease(lease: PartitionState) -> dict[str, Any]:
    return {"owner": lease.owner or None, "since_s": lease.since_s}


def _print(state: dict[str, Any]) -> None:
    index = state["index"]
    shape = f"{index['partitions']} partitions, {index['vbuckets']} vbuckets, format {index['format']}"
    output.line(f"index {index['name']}: {shape}")
    output.line(f"source bucket {index['source_uuid']}")
    output.line(f"stable {index['stable']} (sum of seqnos), quarantined {index['quarantined']}")
    output.line(index_lag.lag_line(state["lag"], sum(n["status"].get("rate", 0) for n in state["nodes"] if n["heard"])))
    output.line(store_line(state["store"]))
    output.line(compaction_line(state["compaction"]))
    if state["lag"]["bucket_error"]:
        output.line(f"the lag is what nodes report; the bucket was not asked: {state['lag']['bucket_error']}")
    if index["in_quarantine"]:
        number = index["in_quarantine"]
        output.line(f"WARNING: {number} documents are in quarantine, in no channel: channelindex quarantine list")
    output.line("")
    if state["nodes"]:
        header = ("node", "state", "partitions", "lag", "lag s", "changes/s", "restarts", "kernel", "last seen")
        output.table(header, [_node_row(node) for node in state["nodes"]])
    else:
        output.line("no node is alive, and none died within the last hour")
    if state["unowned"]:
        output.line("")
        output.line(f"partitions without an owner: {ranges(state['unowned'])}")


def _node_row(node: dict[str, Any]) -> tuple[object, ...]:
    status = node["status"] if node["heard"] else {"kernel": node["status"].get("kernel", "?")}
    numbers = (status.get(name, "?") for name in ("lag", "lag_s", "rate", "restarts", "kernel"))
    return node["node"], tinted(node["state"]), node["n_partitions"], *numbers, f"{node['silent_s']:.1f} s ago"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending *numbers* in short form: 1-3, 7."""
    runs: list[list[int]] = []
    assert list(numbers) == sorted(numbers), "ascending"
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
