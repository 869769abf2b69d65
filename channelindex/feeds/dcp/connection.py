"""A `Session` on a non-blocking socket, with or without TLS. What goes wrong with the socket is `SourceUnavailable`."""

import select
import socket

from channelindex.errors import ProtocolError, SourceUnavailable
from channelindex.feeds.dcp.connstr import Endpoint
from channelindex.feeds.dcp.resolver import Resolver
from channelindex.feeds.dcp.session import Session
from channelindex.feeds.dcp.tls import TlsLayer, TlsOptions
from channelindex.polling import wait_readable

NOOP_INTERVAL_S = 20
"""The shortest that servers of every version take."""
SILENCE_S = 2.0 * NOOP_INTERVAL_S + 10.0
"""A connection without input for so long is dead: two noops are missing, and our own requests have no answer."""
HANDSHAKE_SILENCE_S = 10.0
"""The same before there are noops; it bounds connecting too."""
FRAME_S = 20.0
"""Time in which a frame that has begun must grow by `FRAME_BYTES`. A frame with a damaged length swallows all that
comes, up to 22 MB of it, and answers to our own requests come once a second: without this bound it would look alive."""
FRAME_BYTES = 1 << 20
"""In `FRAME_S` that is 0.4 Mbit/s: a 20 MB document may take almost seven minutes. The answers of a quiet node with all
1024 vbuckets are a fifth of it."""
_RECV_BYTES = 256 * 1024
"""Of one `recv`. Larger ones do not pay, they only spread the input over more memory."""


class Connection:
    """One connection, being made or made, registered with *epoll*. *resolver* may block for a second.

    Raises (as every method but `close` does):
        SourceUnavailable: the connection cannot be made, is lost, or has been silent for too long.
        ProtocolError: from `tick`: a frame has begun and does not go on.
        ConfigInvalid: from the constructor: the files that *tls* names cannot be used.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tls: TlsOptions | None,
        attempt: int,
        session: Session,
        resolver: Resolver,
        epoll: select.epoll,
        now: float,
    ) -> None:
        self.session = session
        self._endpoint = endpoint
        self._tls = TlsLayer(tls, endpoint.host) if tls is not None else None
        self._outgoing = session.outgoing if self._tls is None else self._tls.outgoing
        self._epoll = epoll
        self._heard_at = now
        self._grown = (0, 0)
        self._grown_at = now
        self._closed = False
        self._socket = self._connect(resolver, attempt)
        self._interest = select.EPOLLIN
        epoll.register(self._socket, self._interest)

    def _connect(self, resolver: Resolver, attempt: int) -> socket.socket:
        """A socket on its way to the *attempt*-th of the host's addresses, round and round."""
        assert attempt >= 0
        try:
            found = resolver.addresses(self._endpoint)
            family, kind, protocol, _, where = found[attempt % len(found)]
            connecting = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        except (OSError, UnicodeError) as error:  # the latter for a name that cannot be one
            raise self._unavailable(error) from error
        try:
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connecting.connect(where)
        except BlockingIOError:
            pass  # until it is made, sending and receiving would block; if it fails, they say so
        except OSError as error:
            connecting.close()
            raise self._unavailable(error) from error
        return connecting

    def fileno(self) -> int:
        """The descriptor by which the epoll names this connection; -1 once it is closed."""
        return self._socket.fileno()

    def receive(self, max_bytes: int, now: float) -> int:
        """Hand up to about *max_bytes* of what has arrived to the session, and send what it has to say; how many bytes.

        Raises:
            ChannelIndexError: as `Session.receive` and `TlsLayer.receive`; the session's events are still to be taken.
        """
        assert not self._closed
        left = max_bytes
        while left > 0:
            data = self._recv(min(left, _RECV_BYTES))
            if data is None:
                break
            left -= len(data)
            self._heard_at = now
            plain = data if self._tls is None else self._tls.receive(data)
            if plain:
                self.session.receive(plain, now)
        self.flush()
        return max_bytes - left

    def _recv(self, max_bytes: int) -> bytes | None:
        try:
            data = self._socket.recv(max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._unavailable(error) from error
        if not data:
            raise SourceUnavailable(f"{self._endpoint} closed the connection")
        return data

    def flush(self) -> None:
        """Send as much of the session's output as the socket takes; the epoll wakes for the rest."""
        assert not self._closed
        if self._tls is not None and self.session.outgoing:
            self._tls.send(self.session.outgoing)
            self.session.outgoing.clear()
        outgoing = self._outgoing
        while outgoing:
            try:
                del outgoing[: self._socket.send(outgoing)]
            except BlockingIOError:
                break
            except OSError as error:
                raise self._unavailable(error) from error
        interest = select.EPOLLIN | select.EPOLLOUT if outgoing else select.EPOLLIN
        if interest != self._interest:
            self._epoll.modify(self._socket, interest)
            self._interest = interest

    def tick(self, now: float) -> float:
        """Do what is due at *now*; when to call again."""
        next_at = self.session.tick(now)
        self.flush()
        silence_s = SILENCE_S if self.session.streaming else HANDSHAKE_SILENCE_S
        if now >= self._heard_at + silence_s:
            if not self._unread():
                raise SourceUnavailable(f"{self._endpoint} has been silent for {silence_s:.0f} s")
            self._heard_at = now
        return min(next_at, self._heard_at + silence_s, self._check_frame(now))

    def _check_frame(self, now: float) -> float:
        """Give up a frame that does not go on; when to look again."""
        frame = self.session.unfinished
        if frame is None:
            return float("inf")
        number, n_bytes = self._grown
        if frame.number != number or frame.n_bytes >= n_bytes + FRAME_BYTES or (self._late(now) and self._unread()):
            self._grown = frame.number, frame.n_bytes
            self._grown_at = now
        elif self._late(now):
            raise ProtocolError(
                f"{self._endpoint}: a frame that claims {frame.claimed_bytes} bytes stands at {frame.n_bytes}, "
                f"{frame.n_bytes - n_bytes} of which in {now - self._grown_at:.0f} s: a wrong length, or a slow line"
            )
        return self._grown_at + FRAME_S

    def _late(self, now: float) -> bool:
        return now >= self._grown_at + FRAME_S

    def _unread(self) -> bool:
        """True if input waits: our process, stopped or busy elsewhere, has not read, and the connection is alive."""
        return wait_readable([self._socket], 0.0)

    def _unavailable(self, error: OSError | UnicodeError) -> SourceUnavailable:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        return SourceUnavailable(f"{self._endpoint} (source.url) cannot be reached: {reason}")

    def close(self) -> None:
        """Close the socket. May be called twice."""
        if not self._closed:
            self._closed = True
            self._epoll.unregister(self._socket)
            self._socket.close()
