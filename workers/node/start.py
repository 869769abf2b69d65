"""Starts one node: checks everything that can be wrong before the first fork, then supervises until it is stopped."""

import math
import os
import uuid
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from channelindex import kernel, logs
from channelindex.blocks import FORMAT_VERSION
from channelindex.config import Config
from channelindex.decode.registry import make_decoder
from channelindex.errors import ConfigInvalid
from channelindex.model import IndexMeta
from channelindex.settings import MEMORY_URL, IndexSettings
from channelindex.stores import open_owner
from coordinator.lease_redis import connect
from workers.node.incarnation import NodeIncarnation
from workers.node.memory_node import run_memory_node
from workers.node.notify import Notifier
from workers.node.roles import Roles
from workers.node.run_in_child import run_in_child
from workers.node.supervisor import Supervisor
from workers.pipeline.source import describe
from workers.telemetry.board import Board

COORDINATION_TIMEOUT_S = 5.0
"""Time for the first answer of the leases' Redis at a node's start. Later ones are the lease keeper's concern."""

_log = logs.get("node")


def run_node(config: Config, reload: Callable[[], Config]) -> int:
    """Run a node in this process until SIGTERM has drained it; return the exit code. *reload* serves SIGHUP.

    Raises:
        ConfigInvalid, AuthenticationFailed, IndexMismatch: a setting is wrong.
        SourceUnavailable, StoreUnavailable, CoordinationUnavailable: bucket, store or leases cannot be reached.
    """
    meta = prepare_index(config)
    kernel.choose(config.workers.kernel)
    _log.info(
        "node.started",
        index=config.index.name,
        index_uuid=meta.index_uuid,
        source_uuid=meta.source_uuid,
        kernel=kernel.description(),
    )
    notifier = Notifier(os.environ)
    if config.index.store == MEMORY_URL:
        code = run_memory_node(config, meta, notifier)
    else:
        with closing(NodeIncarnation(Path(config.node.run_dir), config.node.name)) as incarnation:
            board = Board(meta.n_partitions)
            code = Supervisor(config, Roles(config, meta, incarnation, board), board, reload, notifier).run()
    _log.info("node.ended", code=code)
    return code


def prepare_index(config: Config) -> IndexMeta:
    """Return the index's meta record, made if there is none, after decoder, bucket, leases and store proved usable."""
    make_decoder(config.source.decoder, star_channel=config.source.star_channel)
    expected = configured_meta(config)
    if config.index.store == MEMORY_URL:
        return _create_or_check(config.index, expected)
    url = config.coordination.redis
    with closing(connect(url, COORDINATION_TIMEOUT_S)) as redis:
        for server in redis.servers():
            server.execute("PING")
    return run_in_child("store_check", partial(_create_or_check, config.index, expected))


def configured_meta(config: Config) -> IndexMeta:
    """The meta record that an index of the configured bucket has, with a UUID of its own.

    Raises:
        ConfigInvalid: index.partitions does not divide the bucket's vbuckets.
        SourceUnavailable, AuthenticationFailed: the bucket cannot be asked for its identity.
    """
    source = describe(config.source)
    n_partitions = config.index.partitions
    if source.n_vbuckets % n_partitions:
        raise ConfigInvalid(
            f"index.partitions = {n_partitions} does not divide the {source.n_vbuckets} vbuckets of the bucket: "
            f"set it to {math.gcd(n_partitions, source.n_vbuckets)}"
        )
    return IndexMeta(FORMAT_VERSION, source.n_vbuckets, n_partitions, source.uuid, uuid.uuid4().hex)


def _create_or_check(settings: IndexSettings, expected: IndexMeta) -> IndexMeta:
    with closing(open_owner(settings)) as store:
        return store.create_or_check(expected)
