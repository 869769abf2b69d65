"""A master and its replica on loopback, with a Sentinel or without."""

import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from tests.support.ports import free_ports
from tests.support.redis_cluster import until
from tests.support.redis_servers import answers, launch

SERVICE = "main"
DOWN_AFTER_MS = 1000
"""How long a master may be silent before the Sentinel has its replica take its place."""
_NEVER_MS = 3_600_000
"""How long a Sentinel may stand still with a busy machine before it promotes nobody for half a minute, and then finds
that the replica has been without its master for too long."""
_OPTIONS = {"down-after-milliseconds": DOWN_AFTER_MS, "failover-timeout": 3000}


class MasterAndReplica:
    """Server number 0 is the master at the start. Use as a context manager.

    With *append_only* both write an append-only file, and have on disk what is older than a second.
    """

    def __init__(self, *, append_only: bool = False) -> None:
        self._append_only = append_only
        self._folder = Path(tempfile.mkdtemp(prefix="channelindex-replicated-"))
        self.ports = free_ports(3)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._master = 0
        try:
            self.start(0)
            self.start(1, f"replicaof 127.0.0.1 {self.ports[0]}")
            self._start_more()
        except BaseException:
            self.close()
            raise

    def _start_more(self) -> None:
        """Start what else belongs to it."""

    @property
    def master(self) -> int:
        """The number of the master."""
        return self._master

    def start(self, number: int, lines: str = "", *, sentinel: bool = False) -> None:
        """Start server *number*, and wait until it answers and, if it is a replica, has what its master has."""
        writes_file = f"appendonly {'yes' if self._append_only else 'no'}"
        common = () if sentinel else ('save ""', writes_file, "repl-diskless-sync yes", "repl-diskless-sync-delay 0")
        self._processes[number] = launch(
            self._folder / str(number), self.ports[number], *common, lines, sentinel=sentinel
        )
        until(lambda: answers(self.client(number)))
        if "replicaof" in lines:
            until(lambda: self.client(number).info("replication")["master_link_status"] == "up")

    def client(self, number: int) -> Any:
        """A client of server *number*."""
        return redis.Redis(port=self.ports[number], socket_timeout=5.0)

    def folder(self, number: int) -> Path:
        """The folder of server *number*."""
        return self._folder / str(number)

    def process(self, number: int) -> subprocess.Popen[bytes]:
        """Server *number*."""
        return self._processes[number]

    def hand_over(self) -> None:
        """Have the other server be the master, and the master its replica: planned, and nothing is lost."""
        old, new = self._master, 1 - self._master
        self.client(old).execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
        offset = self.client(old).info("replication")["master_repl_offset"]
        until(lambda: self.client(new).info("replication")["slave_repl_offset"] >= offset)
        self.client(new).execute_command("REPLICAOF", "NO", "ONE")
        self.client(old).execute_command("REPLICAOF", "127.0.0.1", self.ports[new])
        self.client(old).execute_command("CLIENT", "UNPAUSE")
        self._master = new

    def promote(self) -> None:
        """Have the replica be a master of its own. The old master lives on as such, and nobody tells it."""
        self._master = 1 - self._master
        self.client(self._master).execute_command("REPLICAOF", "NO", "ONE")

    def await_replica(self) -> None:
        """Wait until the replica has all that the master has written."""
        master, replica = self.client(self.master), self.client(1 - self.master)
        offset = master.info("replication")["master_repl_offset"]
        until(lambda: replica.info("replication")["master_repl_offset"] >= offset)

    def kill(self, number: int) -> None:
        """Kill server *number*."""
        self._processes[number].kill()
        self._processes[number].wait()

    def close(self) -> None:
        """Stop the servers and remove their folder."""
        for process in self._processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SentinelAndMaster(MasterAndReplica):
    """`url` leads to the master that the Sentinel names; it makes the replica one by itself when the master is gone."""

    @property
    def url(self) -> str:
        """Where nodes are to look."""
        return f"redis+sentinel://127.0.0.1:{self.ports[2]}/{SERVICE}/0"

    def _start_more(self) -> None:
        options = (f"sentinel {name} {SERVICE} {value}" for name, value in _OPTIONS.items())
        lines = (f"sentinel monitor {SERVICE} 127.0.0.1 {self.ports[0]} 1", *options)
        self.start(2, "\n".join(lines), sentinel=True)
        with suppress(redis.ResponseError):  # before Redis 7 it cannot be told
            self.client(2).execute_command("SENTINEL", "DEBUG", "tilt-trigger", _NEVER_MS)
        until(lambda: self.client(2).execute_command("SENTINEL", "REPLICAS", SERVICE))

    def promote(self) -> None:
        """Have the replica be the master, and the Sentinel know it, as an operator does where it promotes nobody."""
        replica = 1 - self.master
        self.client(replica).execute_command("REPLICAOF", "NO", "ONE")
        sentinel = self.client(2)
        sentinel.execute_command("SENTINEL", "REMOVE", SERVICE)
        sentinel.execute_command("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", self.ports[replica], 1)
        for name, value in _OPTIONS.items():
            sentinel.execute_command("SENTINEL", "SET", SERVICE, name, value)

    @property
    def master(self) -> int:
        """The number of the server that the Sentinel names."""
        _, port = self.client(2).execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return self.ports.index(int(port))

    def allow_no_failover(self) -> None:
        """Let the master not be replaced because it is silent."""
        self.client(2).execute_command("SENTINEL", "SET", SERVICE, "down-after-milliseconds", _NEVER_MS)

    def fail_over(self) -> None:
        """Kill the master for good, and wait until the Sentinel names its replica."""
        old = self.master
        self.kill(old)
        until(lambda: self.master != old)
