"""TCP links that can be made to fail: each listens on a loopback port and passes all on to a unix socket or a port.

All links of a `Proxy` live on one event loop in a thread of its own; every method of a link may be called from any
other thread, and has happened when it returns.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 * 1024


class _Pair:
    """One connection of a client and the one to the server behind it."""

    def __init__(self, link: "Link", client: asyncio.StreamWriter) -> None:
        self._link = link
        self._client = client
        self._server: asyncio.StreamWriter | None = None
        self.half_open = False
        self._mute = False

    def abort(self) -> None:
        """Close both ends, whatever is on its way."""
        for end in (self._client, self._server):
            if end is not None:
                end.transport.abort()

    async def run(self, from_client: asyncio.StreamReader) -> None:
        try:
            from_server, self._server = await self._link.connect()
            requests = asyncio.create_task(self._pass_on(from_client, self._server, requests=True))
            replies = asyncio.create_task(self._pass_on(from_server, self._client, requests=False))
            _, pending = await asyncio.wait((requests, replies), return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
        except OSError:
            pass  # the server is away: the client sees its connection end
        finally:
            self.abort()

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, requests: bool) -> None:
        link = self._link
        with suppress(OSError):
            while chunk := await source.read(CHUNK_BYTES):
                if link.delay_s:
                    await asyncio.sleep(link.delay_s)
                await link.open.wait()
                if self.half_open or (self._mute and not requests):
                    continue
                if requests and link.is_to_be_lost():
                    if link.reply_only:
                        self._mute = True
                        target.write(chunk)
                        await target.drain()
                        await asyncio.sleep(link.EXECUTION_S)
                    return
                target.write(chunk)
                await target.drain()


class Link:
    """One port and the socket behind it. Made by `Proxy.link`."""

    EXECUTION_S = 0.05
    """How long a server has for a request of which the reply gets lost."""

    def __init__(self, loop: asyncio.AbstractEventLoop, upstream: Path | int) -> None:
        self.upstream = upstream
        """The socket, or the port of loopback, to which connections made from now on lead. Those that stand stay."""
        self.port = 0
        self.delay_s = 0.0
        self.reply_only = False
        self.open = asyncio.Event()
        self.open.set()
        self._lose_every = 0
        self._n_requests = 0
        self._refused = False
        self._loop = loop
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """What a Redis client connects to."""
        return f"redis://127.0.0.1:{self.port}"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection to the server."""
        if isinstance(self.upstream, int):
            return await asyncio.open_connection("127.0.0.1", self.upstream)
        return await asyncio.open_unix_connection(self.upstream)

    def cut(self) -> None:
        """Close all connections, whatever is on its way."""

        def reset() -> None:
            for pair in self._pairs:
                pair.abort()

        self._do(reset)

    def refuse(self, *, on: bool) -> None:
        """Close all connections and every new one, or let them be."""
        self._refused = on
        if on:
            self.cut()

    def stall(self, *, on: bool) -> None:
        """Pass nothing on, or go on with what waits."""
        self._do(self.open.clear if on else self.open.set)

    def become_half_open(self) -> None:
        """Swallow everything on the connections there are, for ever. New ones work."""

        def swallow() -> None:
            for pair in self._pairs:
                pair.half_open = True

        self._do(swallow)

    def lose(self, every: int, *, reply_only: bool) -> None:
        """Cut a connection at every so-many-th request: before the server had it, or before the client has the reply.

        0 ends it.
        """
        self.reply_only = reply_only
        self._lose_every = every

    def is_to_be_lost(self) -> bool:
        """Count a request; whether its connection is to be cut."""
        self._n_requests += 1
        return self._lose_every > 0 and self._n_requests % self._lose_every == 0

    def _do(self, act: Callable[[], object]) -> None:
        async def call() -> None:
            act()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refused:
            writer.transport.abort()
            return
        pair = _Pair(self, writer)
        self._pairs.add(pair)
        with suppress(asyncio.CancelledError):  # at the end of the proxy; asyncio would report it
            await pair.run(reader)
        self._pairs.discard(pair)

    async def listen(self) -> None:
        """Begin to accept, on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Accept no more, and end what there is. On the loop's thread."""
        if self._server is not None:
            self._server.close()
        for pair in self._pairs:
            pair.abort()


class Proxy:
    """The thread with all links, while the context is open."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._links: list[Link] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def link(self, upstream: Path | int) -> Link:
        """A new link to the socket or port *upstream*, which need not be there yet."""
        link = Link(self._loop, upstream)
        self._links.append(link)
        asyncio.run_coroutine_threadsafe(link.listen(), self._loop).result()
        return link

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def end() -> None:
            for link in self._links:
                link.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
