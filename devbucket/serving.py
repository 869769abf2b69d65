"""A dev bucket as a whole process: what `channelindex devbucket` runs."""

import asyncio
import signal
from collections.abc import Callable

from channelindex import logs
from devbucket.admin import AdminServer
from devbucket.bucket import Bucket
from devbucket.controls import Controls
from devbucket.server import DevBucketServer
from devbucket.setup import DevBucketConfig

_log = logs.get("devbucket")


def serve(config: DevBucketConfig, ready: Callable[[str], None], load: Callable[[Bucket], None] | None = None) -> None:
    """Run a dev bucket until SIGTERM or SIGINT. *load* fills the bucket first; *ready* is told the URL.

    Raises:
        ConfigInvalid: the configuration cannot be served, or a port is taken.
    """
    asyncio.run(_serve(config, ready, load))


async def _serve(config: DevBucketConfig, ready: Callable[[str], None], load: Callable[[Bucket], None] | None) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = DevBucketServer(config)
    admin = AdminServer(Controls(server), config.admin)
    try:
        if load is not None:
            load(server.bucket)
        await server.start()
        await admin.start()
        ready(server.url)
        await stopped.wait()
    finally:
        admin.stop()
        server.stop()
    _log.info("devbucket.stopped")
