"""The load of `benchmarks.serve`: who writes, and who follows. Each in a process of its own, beside the service."""

import asyncio
import multiprocessing
import re
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self, cast

from tests.support.served import Documents

TICK_S = 0.02
"""Between two writes of a steady load, each of which is stable at once."""
CONNECT_AT_ONCE = 200
_WRITTEN_AT = re.compile(rb'"id":"doc(\d+)"')

Order = Callable[[Documents], Any]
"""What the writer is to do; must be picklable."""


def ids(n: int) -> list[str]:
    """*n* documents that say when they were written, in ns, monotonic; no two are the same."""
    now = time.monotonic_ns()
    return [f"doc{now + number}" for number in range(n)]


def write(channel: str, n: int, documents: Documents) -> None:
    """Write *n* documents to *channel*, at once."""
    documents.write(*[(channel, document, 0) for document in ids(n)])


def write_steadily(n_channels: int, per_s: int, for_s: float, documents: Documents) -> float:
    """Write *per_s* documents a second to `c0`, `c1`, … in turn; return how many a second it has been."""
    begin = time.monotonic()
    n_written = 0
    while (elapsed := time.monotonic() - begin) < for_s:
        due = min(int(elapsed * per_s) - n_written, per_s)
        names = [f"c{number % n_channels}" for number in range(n_written, n_written + due)]
        documents.write(*[(name, document, 0) for name, document in zip(names, ids(due), strict=True)])
        n_written += due
        time.sleep(TICK_S)
    return n_written / (time.monotonic() - begin)


class Writer:
    """A process that owns an index in the Redis at *url*, and writes to it what it is told; `index` is its name."""

    def __init__(self, url: str) -> None:
        context = multiprocessing.get_context("fork")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=_obey, args=(url, theirs), daemon=True)
        self._process.start()
        self.index: str = self._orders.recv()

    def do(self, order: Order) -> Any:
        """Have *order* done; return what it returns."""
        self._orders.send(order)
        return self._orders.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._orders.send(None)
        self._process.join(10)


def _obey(url: str, orders: Connection) -> None:
    with closing(Documents(url)) as documents:
        orders.send(documents.index.name)
        while (order := orders.recv()) is not None:
            orders.send(order(documents))


class Follower(asyncio.Protocol):
    """One follower: counts rows, and adds to *late_ms* how long after its write each came."""

    def __init__(self, request: bytes, late_ms: list[float]) -> None:
        self._request = request
        self._late_ms = late_ms
        self.has_begun = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        cast("asyncio.WriteTransport", transport).write(self._request)  # uvloop's derives from none of asyncio's

    def data_received(self, data: bytes) -> None:
        """Take rows."""
        self.has_begun.set()
        now = time.monotonic_ns()
        self._late_ms += [(now - int(at)) / 1e6 for at in _WRITTEN_AT.findall(data)]


class Followers:
    """Followers of the service at *port*, until the end of the context; `late_ms` is how late each row came to each."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._transports: list[asyncio.WriteTransport] = []
        self.late_ms: list[float] = []

    async def follow(self, paths: list[str]) -> None:
        """One follower more of each of *paths*; returns when the answers have begun."""
        for start in range(0, len(paths), CONNECT_AT_ONCE):
            await asyncio.gather(*map(self._connect, paths[start : start + CONNECT_AT_ONCE]))

    async def _connect(self, path: str) -> None:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        loop = asyncio.get_running_loop()
        transport, follower = await loop.create_connection(
            lambda: Follower(request, self.late_ms), "127.0.0.1", self._port
        )
        self._transports.append(transport)
        await follower.has_begun.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for transport in self._transports:
            transport.abort()
        await asyncio.sleep(0.1)
