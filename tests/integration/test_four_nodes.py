"""Four nodes under load: planned hand-overs, crashes, pauses, a coordination that restarts; what an operator orders.

The schedule is drawn from a seed, which the test's name tells. Whatever happens, the index is exact in the end and the
stable clock never moves back; and a partition that does not move goes on as if nothing had happened.
"""

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from channelindex import exits
from coordinator.cluster_state import ClusterState
from devbucket.embedded_redis import EmbeddedRedis
from tests.support.cluster import NodeCluster, SteadyLoad, node_cluster, settle
from tests.support.gaps import Gap, GapWatch, lengths, percentile
from tests.support.node import until
from tests.support.running import cli

pytestmark = pytest.mark.slow

NAMES = ("a", "b", "c", "d")
TTL_S = 3.0
LONG_TTL_S = 90.0
"""So long that whoever waits for a lease to run out cannot be taken for slow."""


class Observed:
    """A cluster under load, its gaps, and what each kind of event did to them."""

    def __init__(self, cluster: NodeCluster, leases: list[EmbeddedRedis], rnd: random.Random) -> None:
        self.cluster = cluster
        self.load = SteadyLoad(cluster.bucket)
        self.watch = GapWatch(cluster.store_url)
        self.normal: list[Gap] = []
        self.handovers: list[Gap] = []
        self.takeovers: list[Gap] = []
        self.stayed: list[Gap] = []
        self.beside: list[Gap] = []
        """Of those that stayed, on nodes that got others."""
        self._leases = leases
        self._rnd = rnd

    @property
    def running(self) -> list[str]:
        return [name for name, node in self.cluster.nodes.items() if node.running]

    def rest(self, seconds: float) -> None:
        """Nothing happens for a while."""
        self.normal += self.watch.between(*settle(self.watch, seconds), moved=False)

    def join(self) -> None:
        """A node that does not run is started."""
        absent = [name for name in NAMES if name not in self.running]
        if absent:
            self._planned(lambda: self.cluster.start(self._rnd.choice(absent)))

    def drain(self) -> None:
        """A node is stopped by SIGTERM."""
        name = self._one_of_many()
        if name:
            self._planned(lambda: self._without(name, lambda: self.cluster.node(name).drain()))

    def kill(self) -> None:
        """A node dies, and stays dead."""
        name = self._one_of_many()
        if name:
            self._unplanned(lambda: self._without(name, self.cluster.node(name).kill))

    def restart_after_kill(self) -> None:
        """A node dies and is started again at once, as systemd would."""
        name = self._rnd.choice(self.running)

        def act() -> None:
            self.cluster.node(name).kill()
            self.cluster.start(name)

        self._unplanned(act)

    def pause(self) -> None:
        """A node stands still for longer than its leases, and goes on."""
        name = self._one_of_many()
        if not name:
            return

        def act() -> None:
            node = self.cluster.node(name)
            node.signal_all(signal.SIGSTOP)
            self.cluster.until_shared_by(*(other for other in self.running if other != name))
            node.signal_all(signal.SIGCONT)
            self.cluster.until_shared_by(*self.running)

        self._unplanned(act)

    def lose_coordination(self) -> None:
        """The Redis of the leases is restarted, without its data."""

        def act() -> None:
            folder = self._leases[0].folder
            self._leases[0].close()
            self._leases[0] = EmbeddedRedis(folder)
            self.cluster.until_shared_by(*self.running)

        self._unplanned(act)

    def _one_of_many(self) -> str | None:
        return self._rnd.choice(self.running) if len(self.running) > 1 else None

    def _without(self, name: str, end: Callable[[], object]) -> None:
        end()
        self.cluster.until_shared_by(*(other for other in self.running if other != name))

    def _planned(self, act: Callable[[], object]) -> None:
        begun, ended = self._during(act)
        moved, stayed = (self.watch.between(begun, ended, moved=moved) for moved in (True, False))
        takers = {gap.owners[1] for gap in moved}
        self.handovers += moved
        self.stayed += stayed
        self.beside += [gap for gap in stayed if gap.owners[1] in takers]

    def _unplanned(self, act: Callable[[], object]) -> None:
        begun, ended = self._during(act)
        self.takeovers += self.watch.between(begun, ended, moved=True)

    def _during(self, act: Callable[[], object]) -> tuple[float, float]:
        begun = time.monotonic()
        act()
        ended = time.monotonic()
        until(lambda: self.watch.all_moved_since(ended), "the gaps of the event to end")
        return begun, ended

    def assert_all_is_well(self) -> None:
        """Nothing lost, nothing invented, nothing taken back."""
        self.cluster.assert_exact(self.load)
        self.watch.finish()
        assert self.watch.moved_back == []

    def report(self) -> str:
        """Percentiles of everything, for the log."""
        lines = []
        for name in ("normal", "handovers", "takeovers", "stayed", "beside"):
            times = lengths(getattr(self, name))
            shown = " ".join(f"p{share * 100:g}={percentile(times, share):.3f}" for share in (0.5, 0.9, 0.99, 1.0))
            lines.append(f"{name}: n={len(times)} {shown}")
        if normal := percentile(lengths(self.normal), 0.99):
            beside = percentile(lengths(self.beside), 0.99)
            lines.append(f"p99 beside those that came, to p99 of the normal interval: {beside / normal:.2f}")
        return "\n".join(lines)


@pytest.fixture
def observed(tmp_path):
    @contextmanager
    def make(seed: int, *names: str, ttl_s: float = TTL_S) -> Iterator[Observed]:
        leases_folder = tmp_path / "leases"
        leases_folder.mkdir()
        with EmbeddedRedis() as store:
            leases = [EmbeddedRedis(leases_folder)]
            try:
                with node_cluster(tmp_path, store.url, leases[0].url, ttl_s) as cluster:
                    cluster.start(*names)
                    there = Observed(cluster, leases, random.Random(seed))
                    settle(there.watch, 1.0)
                    yield there
            finally:
                leases[0].close()

    return make


def test_planned_moves_wait_for_no_lease_to_run_out_and_disturb_nobody_else(observed):
    with observed(1, "a", "b", "c", ttl_s=LONG_TTL_S) as there:
        there.rest(2.0)
        there.join()
        there.drain()
        assert there.handovers
        print(there.report())
        there.assert_all_is_well()
        assert max(lengths(there.handovers)) < LONG_TTL_S / 3, there.report()
        assert max(lengths(there.stayed)) < LONG_TTL_S / 3, there.report()


def test_a_restart_of_a_node_within_its_lease_moves_nothing(observed):
    with observed(2, "a", "b", "c", ttl_s=LONG_TTL_S) as there:
        there.restart_after_kill()
        assert there.takeovers == [], "the restarted node goes on with its own partitions"
        there.assert_all_is_well()


def test_a_crash_is_taken_over(observed):
    with observed(2, "a", "b", "c", ttl_s=5.0) as there:
        there.kill()
        print(there.report())
        there.assert_all_is_well()
        assert there.takeovers


def test_pause_beyond_the_leases_and_a_coordination_without_its_data_leave_an_exact_index(observed):
    with observed(3, "a", "b", "c", ttl_s=2.0) as there:
        there.pause()
        there.lose_coordination()
        there.assert_all_is_well()


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.timeout(900)
def test_any_schedule_leaves_an_exact_index(observed, seed):
    with observed(seed, *NAMES) as there:
        there.rest(3.0)
        rnd = random.Random(seed)
        kinds = ("join", "join", "drain", "kill", "restart_after_kill", "pause", "lose_coordination")
        for _ in range(20):
            kind = rnd.choice(kinds)
            print(f"{kind}, running: {there.running}")
            getattr(there, kind)()
        print(there.report())
        there.assert_all_is_well()


def test_orders_of_an_operator_are_carried_out_and_reported(observed):
    with observed(4, "a", "b", ttl_s=LONG_TTL_S) as there:
        config = there.cluster.node("a").config

        def command(*arguments: object) -> Any:
            done = cli(*arguments, "--json", "--config", config)
            assert done.returncode == 0, done.stderr or done.stdout
            return json.loads(done.stdout.splitlines()[-1])

        assert command("drain", "b")["done"]
        assert there.cluster.shares() == {"a": 16, "b": 0}
        assert command("undrain", "b")["partitions"] == {"b": 8}
        assert there.cluster.shares() == {"a": 8, "b": 8}

        before = there.cluster.look().partitions
        released = command("release", 3, 4)
        assert released["done"]
        after = there.cluster.look().partitions
        assert [after[p].reason for p in (3, 4)] == ["asked", "asked"]
        assert {p for p in range(16) if after[p].since_s < before[p].since_s} <= {3, 4}
        refused = cli("release", 3, 16, "--config", config)
        assert (refused.returncode, refused.stderr.count("\n")) == (exits.INPUT, 1)
        assert "there is no partition 16: the index has 0 to 15" in refused.stderr

        assert command("rebalance") == {"done": True, "seconds": 0.0, "moves": []}
        assert command("scale", "--node", "a", "--feed-workers", 2, "--batch-writers", 3)["done"]
        node = there.cluster.node("a")
        assert (len(node.children("feed_worker")), len(node.children("batch_writer"))) == (2, 3)

        told = cli("nodes", "--config", config).stdout
        assert "running" in told
        assert cli("partitions", "--unowned", "--config", config).stdout.strip() == "every partition has an owner"
        events = [json.loads(line) for line in cli("events", "--json", "--config", config).stdout.splitlines()]
        kinds = {event["event"] for event in events}
        assert {
            "node.joined",
            "node.drained",
            "node.undrained",
            "node.scaled",
            "lease.taken",
            "lease.released",
        } <= kinds
        why = {
            moved["reason"] for event in events for moved in event["partitions"] if event["event"] == "lease.released"
        }
        assert {"drained", "rebalance", "asked"} <= why
        assert cli("drain", "nobody", "--config", config).returncode == exits.MISSING
        there.assert_all_is_well()


def test_partition_that_stays_without_an_owner_raises_an_alarm(observed):
    with observed(5, "a", ttl_s=1.0) as there:
        config = there.cluster.node("a").config
        assert cli("drain", "a", "--no-wait", "--config", config).returncode == 0
        until(lambda: _unowned(there.cluster.look()) == 16, "the node to give up everything")
        until(lambda: "partitions.unowned" in there.cluster.node("a").log.read_text(), "the alarm in the log")
        assert cli("partitions", "--unowned", "--config", config).returncode == 1
        cli("undrain", "a", "--no-wait", "--config", config)
        until(lambda: "partitions.owned" in there.cluster.node("a").log.read_text(), "the end of the alarm")
        there.load.finish()
        there.watch.finish()


def _unowned(state: ClusterState) -> int:
    return len(state.missing)
