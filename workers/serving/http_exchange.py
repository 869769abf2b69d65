"""One request and its answer, over ASGI."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from workers.serving.feed_connection import CONNECTION_KEY, FeedConnection
from workers.serving.http_error import Headers, HttpError
from workers.serving.request import MAX_BODY_BYTES, too_large

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON = (b"content-type", b"application/json")


class Gone(Exception):
    """The client has gone, or was cut off."""


class Exchange:
    """See the module. `headers` has the last of each name."""

    __slots__ = (
        "_receive", "_scope", "_send", "connection", "door", "has_begun", "headers", "is_tls", "method",
        "more_headers", "path", "query", "raw_path",
    )  # fmt: skip

    def __init__(self, scope: Message, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.raw_path: bytes = scope["raw_path"]
        self.query: bytes = scope["query_string"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.is_tls: bool = scope["scheme"] == "https"
        self.connection: FeedConnection = scope[CONNECTION_KEY]
        self.door = self.connection.door
        self.has_begun = False
        self.more_headers: Headers = ()
        self._scope = scope
        self._receive = receive
        self._send = send

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            HttpError: it is too large, or takes too long.
        """
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.connection.limits.slow_client_s):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > MAX_BODY_BYTES:
                        raise too_large()
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, "timeout", "the body did not come in time") from None

    def forget_request(self) -> None:
        """Forget what was asked, before an answer that may take days."""
        self.headers, self.raw_path, self.query = {}, b"", b""
        self._scope["headers"], self._scope["raw_path"], self._scope["query_string"] = [], b"", b""
        self.connection.headers, self.connection.url = [], b""

    async def begin(self, status: HTTPStatus, *headers: tuple[bytes, bytes]) -> None:
        """Send the head of an answer."""
        assert not self.has_begun, "an answer has one head"
        self.has_begun = True
        await self._send(
            {"type": "http.response.start", "status": status.value, "headers": [*headers, *self.more_headers]}
        )

    async def write(self, content: bytes) -> None:
        """Send a part of the body; returns once the client has read most of what was sent before.

        Raises:
            Gone: the client has gone, or reads too slowly and is cut off.
        """
        assert self.has_begun, "the head comes first"
        if self.connection.transport.is_closing():
            raise Gone
        try:
            async with asyncio.timeout(self.connection.limits.slow_client_s):
                await self._send({"type": "http.response.body", "body": content, "more_body": True})
        except TimeoutError:
            self.connection.cut("slow_reader")
            raise Gone from None

    async def end(self, content: bytes = b"") -> None:
        """Send the last part of the body."""
        assert self.has_begun, "the head comes first"
        await self._send({"type": "http.response.body", "body": content, "more_body": False})

    async def answer(self, status: HTTPStatus, content: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Send a whole answer."""
        await self.begin(status, *headers, (b"content-length", str(len(content)).encode()))
        await self.end(b"" if self.method == "HEAD" else content)

    async def refuse(self, error: HttpError) -> None:
        """Send *error*; in the middle of an answer, cut the connection instead."""
        if self.has_begun:
            self.connection.cut("error")
            return
        await self.answer(error.status, error.body, JSON, (b"cache-control", b"private, no-store"), *error.headers)
