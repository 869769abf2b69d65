"""Host names into addresses, so that a name server that does not answer stops neither the feed nor its heartbeat."""

import socket
import threading
from concurrent.futures import Future, wait
from contextlib import suppress

from channelindex.feeds.dcp.connstr import Endpoint

WAIT_S = 1.0
"""Wait for a lookup that has just begun: nearly all of them end in time, and no retry is needed."""

AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]


class Resolver:
    """Looks each name up in a thread of its own, which ends when the system's resolver gives up. Used by one thread."""

    def __init__(self) -> None:
        self._pending: dict[Endpoint, Future[list[AddressInfo]]] = {}

    def addresses(self, endpoint: Endpoint) -> list[AddressInfo]:
        """The addresses of *endpoint*. Blocks for `WAIT_S` at most, and not while another lookup goes on.

        Raises:
            TimeoutError: it still goes on; what it finds is for the next call.
            OSError, UnicodeError: there is no such host.
        """
        with suppress(socket.gaierror):
            return _look_up(endpoint, socket.AI_NUMERICHOST)  # asks nobody
        lookup = self._pending.get(endpoint) or self._begin(endpoint)
        if not lookup.done():
            raise TimeoutError(f"the name {endpoint.host} is still being looked up")
        del self._pending[endpoint]
        return lookup.result()

    def _begin(self, endpoint: Endpoint) -> Future[list[AddressInfo]]:
        alone = all(other.done() for other in self._pending.values())
        lookup = self._pending[endpoint] = Future()
        threading.Thread(target=_fulfil, args=(lookup, endpoint), daemon=True).start()
        if alone:  # however many names there are, the feed stalls for one wait
            wait([lookup], WAIT_S)
        return lookup


def _fulfil(lookup: Future[list[AddressInfo]], endpoint: Endpoint) -> None:
    try:
        lookup.set_result(_look_up(endpoint, 0))
    except (OSError, UnicodeError) as error:
        lookup.set_exception(error)


def _look_up(endpoint: Endpoint, flags: int) -> list[AddressInfo]:
    return socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=flags)  # type: ignore[return-value]
