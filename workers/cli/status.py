"""`channelindex status`: prints the nodes, the owners of partitions, and the progress of the index."""

import argparse
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import msgspec

from channelindex import exits
from channelindex.checking.quarantine import newest_of_each
from channelindex.config import REQUIRED_TO_SEE_NODES, Config
from channelindex.epochs import PartitionRecord
from channelindex.settings import MEMORY_URL
from channelindex.stores import open_reader
from channelindex.stores.records import QUARANTINE_DOCUMENTS
from coordinator.cluster_state import ClusterState, MemberState, PartitionState, read_cluster
from coordinator.lease_redis import connect
from workers.cli import options, output

_TIMEOUT_S = 5.0

_EPILOG = """\
example:
  channelindex status
  channelindex status --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.epilog = _EPILOG
    options.add_json(parser)
    options.add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Print the state of the index and of its nodes."""
    config = options.config_of(args, REQUIRED_TO_SEE_NODES)
    with closing(StatusReader(config)) as reader:
        state = reader.read()
    if args.json:
        output.json_line(state)
    else:
        _print(state)
    return exits.OK


class StatusReader:
    """Reads the state of an index and its nodes, repeatedly. To be closed."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store = open_reader(config.index, config.node.run_dir)
        self._meta = self._store.meta()
        in_memory = config.index.store == MEMORY_URL
        self._redis = None if in_memory else connect(config.coordination.redis, _TIMEOUT_S)

    def read(self) -> dict[str, Any]:
        """The document that `channelindex status --json` prints."""
        config, meta = self._config, self._meta
        self._records = self._store.partition_records()
        n_quarantined, records = self._store.quarantined(QUARANTINE_DOCUMENTS)
        cluster = (
            read_cluster(self._redis, config.index.name, meta.n_partitions)
            if self._redis
            else _single_node(self._records)
        )
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
            "nodes": [_node(member) for member in cluster.members],
            "partitions": _partitions(cluster, self._records),
            "unowned": list(cluster.missing),
        }

    def stable(self) -> list[int]:
        """The stable clock at the last `read`, by vbucket."""
        return [seqno for record in self._records for seqno in record.stable]

    def close(self) -> None:
        """Close the connections."""
        self._store.close()
        if self._redis:
            self._redis.close()


def _single_node(records: Sequence[PartitionRecord]) -> ClusterState:
    """The state of a node that has all partitions in its memory, in the form of `read_cluster`."""
    owner = records[0].owner
    member = MemberState(owner, True, False, 0.0, 0.0, len(records), '{"state":"running"}')
    return ClusterState((member,), tuple(PartitionState(owner, None) for _ in records))


def _node(member: MemberState) -> dict[str, Any]:
    status = msgspec.json.decode(member.status) if member.status else {}
    return {**member._asdict(), "status": status}


def _partitions(cluster: ClusterState, records: Sequence[PartitionRecord]) -> list[dict[str, Any]]:
    return [
        {"partition": number, **_lease(lease), "epoch": record.epoch, "stable": sum(record.stable)}
        for number, (lease, record) in enumerate(zip(cluster.partitions, records, strict=True))
    ]


def _lease(lease: PartitionState) -> dict[str, Any]:
    return {"owner": lease.owner or None, "since_s": lease.since_s}


def _print(state: dict[str, Any]) -> None:
    index = state["index"]
    shape = f"{index['partitions']} partitions, {index['vbuckets']} vbuckets, format {index['format']}"
    output.line(f"index {index['name']}: {shape}")
    output.line(f"source bucket {index['source_uuid']}")
    output.line(f"stable {index['stable']} (sum of seqnos), quarantined {index['quarantined']}")
    if index["in_quarantine"]:
        number = index["in_quarantine"]
        output.line(f"WARNING: {number} documents are in quarantine, in no channel: channelindex quarantine list")
    output.line("")
    if state["nodes"]:
        header = ("node", "state", "partitions", "lag", "lag s", "changes/s", "restarts", "last seen")
        output.table(header, [_node_row(node) for node in state["nodes"]])
    else:
        output.line("no node is alive, and none died within the last hour")
    if state["unowned"]:
        output.line("")
        output.line(f"partitions without an owner: {ranges(state['unowned'])}")


def _node_row(node: dict[str, Any]) -> tuple[object, ...]:
    status = node["status"]
    condition = "dead" if not node["alive"] else "draining" if node["draining"] else status.get("state", "starting")
    numbers = (status.get(name, "?") for name in ("lag", "lag_s", "rate", "restarts"))
    return node["node"], condition, node["n_partitions"], *numbers, f"{node['silent_s']:.1f} s ago"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending *numbers* in short form: 1-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
