"""A node whose index is in its own memory: one process that works all partitions and answers readers on a socket.

It needs no leases and no other process: a feed worker whose rounds go straight into the index, a server for readers,
and a lock in its run directory, so that there is one such node for each index name there. Each start is a new index.
"""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from channelindex import logs
from channelindex.config import Config
from channelindex.decode.registry import make_decoder
from channelindex.errors import ConfigInvalid
from channelindex.model import Checkpoint, IndexMeta
from channelindex.stores import memory_index, open_owner, open_writer
from channelindex.stores.memory import MemoryIndex, MemoryReader
from channelindex.stores.memory_server import MemoryServer
from channelindex.stores.memory_wire import socket_path
from workers.node.notify import Notifier
from workers.pipeline.assignment import FixedAssignment
from workers.pipeline.direct import DirectOutbox
from workers.pipeline.feed_worker import ROLLED_BACK, FeedWorker
from workers.pipeline.ring import Bell
from workers.pipeline.round import RoundBuilder
from workers.pipeline.source import open_feed
from workers.signals import StopFlag
from workers.telemetry.board import FEED_WORKER, Board, ProcessStats

ATTEND_S = 0.5
"""Interval at which old entries are dropped and the service manager is notified."""

_log = logs.get("memory_node")


def run_memory_node(config: Config, meta: IndexMeta, notifier: Notifier) -> int:
    """Run the node in this process until SIGTERM or SIGINT; return the exit code.

    Raises:
        ConfigInvalid: node.run_dir cannot be used, or another node with this index.name runs there.
        AuthenticationFailed: the bucket refuses our credentials.
    """
    index = memory_index(config.index)
    stop = StopFlag(signal.SIGTERM, signal.SIGINT)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a new configuration takes a new start, which costs a new index
    board = Board(meta.n_partitions)
    stats = board.feeds[0]
    server = MemoryServer(MemoryReader(index, config.index.name), socket_path(config.node.run_dir, config.index.name))
    with _only_one(config), _attended(config, index, stats, notifier):
        server.start()
        with closing(server):
            notifier.ready("running, index in memory")
            while (code := _worker(config, meta, board, stop).run()) == ROLLED_BACK:
                pass
            notifier.stopping()
    return code


def _worker(config: Config, meta: IndexMeta, board: Board, stop: StopFlag) -> FeedWorker:
    """Make the feed worker, for one life, of all partitions, which never change."""
    source = config.source
    decoder = make_decoder(source.decoder, star_channel=source.star_channel)
    board.feeds[0].start()

    def new_builder(checkpoints: Mapping[int, Checkpoint]) -> RoundBuilder:
        return RoundBuilder(decoder, 1, checkpoints)

    return FeedWorker(
        owner=config.node.name,
        partitions=range(meta.n_partitions),
        meta=meta,
        store=open_owner(config.index),
        feed=open_feed(source, f"{config.index.name}/{config.node.name}/memory", meta.source_uuid, decoder=decoder),
        new_builder=new_builder,
        outbox=DirectOutbox(open_writer(config.index), memory_index(config.index).limits.part_entries),
        space_bell=Bell(),
        stats=board.feeds[0],
        rows=board.partitions,
        stop=stop,
        assignment=FixedAssignment(),
        log=logs.get(FEED_WORKER),
    )


@contextmanager
def _only_one(config: Config) -> Iterator[None]:
    """Hold the lock of this index name in the run directory; the kernel gives it back however we end."""
    path = Path(config.node.run_dir) / f"{config.index.name}.lock"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigInvalid(f"node.run_dir = {config.node.run_dir}: {error.strerror or error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigInvalid(
            f"a node with index.store = memory:// and index.name = {config.index.name} runs in {config.node.run_dir} "
            "already; set another index.name or node.run_dir"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _attended(config: Config, index: MemoryIndex, stats: ProcessStats, notifier: Notifier) -> Iterator[None]:
    """Have a thread look after the index and the service manager meanwhile."""
    ended = threading.Event()
    stats.start()

    def attend() -> None:
        while not ended.wait(min(ATTEND_S, notifier.watchdog_interval_s or ATTEND_S)):
            index.forget_old()
            lag, events = stats.get("lag"), stats.get("events")
            notifier.status(f"running: index in memory, lag {lag}, {events} events")
            if stats.silent_s(time.monotonic_ns()) < config.workers.heartbeat_timeout_s:
                notifier.watchdog()

    thread = threading.Thread(target=attend, name="memory-attendant", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
