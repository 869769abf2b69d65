"""A real Redis Cluster of three masters on loopback, with replicas or without, of the server that all tests use."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from tests.support.ports import free_ports
from tests.support.redis_servers import answers, launch

N_SLOTS = 16384
N_MASTERS = 3
NODE_TIMEOUT_MS = 1000
"""How long a master may be silent before its replica takes its place."""
_BUS_OFFSET = 10_000
_TIMEOUT_S = 120.0
_HAND_OVER_S = 5.0
"""After so long, a server gives a planned failover up."""


class ClusterOfThree:
    """Three masters, each with a third of the slots. `url` names the first of them. Use as a context manager.

    With *replicas*, node number n + 3 is the replica of n, and takes its place when n has been silent for
    NODE_TIMEOUT_MS; `url` names all six.
    """

    def __init__(self, *, replicas: bool = False, append_only: bool = False) -> None:
        self._append_only = append_only
        self._node_timeout_ms = NODE_TIMEOUT_MS if replicas else 2000
        self._folder = Path(tempfile.mkdtemp(prefix="channelindex-cluster-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self.ports = free_ports(6 if replicas else 3, _BUS_OFFSET)
        named = self.ports if replicas else self.ports[:1]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in named)
        self.nodes: list[Any] = []
        try:
            for port in self.ports:
                self._start(port)
            self._join()
            if replicas:
                self._replicate()
        except BaseException:
            self.close()
            raise

    def _start(self, port: int) -> None:
        self._processes.append(self._launch(port))
        node = redis.Redis(port=port, socket_timeout=5.0)
        node.response_callbacks.clear()  # replies as they come: versions of the client differ in what they make of them
        self.nodes.append(node)

    def _launch(self, port: int, *lines: str) -> subprocess.Popen[bytes]:
        return launch(
            self._folder / str(port),
            port,
            'save ""',
            f"appendonly {'yes' if self._append_only else 'no'}",
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            f"cluster-node-timeout {self._node_timeout_ms}",
            "cluster-replica-validity-factor 0",  # a replica that a busy machine kept from its master is good enough
            *lines,
        )

    def _join(self) -> None:
        for number, node in enumerate(self.nodes):
            until(lambda node=node: answers(node))
            if number < N_MASTERS:
                node.execute_command("CLUSTER", "ADDSLOTS", *slots_of(number))
                node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port in self.ports[1:]:
            self.nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
        for node in self.nodes:
            until(lambda node=node: self._agrees(node))

    def _replicate(self) -> None:
        """Make each of the last three nodes the replica of one of the first, and wait until it has what that has."""
        for number in range(N_MASTERS):
            self.nodes[number + N_MASTERS].execute_command("CLUSTER", "REPLICATE", self._id(number))
        for number in range(N_MASTERS):
            self.await_replica(number + N_MASTERS)

    def await_replica(self, number: int) -> None:
        """Wait until node *number* replicates, and its master knows it."""
        until(lambda: b"master_link_status:up" in self.nodes[number].execute_command("INFO", "replication"))

    def await_offset(self, number: int) -> None:
        """Wait until the replica of node *number* has all that this has written."""
        offset = self._offset(number)
        until(lambda: self._offset(number + N_MASTERS) >= offset)

    def _offset(self, number: int) -> int:
        info = self.nodes[number].execute_command("INFO", "replication")
        return int(info.partition(b"master_repl_offset:")[2].split(b"\r")[0])

    def await_agreement(self, gone: int) -> None:
        """Wait until all nodes beyond *gone* agree that the cluster works."""
        for node in self.nodes[gone + 1 :]:
            until(lambda node=node: b"cluster_state:ok" in node.execute_command("CLUSTER", "INFO"))

    def folder(self, number: int) -> Path:
        """The folder of node *number*."""
        return self._folder / str(self.ports[number])

    def process(self, number: int) -> subprocess.Popen[bytes]:
        """The server of node *number*."""
        return self._processes[number]

    def kill(self, number: int) -> None:
        """Kill node *number* for good."""
        self._processes[number].kill()
        self._processes[number].wait()

    def start_again(self, number: int, *lines: str) -> None:
        """Start node *number* again, with what it has on disk, and *lines* in its configuration."""
        self._processes[number] = self._launch(self.ports[number], *lines)

    def write_append_file(self, number: int) -> None:
        """Have node *number*, which was started without one, write an append-only file from now on."""
        self.nodes[number].execute_command("CONFIG", "SET", "appendonly", "yes")

        def is_written() -> bool:
            info = self.nodes[number].execute_command("INFO", "persistence")
            return all(
                line in info for line in (b"aof_enabled:1", b"aof_rewrite_in_progress:0", b"aof_rewrite_scheduled:0")
            )

        until(is_written)

    def append_file_size(self, number: int) -> int:
        """The size of the append-only file of node *number*, with all that it has acknowledged so far."""
        until(lambda: b"aof_buffer_length:0" in self.nodes[number].execute_command("INFO", "persistence"))
        return self._append_file(number).stat().st_size

    def tear_append_file(self, number: int, size: int) -> None:
        """Cut the file of node *number*, which was killed, to *size*: what came later was not on disk yet."""
        assert size < self._append_file(number).stat().st_size, "nothing came later"
        os.truncate(self._append_file(number), size)

    def _append_file(self, number: int) -> Path:
        folder = self.folder(number)
        return max((*folder.glob("appendonlydir/*.incr.aof"), *folder.glob("*.aof")))

    def await_promotion(self, number: int) -> None:
        """Wait until node *number* is a master, and a node that lives knows it."""
        until(lambda: self.is_master(number))

    def hand_over(self, number: int) -> None:
        """Have the replica of node *number* take its place as planned; asked again while it takes too long."""
        self.await_offset(number)
        replica = number + N_MASTERS
        asked_at = float("-inf")

        def is_done() -> bool:
            nonlocal asked_at
            if time.monotonic() > asked_at + 2 * _HAND_OVER_S and not self.is_master(replica):
                self.nodes[replica].execute_command("CLUSTER", "FAILOVER")
                asked_at = time.monotonic()
            return self.is_master(replica)

        until(is_done)

    def await_layout(self) -> None:
        """Wait until all nodes say the same of who has which slots."""

        def masters_of(node: Any) -> frozenset[tuple[int, int, int]]:
            return frozenset((first, last, at[1]) for first, last, at, *_ in node.execute_command("CLUSTER", "SLOTS"))

        until(lambda: len({masters_of(node) for node in self.nodes}) == 1)

    def allow_no_failover(self) -> None:
        """Let no master be replaced because the machine is busy."""
        for node in self.nodes:
            node.execute_command("CONFIG", "SET", "cluster-node-timeout", 60_000)

    def is_master(self, number: int) -> bool:
        """Whether node *number* answers, and says that it is a master."""
        try:
            return b"role:master" in self.nodes[number].execute_command("INFO", "replication")
        except redis.RedisError:
            return False

    def _agrees(self, node: Any) -> bool:
        state = node.execute_command("CLUSTER", "INFO")
        return b"cluster_state:ok" in state and f"cluster_known_nodes:{len(self.ports)}".encode() in state

    def flush(self) -> None:
        """Empty all nodes."""
        for node in self.nodes:
            node.flushall()

    def move(self, tag: str, to: int) -> None:
        """Give the slot of the hash tag *tag*, with its keys, to node number *to*."""
        source, slot = self.begin_move(tag, to)
        while keys := self.nodes[source].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            for key in keys:
                self.nodes[source].execute_command("MIGRATE", "127.0.0.1", self.ports[to], key, 0, 5000)
        self.end_move(slot, to)

    def begin_move(self, tag: str, to: int) -> tuple[int, int]:
        """Put the slot of *tag* into migration to node *to*, without moving a key; (node that has it, slot)."""
        slot = self.nodes[0].execute_command("CLUSTER", "KEYSLOT", f"{{{tag}}}")
        source = self.owner_of(slot)
        self.nodes[to].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        self.nodes[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(to))
        return source, slot

    def end_move(self, slot: int, to: int) -> None:
        """Have all nodes know that *slot* is at node *to*."""
        for node in (self.nodes[to], *self.nodes):
            node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self._id(to))

    def restart_empty(self, number: int) -> None:
        """Kill node *number* and start it again with its slots and without its keys."""
        self.kill(number)
        self.restart(number)

    def restart(self, number: int, *lines: str) -> None:
        """Start node *number*, which was killed, before anybody takes its place; wait until the cluster works."""
        self.start_again(number, *lines)
        for node in self.nodes:
            until(lambda node=node: answers(node) and self._agrees(node))

    def owner_of(self, slot: int) -> int:
        """The number of the node that has *slot*."""
        ranges = self.nodes[0].execute_command("CLUSTER", "SLOTS")
        (port,) = [master[1] for first, last, master, *_ in ranges if first <= slot <= last]
        return self.ports.index(port)

    def _id(self, number: int) -> str:
        found: bytes = self.nodes[number].execute_command("CLUSTER", "MYID")
        return found.decode()

    def close(self) -> None:
        """Stop the servers and remove their folder."""
        for node in self.nodes:
            node.close()
        for process in self._processes:
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def slots_of(number: int) -> range:
    """The slots that node *number* has at the start."""
    return range(number * N_SLOTS // 3, (number + 1) * N_SLOTS // 3)


def until(condition: Any) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "the cluster did not come up"
        time.sleep(0.02)
