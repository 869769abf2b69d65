"""The demo: one real node on a private Redis and a dev bucket, under writes, with a worker killed on the way.

Everything but the two servers is as in production: `channelindex run` in a process of its own, its children, its
leases, and `channelindex verify` at the end, when the node has drained.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from channelindex import exits
from channelindex.errors import InputInvalid, InvariantBroken, Transient
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from channelindex.stores.base import IndexReader
from coordinator.cluster_state import read_cluster
from coordinator.lease_redis import connect
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision, read_revisions
from devbucket.sync_gateway.synthetic import synthetic_revisions
from workers.cli import program
from workers.cli.demo_screen import DemoScreen
from workers.cli.local_node import LocalNode
from workers.signals import interrupt_on_termination
from workers.telemetry.board import FEED_WORKER

INDEX = "demo"
NODE = "demo-node"
TTL_S = 1.5
"""Short, so that the node reports its status several times a second (once per renewal)."""
WRITING_SHARE = 0.85
"""Of the time the demo is to take; the rest is for starting, draining and verifying."""
SYNTHETIC_PER_S = 2_000
SLICE = 200
"""Revisions written between two looks at the screen."""
KILL_AT = 0.4
"""Share of the revisions written before a feed worker is killed."""
START_TIMEOUT_S = 20.0
SETTLE_TIMEOUT_S = 60.0
NOW_TRY = """
Now try it by hand: a Redis, a dev bucket, two nodes and a page that stay until Ctrl-C, and what to do with them:

  {program} play
"""


@dataclass(frozen=True)
class DemoOptions:
    """`seconds`: approximate duration. `docs`: revisions to write instead of synthetic ones. `stays`: play follows."""

    seconds: float = 20.0
    docs: Path | None = None
    json: bool = False
    stays: bool = False


@dataclass
class Killed:
    """The worker that was killed, and the seconds until its replacement streamed."""

    pid: int
    number: int
    at: float
    back_after_s: float | None = None


def run_demo(options: DemoOptions) -> int:
    """Run the demo; return DIFFERENCES if the index differs from the bucket, or a part of the node failed."""
    revisions = list(read_revisions(options.docs)) if options.docs else []
    if options.docs and not revisions:
        raise InputInvalid(f"{options.docs}: there is no revision in it")
    interrupt_on_termination()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="channelindex-demo-")))
        store = stack.enter_context(EmbeddedRedis())
        bucket = stack.enter_context(DevBucket())
        screen = stack.enter_context(DemoScreen(quiet=options.json))
        demo = Demo(options, folder, store.url, bucket, screen)
        stack.callback(demo.close)
        result = demo.run(revisions)
    if options.json:
        print(msgspec.json.encode(result).decode())
    else:
        print(
            f"demo: {result['revisions']} revisions of {result['documents']} documents in {result['channels']} "
            f"channels, verify: {result['missing']} missing, {result['extra']} extra, {result['different']} different"
        )
        if not options.stays:
            print(NOW_TRY.format(program=program.command()), file=sys.stderr)
    clean = not (result["missing"] or result["extra"] or result["different"] or result["exit_code"])
    return exits.OK if clean else exits.DIFFERENCES


class Demo:
    """One run of the demo, on running servers."""

    def __init__(
        self, options: DemoOptions, folder: Path, redis_url: str, bucket: DevBucket, screen: DemoScreen
    ) -> None:
        self._options = options
        self._redis_url = redis_url
        self._bucket = bucket
        self._screen = screen
        self._config = folder / "demo.toml"
        self._config.write_text(
            f'node.run_dir = "{folder}"\n'
            f'source.url = "{bucket.url}"\nsource.user = "{bucket.user}"\nsource.password = "{bucket.password}"\n'
            f'index.name = "{INDEX}"\nindex.store = "{redis_url}"\ncoordination.ttl_s = {TTL_S}\n'
        )
        self._node = LocalNode(NODE, self._config, folder / "node.log")
        self._coordination = connect(redis_url, 1.0)
        self._killed: Killed | None = None
        self._documents: set[str] = set()
        self._n_written = 0

    def run(self, revisions: list[Revision]) -> dict[str, Any]:
        """Start the node, write, drain, verify; return the figures."""
        self._screen.say("starting a node with 2 feed workers and 2 batch writers")
        self._start_node()
        started = time.monotonic()
        credentials = Credentials(self._bucket.user, self._bucket.password)
        with KvClient(parse_source_url(self._bucket.url), credentials) as client:
            self._write(Loader(client, InlineLayout()), revisions)
        wrote_s = time.monotonic() - started
        self._screen.say(f"wrote {self._n_written} revisions in {wrote_s:.1f} s; waiting for the stable clock")
        self._settle()
        settled_s = time.monotonic() - started
        self._screen.say("the stable clock has caught up; draining the node (SIGTERM)")
        exit_code = self._stop_node()
        self._screen.say(f"the node exited with code {exit_code}; verifying the index against the bucket")
        report = self._verify()
        return {
            "revisions": self._n_written,
            "documents": len(self._documents),
            "channels": report["channels"],
            "entries": report["entries"],
            "missing": report["missing"],
            "extra": report["extra"],
            "different": report["different"],
            "exit_code": exit_code,
            "wrote_s": round(wrote_s, 2),
            "stable_s": round(settled_s, 2),
            "killed_worker_back_s": self._killed and self._killed.back_after_s,
        }

    def close(self) -> None:
        """End the node if it still runs. May be called twice."""
        self._node.close()
        self._coordination.close()

    def _start_node(self) -> None:
        self._node.start()
        self._wait_for(self._status, "the node did not start")

    def _wait_for(self, condition: Callable[[], object], complaint: str, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until *condition* holds while the node runs; raise InvariantBroken with *complaint* if it never does."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._node.check()
            if time.monotonic() > deadline:
                raise InvariantBroken(f"{complaint} within {timeout_s:.0f} s: {self._node.last_log_line()}")
            time.sleep(0.05)

    def _write(self, loader: Loader, revisions: list[Revision]) -> None:
        """Write at an even pace over the time there is, users and roles among the documents."""
        seconds = self._options.seconds * WRITING_SHARE
        if not revisions:
            revisions = list(islice(synthetic_revisions(seed=1), round(seconds * SYNTHETIC_PER_S)))
        started = time.monotonic()
        for number, part in enumerate(_slices(revisions)):
            loader.load(part)
            self._documents.update(revision.id for revision in part)
            self._n_written += len(part)
            if number % 10 == 0:
                loader.put_user(f"user-{number}", channels=part[-1].channels, roles=["reader"])
                loader.put_role("reader", channels=part[0].channels)
            if self._n_written >= KILL_AT * len(revisions) and not self._killed:
                self._kill_a_feed_worker()
            self._watch(len(revisions))
            time.sleep(max(0.0, started + seconds * self._n_written / len(revisions) - time.monotonic()))

    def _kill_a_feed_worker(self) -> None:
        assert self._killed is None, "one worker is killed"
        self._wait_for(self._has_killed_a_feed_worker, "no feed worker was connected")

    def _has_killed_a_feed_worker(self) -> bool:
        """Kill a worker of the last report; False if there is none, or if it has ended since."""
        for process in self._connected()[:1]:
            pid, number = process["pid"], process["number"]
            assert pid > 0, "0 would be every process of the group"
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self._killed = Killed(pid, number, time.monotonic())
                self._screen.say(f"killed feed worker {number} (pid {pid}) with SIGKILL")
        return self._killed is not None

    def _watch(self, n_revisions: int) -> None:
        self._node.check()
        killed = self._killed
        if killed and killed.back_after_s is None:
            for process in self._connected():
                if process["number"] == killed.number and process["pid"] not in {0, killed.pid}:
                    killed.back_after_s = round(time.monotonic() - killed.at, 2)
                    self._screen.say(
                        f"feed worker {killed.number} is back (pid {process['pid']}) after {killed.back_after_s} s"
                    )
        self._screen.show(self._status(), self._n_written, n_revisions)

    def _connected(self) -> list[dict[str, Any]]:
        return [process for process in self._feed_workers() if process["connected"]]

    def _feed_workers(self) -> list[dict[str, Any]]:
        processes = self._status().get("processes", [])
        return [process for process in processes if process["role"] == FEED_WORKER]

    def _status(self) -> dict[str, Any]:
        """The node's last status report; empty before the first."""
        try:
            cluster = read_cluster(self._coordination, INDEX, 1)
        except Transient:
            return {}
        reports = [member.status for member in cluster.members if member.node == NODE and member.status]
        status: dict[str, Any] = msgspec.json.decode(reports[0]) if reports else {}
        return status

    def _settle(self) -> None:
        """Wait until the index is complete up to what the bucket has now, and the killed worker is back."""
        highs = self._bucket.high_seqnos()
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        with closing(open_reader(IndexSettings(INDEX, self._redis_url))) as reader:
            while not (_is_stable(reader, highs) and self._killed and self._killed.back_after_s is not None):
                self._watch(self._n_written)
                if time.monotonic() > deadline:
                    raise InvariantBroken(f"the index was not complete within {SETTLE_TIMEOUT_S:.0f} s")
                time.sleep(0.1)

        self._wait_for(lambda: not self._status().get("lag", 1), "the node did not report that it is done")
        self._screen.freeze(self._status(), self._n_written, self._n_written)

    def _stop_node(self) -> int:
        self._node.terminate()
        return self._node.wait()

    def _verify(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "channelindex", "verify", "--json", "--config", str(self._config)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode not in (exits.OK, exits.DIFFERENCES):
            raise InvariantBroken(f"verify failed: {done.stderr.strip()}")
        report: dict[str, Any] = msgspec.json.decode(done.stdout)
        return report


def _slices(revisions: list[Revision]) -> Iterator[list[Revision]]:
    return (revisions[start : start + SLICE] for start in range(0, len(revisions), SLICE))


def _is_stable(reader: IndexReader, highs: list[int]) -> bool:
    stable = [seqno for record in reader.partition_records() for seqno in record.stable]
    return all(seqno >= high for seqno, high in zip(stable, highs, strict=True))
