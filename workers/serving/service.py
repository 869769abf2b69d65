"""Runs the service until it is stopped."""

import asyncio
import ipaddress
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from channelindex import exits, logs
from channelindex.errors import ConfigInvalid
from channelindex.reading.async_reader import AsyncChangesReader
from channelindex.settings import Config, ServeSettings
from channelindex.stores import open_reader
from channelindex.stores.pool import ReaderPool
from workers.node.notify import Notifier
from workers.serving.app import App
from workers.serving.cluster_watch import ClusterSource, ClusterWatch
from workers.serving.demands import HighSeqnos
from workers.serving.descriptors import make_room
from workers.serving.feed_connection import Door
from workers.serving.garbage import brief_collections
from workers.serving.grants import Grants
from workers.serving.listener import Listener
from workers.telemetry.monitor import listen_address

_log = logs.get("serve")


def run_service(
    config: Config,
    open_source: Callable[[], ClusterSource],
    high_seqnos: HighSeqnos | None,
    announce: Callable[[str], None],
) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. *announce* is called with the address, once it is served.

    *open_source*: see `ClusterWatch`; *high_seqnos*: see `Demands`.

    Raises:
        ConfigInvalid: a setting is wrong, or would let strangers in.
        StoreUnavailable, IndexMissing: there is no index to serve.
    """
    check_exposure(config)
    return uvloop.run(_serve(config, open_source, high_seqnos, announce))


def check_exposure(config: Config) -> None:
    """Refuse to serve strangers.

    Raises:
        ConfigInvalid: an address is none of loopback, and nothing says who may read what.
    """
    settings = config.serve
    if not settings.listen:
        raise ConfigInvalid("serve.listen is empty: there is nothing to serve on")
    for key, text in (("tls_key_file", settings.tls_key_file), ("tls_client_ca_file", settings.tls_client_ca_file)):
        if text and not settings.tls_cert_file:
            raise ConfigInvalid(f"serve.{key} is set without serve.tls_cert_file")
    if not settings.tokens_file and not is_loopback(settings.listen):
        raise ConfigInvalid(
            f"serve.listen = {settings.listen} is not on loopback, and without serve.tokens_file everybody may read "
            "everything: make one with `channelindex token new`"
        )


def is_loopback(address: str) -> bool:
    """True if only programs of this machine reach *address*."""
    host, _ = listen_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def doors(settings: ServeSettings) -> list[tuple[str, Door]]:
    """Addresses to listen on. `check_exposure` has seen that all may read only where nobody comes from elsewhere."""
    is_open = not settings.tokens_file
    found = [(settings.listen, Door(is_operators=is_open, is_trusted=is_open))]
    assert not is_open or is_loopback(settings.listen), "`check_exposure` lets no strangers in"
    if address := settings.operator_listen:
        found.append((address, Door(is_operators=True, is_trusted=is_loopback(address))))
    return found


async def _serve(
    config: Config,
    open_source: Callable[[], ClusterSource],
    high_seqnos: HighSeqnos | None,
    announce: Callable[[str], None],
) -> int:
    settings = config.serve
    grants = Grants(Path(settings.tokens_file)) if settings.tokens_file else None
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopped.set)
    async with AsyncExitStack() as stack:
        stack.enter_context(brief_collections())
        reader = _open(config)
        await stack.enter_async_context(reader)
        meta = await reader.meta()
        watch = ClusterWatch(open_source)
        stack.push_async_callback(watch.close)
        app = App(config, reader, grants, watch, high_seqnos)
        app.max_connections = make_room(settings.max_connections)
        listeners = [Listener(app, *listen_address(address), door, settings) for address, door in doors(settings)]
        tasks = [await listener.listen() for listener in listeners]
        notifier = Notifier(os.environ)
        watchers = [asyncio.create_task(app.watch_grants()), asyncio.create_task(_feed_watchdog(notifier))]
        _log.info("serve.started", index=config.index.name, index_uuid=meta.index_uuid, url=listeners[0].url)
        announce(listeners[0].url)
        notifier.ready(f"serves {config.index.name} on {listeners[0].url}")
        await _until_stopped(stopped, tasks)
        notifier.stopping()
        app.stop()
        for listener in listeners:
            listener.should_exit = True
        await asyncio.gather(*tasks)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.wait(watchers)
    _log.info("serve.ended")
    return exits.OK


async def _until_stopped(stopped: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    waiting = asyncio.create_task(stopped.wait())
    await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _feed_watchdog(notifier: Notifier) -> None:
    """Tell systemd that the event loop turns."""
    while notifier.watchdog_interval_s is not None:
        notifier.watchdog()
        await asyncio.sleep(notifier.watchdog_interval_s)


def _open(config: Config) -> AsyncChangesReader:
    n_threads = config.serve.scans
    first = open_reader(config.index, config.node.run_dir)
    pool = ReaderPool(lambda: open_reader(config.index, config.node.run_dir), n_threads + 1, first)
    return AsyncChangesReader(pool, n_threads)
