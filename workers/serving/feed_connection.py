"""One connection of a client: uvicorn's, with limits to what a client may cost before and after its request."""

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from workers.serving.http_error import HttpError, unavailable
from workers.serving.lean import LeanEvent, LeanFlow

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's line and headers: ten of the longest tokens."""
CONNECTION_KEY = "channelindex.connection"
_NO_PIPELINE: deque[Any] = deque()
"""Of all connections whose client waits for an answer before it asks again."""


class Door(NamedTuple):
    """Says what those may do who come by one listener."""

    is_operators: bool
    """They answer with the state of the service."""
    is_trusted: bool
    """They need no token to read the index."""


class Limits(Protocol):
    """The part of the application that a connection needs."""

    max_connections: int
    slow_client_s: float

    def count_refused(self, error: str) -> None:
        """Count a request that was refused."""
        ...

    def count_cut(self, reason: str) -> None:
        """Count a connection that was cut."""
        ...

    def count_connections(self, change: int) -> None:
        """Count connections that came or went."""
        ...


class FeedConnection(HttpToolsProtocol):
    """See the module. `on_lost` is called when the client has gone.

    A head as a whole, and the end of an answer, have the time that `limits` gives them.
    """

    # uvicorn's attributes are few enough for Python to keep them without a dict; ours on top were not.
    __slots__ = ("_head_timer", "_is_in_head", "_n_head_bytes", "door", "limits", "on_lost")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = _NO_PIPELINE
        self.on_lost: Callable[[], None] | None = None
        self.limits = cast("Limits", self.config.loaded_app)
        self.door: Door = cast("Any", self.config).door
        self._n_head_bytes = 0
        self._is_in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Begin, unless there are too many."""
        super().connection_made(transport)
        self.flow = cast("Any", LeanFlow(transport))
        self.limits.count_connections(1)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(unavailable("there are too many connections"))
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever writes an answer."""
        super().connection_lost(exc)
        self.limits.count_connections(-1)
        self._forget_timer()
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        if self._is_in_head:
            self._await_head()
            self._n_head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._n_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(
                HttpError(
                    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                    "too_large",
                    f"line and headers are larger than {MAX_HEAD_BYTES} bytes",
                )
            )

    def on_headers_complete(self) -> None:
        """Pass the request on, with a way to its connection."""
        self._forget_timer()
        self._is_in_head = False
        cast("dict[str, Any]", self.scope)[CONNECTION_KEY] = self
        under_way = cast("Any", self.cycle)  # None before the first
        if under_way is not None and not under_way.response_complete and self.pipeline is _NO_PIPELINE:
            self.pipeline = deque()
        super().on_headers_complete()
        self.cycle.message_event = cast("Any", LeanEvent())  # nobody has waited for the other one yet

    def on_message_complete(self) -> None:
        """Expect the next head."""
        super().on_message_complete()
        self._is_in_head = True
        self._n_head_bytes = 0

    def on_response_complete(self) -> None:
        """Close where the client goes on sending what nobody asked for; see that the answer is read at last."""
        self.on_lost = None
        if not self._is_in_head and not self.transport.is_closing():
            self.transport.close()
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(self.limits.slow_client_s, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """End an idle connection; what its client has not read by now it will not read."""
        self.transport.abort()

    def push(self, chunk: bytes) -> bool:
        """Send *chunk* as it is, in an answer that has begun; false where the client has to read first, or has gone."""
        if self.flow.write_paused or self.transport.is_closing() or not self.cycle.chunked_encoding:
            return False
        self.transport.write(chunk)
        return True

    def cut(self, reason: str) -> None:
        """End the connection in the middle of an answer, so that nobody takes it for a whole one."""
        self.limits.count_cut(reason)
        self.transport.abort()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.slow_client_s, self.cut, "late_head")

    def _forget_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, error: HttpError) -> None:
        self.limits.count_refused(error.error)
        body = error.body
        head = [f"HTTP/1.1 {error.status.value} {error.status.phrase}", "content-type: application/json"]
        head += [f"{name.decode()}: {value.decode()}" for name, value in error.headers]
        head += [f"content-length: {len(body)}", "connection: close", "", ""]
        self.transport.write("\r\n".join(head).encode() + body)
        self.transport.close()
        self.loop.call_later(1.0, self.transport.abort)
