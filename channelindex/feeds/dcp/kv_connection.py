"""A blocking connection to one KV node, with the bucket selected."""

import select
import socket
import time
from collections.abc import Sequence
from typing import TypeVar

from channelindex import mcbp
from channelindex.errors import OutcomeUnknown, ProtocolError, SourceUnavailable
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import Endpoint, SourceAddress
from channelindex.feeds.dcp.exchange import Conversation, Request
from channelindex.feeds.dcp.handshake import COMMON_FEATURES, open_bucket
from channelindex.feeds.dcp.keyspace import NO_COLLECTIONS, Keyspace, find_keyspace
from channelindex.feeds.dcp.tls import TlsLayer
from channelindex.mcbp import Feature, Frame

_CHUNK_BYTES = 256 * 1024
_Result = TypeVar("_Result")


class KvConnection:
    """Not safe for threads; after an error it is closed. `config` is the cluster's configuration from the node.

    If the address names collections, `keyspace` has their numbers, and whoever makes the requests puts them into keys.
    """

    def __init__(self, endpoint: Endpoint, address: SourceAddress, credentials: Credentials, deadline: float) -> None:
        """Connect, authenticate, select the bucket.

        Raises:
            SourceUnavailable: the node cannot be reached or the bucket is not there (yet).
            AuthenticationFailed: the credentials are wrong, or not for this bucket; or the certificate is not trusted.
            ProtocolError: the answers make no sense.
        """
        self.endpoint = endpoint
        self.keyspace: Keyspace = NO_COLLECTIONS
        self.config = b""
        self._input = bytearray()
        self._outgoing = bytearray()
        self._opaque = 0
        self._tls = TlsLayer(address.tls, endpoint.host) if address.tls is not None else None
        try:
            timeout_s = max(0.001, deadline - time.monotonic())
            self._socket = socket.create_connection(endpoint, timeout_s)
        except (OSError, UnicodeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise SourceUnavailable(f"{endpoint} (source.url {address}) cannot be reached: {reason}") from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setblocking(False)
            self._converse(self._introduce(address, credentials), deadline)
        except BaseException:
            self.close()
            raise

    def _introduce(self, address: SourceAddress, credentials: Credentials) -> Conversation[None]:
        collections = address.collections
        features = (*COMMON_FEATURES, Feature.COLLECTIONS) if collections else COMMON_FEATURES
        greeting = yield from open_bucket(address, credentials, features)
        self.config = greeting.config
        if collections:
            self.keyspace = yield from find_keyspace(collections, granted=Feature.COLLECTIONS in greeting.features)

    def _converse(self, conversation: Conversation[_Result], deadline: float) -> _Result:
        try:
            request = next(conversation)
            while True:
                request = conversation.send(self.exchange([request], deadline)[0])
        except StopIteration as finished:
            result: _Result = finished.value
            return result
        except OutcomeUnknown as error:
            raise SourceUnavailable(str(error)) from error

    def exchange(self, requests: Sequence[Request], deadline: float) -> list[Frame]:
        """The responses to *requests*, in their order. All are sent without waiting for answers in between.

        Raises:
            OutcomeUnknown: the connection was lost; any of them may have taken effect.
            ProtocolError: the answers make no sense; the same holds.
        """
        first = self._opaque
        self._opaque += len(requests)
        self._send(b"".join(request.pack(first + i & 0xFFFFFFFF) for i, request in enumerate(requests)))
        answers: dict[int, Frame] = {}
        try:
            self._flush_and_receive(answers, len(requests), deadline)
            return [answers[first + i & 0xFFFFFFFF] for i in range(len(requests))]
        except OSError as error:
            self.close()
            raise OutcomeUnknown(f"{self.endpoint} (source.url): {error.strerror or error}") from error
        except (KeyError, ProtocolError) as error:
            self.close()
            raise ProtocolError(f"{self.endpoint} answered what was not asked: {error}") from error

    def _send(self, data: bytes) -> None:
        if self._tls is None:
            self._outgoing += data
        else:
            self._tls.send(data)

    def _flush_and_receive(self, answers: dict[int, Frame], n_answers: int, deadline: float) -> None:
        """Both at once: a server that cannot get rid of its answers stops reading requests."""
        poll = select.poll()
        outgoing = self._outgoing if self._tls is None else self._tls.outgoing
        while len(answers) < n_answers:
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if outgoing else 0))
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                raise TimeoutError("no answer in time")
            mask = ready[0][1]
            if mask & select.POLLOUT:
                sent = self._socket.send(memoryview(outgoing)[:_CHUNK_BYTES])
                del outgoing[:sent]
            if mask & ~select.POLLOUT:
                self._receive(answers)

    def _receive(self, answers: dict[int, Frame]) -> None:
        data = self._socket.recv(_CHUNK_BYTES)
        if not data:
            raise ConnectionError("it closed the connection")
        self._input += data if self._tls is None else self._tls.receive(data)
        offset = 0
        while (taken := mcbp.take_frame(self._input, offset)) is not None:
            frame, offset = taken
            answers[frame.opaque] = frame
        del self._input[:offset]

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._socket.close()
