"""The playground of `channelindex play`: private Redis and dev bucket, two nodes, the changes feed, and changes."""

import fcntl
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

import msgspec

from channelindex.errors import InputInvalid, InvariantBroken, SourceUnavailable
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from coordinator.cluster_state import read_cluster
from coordinator.lease_redis import connect
from devbucket.bucket_config import DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis, free_port
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from devbucket.sync_gateway.synthetic import synthetic_revisions
from workers.cli import output, program
from workers.cli.local_node import LocalNode
from workers.cli.options import made
from workers.signals import interrupt_on_termination

INDEX = "play"
NODES = ("play-1", "play-2")
FEED = "serve"
STORE = "the Redis"
CHANNELS = ("orders", "invoices", "customers", *(f"store-{number}" for number in range(1, 18)))
N_VBUCKETS = 128
N_FIRST = 20 * N_VBUCKETS
"""Revisions that are there before anybody can try a command: some in every vbucket, for a failover to take back."""
TTL_S = 3.0
"""Short, so that what a node's death changes shows within seconds."""
SLICE_S = 0.1
"""Interval of writes."""
START_TIMEOUT_S = 60.0
RESTART_S = 3.0
"""Delay before what ended is started again: time to look at what its end changed."""
_RETRY_S = 1.0
"""Delay after a write that the bucket did not take."""

_WELCOME = """\
{rate} changes per second go into a dev bucket, and two nodes index them into a private Redis.
Try, in another terminal{place}:

{commands}

Ctrl-C ends it; {fate}.
"""


@dataclass(frozen=True)
class PlayOptions:
    """`folder`: keeps everything; a temporary one if None. `rate`: changes per second."""

    folder: Path | None = None
    rate: int = 100


def play(options: PlayOptions) -> None:
    """Run the playground until SIGINT or SIGTERM. All that it started has ended when this returns.

    Raises:
        InputInvalid: `folder` cannot be used, or another playground uses it.
    """
    interrupt_on_termination()
    with ExitStack() as stack:
        try:
            playground = Playground(options, stack)
            output.paragraph(playground.welcome())
            playground.run()
        except KeyboardInterrupt:
            print("\nending the nodes", file=sys.stderr)


class Playground:
    """Running servers and nodes; *stack* ends them."""

    def __init__(self, options: PlayOptions, stack: ExitStack) -> None:
        self._options = options
        self._folder = _folder_of(options, stack)
        config = DevBucketConfig(
            n_vbuckets=N_VBUCKETS, n_nodes=2, admin=str(free_port()), file=self._folder / "bucket.sqlite"
        )
        self._admin = config.admin
        self._store_port = free_port()
        self._store = self._start_store()
        stack.callback(self._close_store)
        self._bucket = stack.enter_context(DevBucket(config))
        self.config = self._folder / "channelindex.toml"
        self.config.write_text(self._configuration(self._store.url), encoding="utf-8")
        self._revisions = _revisions(options.rate)
        with self._client() as client:
            Loader(client, InlineLayout()).load(islice(self._revisions, N_FIRST))
        self._nodes = [self._node(name) for name in NODES]
        self._feed_address = f"127.0.0.1:{free_port()}"
        for node in self._nodes:
            stack.callback(node.close)
        stack.callback(self._drain)
        for node in self._nodes:
            node.start()
        self._await_nodes(self._store.url)
        self._nodes.append(self._serve(stack))
        self._restart_at = dict.fromkeys((STORE, *(node.name for node in self._nodes)), 0.0)

    def _start_store(self) -> EmbeddedRedis:
        """Start the Redis, with what it has on disk. Its address stays: it is in the configuration."""
        assert self._store_port > 0, "nodes have the address of this port"
        return EmbeddedRedis(self._folder, save=True, port=self._store_port)

    def _close_store(self) -> None:
        """Stop the Redis that runs at the end: maybe not the first one."""
        self._store.close()

    def _await_nodes(self, store_url: str) -> None:
        """Wait until all nodes report.

        Raises:
            InvariantBroken: one of them has ended, or they take too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        with closing(connect(store_url, START_TIMEOUT_S)) as coordination:
            while sum(bool(member.status) for member in read_cluster(coordination, INDEX, 1).members) < len(NODES):
                for node in self._nodes:
                    node.check()
                if time.monotonic() > deadline:
                    raise InvariantBroken(f"the nodes did not start within {START_TIMEOUT_S:.0f} s")
                time.sleep(SLICE_S)

    def _configuration(self, store_url: str) -> str:
        bucket = self._bucket
        return (
            "# Made by `channelindex play`; it is written anew at each start.\n"
            f'[source]\nurl = "{bucket.url}"\nuser = "{bucket.user}"\npassword = "{bucket.password}"\n\n'
            f'[index]\nname = "{INDEX}"\nstore = "{store_url}"\n\n'
            f"[coordination]\nttl_s = {TTL_S}\n"
        )

    def _node(self, name: str) -> LocalNode:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        return LocalNode(name, self.config, folder / "node.log", f"node.run_dir={folder}")

    def _serve(self, stack: ExitStack) -> LocalNode:
        """Start the changes feed over HTTP; it needs an index that is there."""
        feed = LocalNode(
            FEED, self.config, self._folder / "serve.log", f"serve.listen={self._feed_address}", command="serve"
        )
        stack.callback(feed.close)
        feed.start()
        return feed

    def welcome(self) -> str:
        """Return the commands that a person can try now."""
        call, config = program.command(), f"--config {program.nearest(self.config)}"
        feed_url = f"http://{self._feed_address}/{INDEX}/_changes?feed=continuous&channels=orders"
        rows = [
            (f"{call} top {config}", "everything at once, live"),
            (f"{call} changes orders --follow {config}", "what changes in a channel"),
            (f"curl -N '{feed_url}'", "the same over HTTP"),
            (f"http://{self._feed_address}/", "open it in a browser: the cluster, and what changes"),
            (f"{call} drain play-2 {config}", "take a node out; undrain brings it back"),
            (f"{call} devbucket ctl --admin {self._admin} failover 17 lose=3", "the bucket takes changes back"),
            (f"{call} verify {config}", "compare the index with the bucket"),
        ]
        width = max(len(line) for line, _ in rows)
        return _WELCOME.format(
            rate=self._options.rate,
            place=" in this folder" if not call.startswith(("/", "channelindex")) else "",
            commands="\n".join(f"  {line:<{width}}  # {purpose}" for line, purpose in rows),
            fate=f"{program.nearest(self._folder)} keeps what is there" if self._options.folder else "nothing is kept",
        )

    def run(self) -> NoReturn:
        """Write for ever; start nodes again that end, and the Redis."""
        while True:
            try:
                self._write()
            except SourceUnavailable as error:
                output.warn(f"nothing is written for the moment: {error}")
                self._look_after_all()
                time.sleep(_RETRY_S)

    def _client(self) -> KvClient:
        return KvClient(parse_source_url(self._bucket.url), Credentials(self._bucket.user, self._bucket.password))

    def _write(self) -> NoReturn:
        """Write at an even pace.

        Raises:
            SourceUnavailable: the bucket did not take it.
        """
        with self._client() as client:
            loader, started, n_written = Loader(client, InlineLayout()), time.monotonic(), 0
            while True:
                n_due = int((time.monotonic() - started) * self._options.rate) + 1
                loader.load(islice(self._revisions, n_due - n_written))
                n_written = n_due
                self._look_after_all()
                time.sleep(SLICE_S)

    def _look_after_all(self) -> None:
        """Start what has ended again, RESTART_S after its end."""
        if self._has_to_start(STORE, None if self._store.running else "ended"):
            self._store.close()
            self._store = self._start_store()
        for node in self._nodes:
            if self._has_to_start(node.name, None if node.exit_code is None else f"ended with code {node.exit_code}"):
                node.start()

    def _has_to_start(self, name: str, end: str | None) -> bool:
        """Say of what is to run, and how it ended if it did, whether it is to be started now; tell its end once."""
        now = time.monotonic()
        if end is None:
            self._restart_at[name] = 0.0
        elif not self._restart_at[name]:
            output.warn(f"{name} {end}; it starts again in {RESTART_S:.0f} s")
            self._restart_at[name] = now + RESTART_S
        return end is not None and now >= self._restart_at[name]

    def _drain(self) -> None:
        """End the nodes, all at once."""
        running = [node for node in self._nodes if node.exit_code is None]
        for node in running:
            node.terminate()
        for node in running:
            node.wait()


def _folder_of(options: PlayOptions, stack: ExitStack) -> Path:
    if options.folder is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="channelindex-play-")))
    lock = stack.enter_context((made(options.folder) / "lock").open("w"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputInvalid(f"{options.folder}: another `channelindex play` uses this folder") from None
    return options.folder


def _revisions(rate: int) -> Iterator[Revision]:
    """Changes of some thousand documents. Another run has others, since revisions only count up."""
    run = f"{int(time.time()):x}"
    for revision in synthetic_revisions(int(time.time()), max(1000, 10 * rate), len(CHANNELS)):
        yield msgspec.structs.replace(revision, id=f"{run}-{revision.id}", channels=_named(revision.channels))


def _named(channels: Sequence[str]) -> tuple[str, ...]:
    """The names of the synthetic channels "ch-000" and up."""
    return tuple(CHANNELS[int(channel.removeprefix("ch-"))] for channel in channels)
