"""Parts of a connection that take little memory while nothing happens: a service has tens of thousands of them.

asyncio's Event and uvicorn's FlowControl take 0.8 KB each, most of it an empty deque.
"""

import asyncio


class LeanEvent:
    """`asyncio.Event`, as far as uvicorn needs it."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[asyncio.Future[None]] | None = None

    def is_set(self) -> bool:
        """True after `set`, until `clear`."""
        return self._is_set

    def set(self) -> None:
        """Let all who wait go on."""
        self._is_set = True
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def clear(self) -> None:
        """Have those wait who come from here on."""
        self._is_set = False

    async def wait(self) -> None:
        """Wait until it is set."""
        if not self._is_set:
            waiter = asyncio.get_running_loop().create_future()
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(waiter)
            await waiter


class LeanFlow:
    """`FlowControl` of uvicorn: whether a connection may read, and whether it may write."""

    __slots__ = ("_transport", "_writable", "read_paused", "write_paused")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._writable = LeanEvent()
        self._writable.set()
        self.read_paused = False
        self.write_paused = False

    async def drain(self) -> None:
        """Wait until the client has read most of what was sent."""
        await self._writable.wait()

    def pause_reading(self) -> None:
        """Take nothing from the client."""
        if not self.read_paused:
            self.read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take from the client again."""
        if self.read_paused:
            self.read_paused = False
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """The client has not read what was sent."""
        self.write_paused = True
        self._writable.clear()

    def resume_writing(self) -> None:
        """The client has read most of it."""
        self.write_paused = False
        self._writable.set()
