"""A master, its replica and a Sentinel on loopback."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from devbucket.embedded_redis import find_redis_server
from tests.support.redis_cluster import _answers, _free_ports, _until

SERVICE = "main"


class SentinelAndMaster:
    """`url` leads to the master that the Sentinel names. Use as a context manager."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="channelindex-sentinel-"))
        self._ports = _free_ports(3)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.url = f"redis+sentinel://127.0.0.1:{self._ports[2]}/{SERVICE}/0"
        try:
            for port in self._ports[:2]:
                self._start(port, 'save ""')
            self._start(self._ports[2], f"sentinel monitor {SERVICE} 127.0.0.1 {self._ports[0]} 1", "--sentinel")
            self._client(1).execute_command("REPLICAOF", "127.0.0.1", self._ports[0])
            _until(lambda: self._client(1).info()["master_link_status"] == "up")
        except BaseException:
            self.close()
            raise

    def _start(self, port: int, configuration: str, *arguments: str) -> None:
        file = self._folder / f"{port}.conf"
        file.write_text(f"port {port}\nbind 127.0.0.1\ndir {self._folder}\n{configuration}\n")
        command = [find_redis_server(), file, *arguments]
        self._processes.append(subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL))
        _until(lambda: _answers(redis.Redis(port=port)))

    def _client(self, number: int) -> Any:
        return redis.Redis(port=self._ports[number])

    def fail_over(self) -> None:
        """The master dies, and the replica is the master from now on."""
        time.sleep(0.1)  # what was acknowledged is on its way to the replica
        self._client(1).execute_command("REPLICAOF", "NO", "ONE")
        self._processes[0].kill()
        self._processes[0].wait()
        self._client(2).execute_command("SENTINEL", "REMOVE", SERVICE)
        self._client(2).execute_command("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", self._ports[1], 1)

    def close(self) -> None:
        """Stop the servers and remove their folder."""
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
