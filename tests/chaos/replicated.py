"""Stores of several servers, whose masters are lost and replaced while the world goes on."""

import os
import random
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from tests.chaos.proxy import Link, Proxy
from tests.support.redis_cluster import N_MASTERS, ClusterOfThree
from tests.support.redis_sentinel import MasterAndReplica, SentinelAndMaster

DEADLINE_S = 30.0
"""For a promotion, or for a replica to have what its master has."""


TAIL_BYTES = 512
"""More than a master sends to an idle replica within a fault: so much of its stream has writes."""


class Unfit(Exception):
    """There is no master with a replica that could take its place, or another fault has the store."""


class ReplicatedStore(ABC):
    """Servers of which some are replicas. One fault at a time: a second one would leave nobody to promote."""

    hand_over_loses = False
    """Whether a planned failover may lose the newest writes."""

    hand_over_returns = False
    """Whether the index may go back a little after one that loses nothing."""

    def __init__(self) -> None:
        self.settings: dict[str, object] = {}
        self.begun = time.monotonic()
        self.n_lost_tails = 0
        """Replicas that took the place of masters and lacked writes that these had acknowledged."""
        self._is_taken = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the store for one fault, healing included."""
        if self._is_taken:
            raise Unfit
        self._is_taken = True
        try:
            yield
        finally:
            self._is_taken = False

    @property
    @abstractmethod
    def url(self) -> str:
        """Where nodes and readers find it."""

    @abstractmethod
    def draw(self, rnd: random.Random) -> tuple[int, int]:
        """Choose a master and return its number, and that of its replica."""

    @abstractmethod
    def client(self, number: int) -> Any:
        """A client of a server."""

    @abstractmethod
    def process(self, number: int) -> subprocess.Popen[bytes]:
        """A server's process."""

    @abstractmethod
    def folder(self, number: int) -> Path:
        """A server's folder."""

    @abstractmethod
    def start(self, number: int, master: int, *lines: str) -> None:
        """Start a server that was killed; *master* is what it is to replicate, unless it was never replaced.

        *lines* are added to its configuration.
        """

    @abstractmethod
    def hand_over(self, master: int, replica: int) -> None:
        """Have *replica* take the place of *master* as planned."""

    @abstractmethod
    def close(self) -> None:
        """End all servers."""

    def replace(self, replica: int) -> None:  # noqa: B027 most do so by themselves
        """Have *replica* take the place of its master, which does not answer, where nobody else does."""

    def signal(self, number: int, signum: signal.Signals) -> None:
        """Signal a server."""
        self.process(number).send_signal(signum)

    def kill(self, number: int) -> None:
        """SIGKILL a server."""
        self.process(number).kill()
        self.process(number).wait()

    def write_append_file(self, number: int) -> None:
        """Have a server that was started without one write an append-only file from now on, and await its beginning."""
        self._await(lambda: self._answers(number))
        self.client(number).config_set("appendonly", "yes")
        self._await(lambda: self._has_append_file(number))

    def _answers(self, number: int) -> bool:
        with suppress(redis.RedisError):
            return bool(self.client(number).ping())
        return False

    def _has_append_file(self, number: int) -> bool:
        found = self.client(number).info("persistence")
        is_being_written = found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"]
        return bool(found["aof_enabled"] and not is_being_written and found["aof_last_bgrewrite_status"] == "ok")

    def cut_replication(self, master: int) -> None:
        """Close the connections of a master's replicas; what it takes from now on they have to ask for."""
        self.client(master).execute_command("CLIENT", "KILL", "TYPE", "replica")

    def await_tail(self, master: int) -> None:
        """Wait until a master, whose replica was cut off, has taken something that the replica lacks."""
        begun = self._offset(master)
        self._await(lambda: self._offset(master) >= begun + TAIL_BYTES)

    @contextmanager
    def losing_tail(self, master: int, replica: int) -> Iterator[None]:
        """In here *replica* takes the place of *master*; count it if it lacks what that has acknowledged."""
        acknowledged = self._offset(master)
        yield
        taken_over = self.client(replica).info("replication")["second_repl_offset"] - 1
        self.n_lost_tails += taken_over + TAIL_BYTES <= acknowledged

    def _offset(self, number: int) -> int:
        """How many bytes of the stream of replication a server has."""
        return int(self.client(number).info("replication")["master_repl_offset"])

    def await_role(self, number: int, role: str) -> None:
        """Wait until a server is "master", or "slave" with a link to its master."""
        self._await(lambda: self._has_role(number, role))

    def await_replica(self, *numbers: int) -> None:
        """Wait until one of some servers is a replica with a link to its master.

        Which is not settled: where the machine is busy, who has just taken a master's place may lose it again.
        """
        self._await(lambda: any(self._has_role(number, "slave") for number in numbers))

    def _has_role(self, number: int, role: str) -> bool:
        with suppress(redis.RedisError):
            found = self.client(number).info("replication")
            return found["role"] == role and (role == "master" or found["master_link_status"] == "up")
        return False

    def _await(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if time.monotonic() > deadline:
                raise Unfit
            time.sleep(0.05)

    def revive(self) -> None:  # noqa: B027 each fault heals what it did
        """Start what has ended: nothing."""

    def lift_limit(self) -> None:  # noqa: B027 no fault limits their memory
        """Give servers memory: they have it."""


class ClusterStore(ReplicatedStore):
    """Three masters and three replicas, with appendfsync everysec.

    CLUSTER FAILOVER loses nothing. But epochs after it begin at the newest moment of which all slots prove to
    have everything, up to a second earlier, and readers who were told more are told again what follows.
    """

    hand_over_returns = True

    def __init__(self) -> None:
        super().__init__()
        self._cluster = ClusterOfThree(replicas=True, append_only=True)

    @property
    def url(self) -> str:
        """See `ReplicatedStore`."""
        return self._cluster.url

    def draw(self, rnd: random.Random) -> tuple[int, int]:
        """See `ReplicatedStore`."""
        first = rnd.randrange(N_MASTERS)
        for pair in ((first, first + N_MASTERS), (first + N_MASTERS, first)):
            if self._cluster.is_master(pair[0]):
                return pair
        raise Unfit

    def client(self, number: int) -> Any:
        """See `ReplicatedStore`."""
        return redis.Redis(port=self._cluster.ports[number], socket_timeout=2.0)

    def process(self, number: int) -> subprocess.Popen[bytes]:
        """See `ReplicatedStore`."""
        return self._cluster.process(number)

    def folder(self, number: int) -> Path:
        """See `ReplicatedStore`."""
        return self._cluster.folder(number)

    def start(self, number: int, master: int, *lines: str) -> None:
        """See `ReplicatedStore`."""
        self._cluster.start_again(number, *lines)

    def hand_over(self, master: int, replica: int) -> None:
        """See `ReplicatedStore`."""
        self.client(replica).execute_command("CLUSTER", "FAILOVER")

    def close(self) -> None:
        """See `ReplicatedStore`."""
        self._cluster.close()


class OneMasterStore(ReplicatedStore):
    """A master and its replica, numbers 0 and 1 of *servers*, whichever is which."""

    def __init__(self, servers: MasterAndReplica) -> None:
        super().__init__()
        self._servers = servers

    def draw(self, rnd: random.Random) -> tuple[int, int]:
        """See `ReplicatedStore`."""
        return self._servers.master, 1 - self._servers.master

    def client(self, number: int) -> Any:
        """See `ReplicatedStore`."""
        return self._servers.client(number)

    def process(self, number: int) -> subprocess.Popen[bytes]:
        """See `ReplicatedStore`."""
        return self._servers.process(number)

    def folder(self, number: int) -> Path:
        """See `ReplicatedStore`."""
        return self._servers.folder(number)

    def start(self, number: int, master: int, *lines: str) -> None:
        """See `ReplicatedStore`."""
        role = "" if master == number else f"replicaof 127.0.0.1 {self._servers.ports[master]}"
        self._servers.start(number, "\n".join((role, *lines)))

    def close(self) -> None:
        """See `ReplicatedStore`."""
        self._servers.close()


class SentinelStore(OneMasterStore):
    """A master, its replica and a Sentinel.

    SENTINEL FAILOVER does not stop the master's writes before it promotes the replica, as CLUSTER FAILOVER does.
    """

    hand_over_loses = True

    def __init__(self) -> None:
        servers = SentinelAndMaster()
        super().__init__(servers)
        self._url = servers.url

    @property
    def url(self) -> str:
        """See `ReplicatedStore`."""
        return self._url

    def hand_over(self, master: int, replica: int) -> None:
        """See `ReplicatedStore`."""
        self._servers.client(2).execute_command("SENTINEL", "FAILOVER", "main")

    def start(self, number: int, master: int, *lines: str) -> None:
        """See `ReplicatedStore`. A Sentinel that an operator had to tell of its master knows no replica for a while."""
        super().start(number, master, *lines)
        self._await(lambda: bool(self._servers.client(2).execute_command("SENTINEL", "REPLICAS", "main")))

    def replace(self, replica: int) -> None:
        """See `ReplicatedStore`. The Sentinel does so, unless it stood still itself.

        Then it finds that the replica has been without its master for longer than it may, and asks for an operator.
        """
        try:
            self.await_role(replica, "master")
        except Unfit:
            self._servers.promote()


class AddressStore(OneMasterStore):
    """A master and its replica behind an address, which the operator moves: each user of it has a link of its own.

    Connections that stand when it is moved stay with the server that they lead to.
    """

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(MasterAndReplica(append_only=True))
        self._proxy = proxy
        self._links: list[Link] = []
        self._url = self.new_link().url

    @property
    def url(self) -> str:
        """See `ReplicatedStore`: the link of operators and watchers."""
        return self._url

    def new_link(self) -> Link:
        """A link to wherever the master is."""
        self._links.append(self._proxy.link(self._servers.ports[self._servers.master]))
        return self._links[-1]

    def hand_over(self, master: int, replica: int) -> None:
        """See `ReplicatedStore`."""
        self._servers.hand_over()
        self._move_address()

    def replace(self, replica: int) -> None:
        """Make it a master, and move the address to it. The old master, if it lives, is one too: nobody tells it."""
        self._servers.promote()
        self._move_address()

    def demote(self, number: int) -> None:
        """Make a server, which may be a master, the replica of the other one."""
        self.client(number).execute_command("REPLICAOF", "127.0.0.1", self._servers.ports[1 - number])

    def _move_address(self) -> None:
        for link in self._links:
            link.upstream = self._servers.ports[self._servers.master]


def tear(folder: Path, rnd: random.Random) -> None:
    """Cut the end off the append-only file in *folder*, as a machine does that loses a second; never most of it."""
    files = sorted(folder.glob("appendonlydir/*.incr.aof")) or sorted(folder.glob("*.aof"))
    if not files:
        raise Unfit
    size = files[-1].stat().st_size
    os.truncate(files[-1], size - rnd.randrange(min(200_000, size // 2) + 1))


@contextmanager
def kept_file(folder: Path) -> Iterator[Callable[[], None]]:
    """Keep a copy of the append-only file in *folder* as it is now; what is yielded puts it back."""
    name = "appendonlydir" if (folder / "appendonlydir").exists() else "appendonly.aof"
    with tempfile.TemporaryDirectory() as kept:
        command = ["cp", "-r", str(folder / name), f"{kept}/{name}"]
        subprocess.run(command, check=True)

        def put_back() -> None:
            subprocess.run(["rm", "-r", str(folder / name)], check=True)
            subprocess.run(["cp", "-r", f"{kept}/{name}", str(folder / name)], check=True)

        yield put_back
