"""Real nodes for tests: `channelindex run` in a process of its own, with its log in a file."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from channelindex.epochs import PartitionRecord
from channelindex.errors import IndexMissing, Transient
from channelindex.stores import open_reader
from tests.support.starting import Started, start
from tests.support.stores import settings_of

DEADLINE_S = 120.0
"""Long enough for a machine that does ten times as much besides. Who waits in vain waits so long, nobody else."""


class Node:
    """One node against a bucket and a store of its index. `start` may be called again after `kill` or `drain`.

    `module` is what is run, with the arguments of `channelindex`, by `python`.
    """

    module = "channelindex"
    python = sys.executable

    def __init__(self, name: str, folder: Path, store_url: str, bucket: Any, **settings: object) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._config = folder / f"{name}.toml"
        self._process: Started | None = None
        lines = {
            "node.name": name,
            "node.run_dir": str(folder),
            "source.url": bucket.url,
            "source.user": bucket.user,
            "source.password": bucket.password,
            "index.store": store_url,
            "coordination.ttl_s": 2.0,
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        self._config.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in lines.items()))

    @property
    def config(self) -> Path:
        """The node's configuration file."""
        return self._config

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        assert self._process
        return self._process.pid

    def start(self) -> Self:
        """Start the node in the background."""
        with self.log.open("ab") as log:
            environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
            program = (self.python, "-m", self.module)
            self._process = start("run", "--config", self._config, output=log, environ=environ, program=program)
        return self

    def children(self, role: str) -> list[psutil.Process]:
        """The live children of a role (feed_worker, batch_writer, lease_keeper)."""
        try:
            return [child for child in psutil.Process(self.pid).children() if child.name() == role[:15]]
        except psutil.NoSuchProcess:
            return []

    def signal_all(self, signum: signal.Signals) -> None:
        """Send *signum* to the supervisor and all its children, as a frozen or thawed machine would."""
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signum)

    def signal(self, signum: signal.Signals) -> None:
        """Send *signum* to the supervisor."""
        assert self._process
        self._process.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL the supervisor; its children die with it."""
        assert self._process
        family = self._family()
        self._process.kill()
        self._process.wait(DEADLINE_S)
        _, alive = psutil.wait_procs(family, timeout=DEADLINE_S)
        assert not alive, f"children outlived their supervisor: {alive}"

    def _family(self) -> list[psutil.Process]:
        """The supervisor and its children, or nobody where it has ended."""
        try:
            supervisor = psutil.Process(self.pid)
            return [supervisor, *supervisor.children()]
        except psutil.NoSuchProcess:
            return []

    def drain(self) -> int:
        """SIGTERM, and wait for the end; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; the exit code."""
        assert self._process
        return self._process.wait(DEADLINE_S)

    @property
    def running(self) -> bool:
        """Whether the supervisor lives."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.running:
            self.signal_all(signal.SIGCONT)
            self.kill()
        if error is not None and self.log.exists():
            print(f"--- log of node {self.name}, last lines\n{self.log.read_text()[-6000:]}")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Poll *condition* until it holds; fail saying *what* was waited for."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {deadline_s:.0f} s for {what}"
        time.sleep(0.05)


def eventually(act: Callable[[], Any]) -> Any:
    """What *act* returns once the store can be reached again; nothing but errors that pass may come before."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return act()
        except Transient:
            assert time.monotonic() < deadline, f"waited {DEADLINE_S:.0f} s for the store"
            time.sleep(0.05)


def stable_seqnos(store_url: str, index: str = "channels") -> dict[int, int]:
    """The stable clock, by vbucket; empty while there is no index, or no store that answers."""
    reader = open_reader(settings_of(store_url, index))
    try:
        records: list[PartitionRecord] = list(reader.partition_records())
    except (IndexMissing, Transient):
        return {}
    finally:
        reader.close()
    return {vb: seqno for record in records for vb, seqno in zip(record.vbuckets, record.stable, strict=True)}
