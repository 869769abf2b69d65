"""A blocking client of one KV node, for what is not the feed: loading documents, looking at the bucket, tests."""

import select
import socket
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

from channelindex import mcbp
from channelindex.errors import OutcomeUnknown, ProtocolError, SourceUnavailable
from channelindex.feeds.dcp import operations
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import SourceAddress
from channelindex.feeds.dcp.exchange import Conversation, Request
from channelindex.feeds.dcp.handshake import open_bucket
from channelindex.feeds.dcp.operations import Document
from channelindex.hashing import vbucket_of
from channelindex.mcbp import Frame

_CHUNK_BYTES = 256 * 1024
_Result = TypeVar("_Result")


class KvClient:
    """A connection with the bucket selected. Not safe for threads; after an error it is closed.

    `source` is what the bucket says of itself. *timeout_s* bounds connecting, and each call by itself.
    """

    def __init__(self, address: SourceAddress, credentials: Credentials, timeout_s: float = 10.0) -> None:
        """Connect, authenticate, select the bucket.

        Raises:
            SourceUnavailable: the node cannot be reached or the bucket is not there (yet).
            AuthenticationFailed: the credentials are wrong, or not for this bucket.
            ProtocolError: the answers make no sense.
        """
        self._address = address
        self._timeout_s = timeout_s
        self._input = bytearray()
        self._opaque = 0
        deadline = time.monotonic() + timeout_s
        try:
            self._socket = socket.create_connection((address.host, address.port), timeout_s)
        except OSError as error:
            raise SourceUnavailable(f"{address} (source.url) cannot be reached: {error.strerror or error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        try:
            self.source = self._converse(open_bucket(address.bucket, credentials), deadline)
        except BaseException:
            self.close()
            raise

    def _converse(self, conversation: Conversation[_Result], deadline: float) -> _Result:
        try:
            request = next(conversation)
            while True:
                request = conversation.send(self._exchange([request], deadline)[0])
        except StopIteration as finished:
            result: _Result = finished.value
            return result
        except OutcomeUnknown as error:
            raise SourceUnavailable(str(error)) from error

    def pipeline(self, requests: Sequence[Request]) -> list[Frame]:
        """The responses to *requests*, in their order. All are sent without waiting for answers in between.

        A request without a vbucket goes to that of its key.

        Raises:
            OutcomeUnknown: the connection was lost; any of them may have taken effect.
        """
        return self._exchange(
            [
                request if request.vb is not None else request._replace(vb=self.vbucket_of(request.key))
                for request in requests
            ],
            time.monotonic() + self._timeout_s,
        )

    def vbucket_of(self, key: bytes) -> int:
        """The vbucket that *key* belongs to."""
        return vbucket_of(key, self.source.n_vbuckets)

    # -- single operations

    def get(self, key: bytes) -> Document | None:
        """The document under *key*; None if there is none."""
        return operations.document(self._ask(operations.get(key)))

    def store(self, key: bytes, body: bytes, *, cas: int = 0) -> int | None:
        """Write a document; its new CAS, or None if *cas* is no longer its version."""
        return operations.stored(self._ask(operations.store(key, body, cas=cas)))

    def delete(self, key: bytes, *, cas: int = 0) -> int | None:
        """Delete a document; the tombstone's CAS, or None if there is none or *cas* is no longer its version."""
        return operations.stored(self._ask(operations.delete(key, cas=cas)))

    def increment(self, key: bytes, delta: int = 1, initial: int | None = None) -> int | None:
        """The counter after adding *delta*; None if there is none and no *initial* to create it with."""
        return operations.counted(self._ask(operations.increment(key, delta, initial)))

    def lookup(self, key: bytes, xattr: str) -> Document | None:
        """The document with one xattr, also where it is deleted; None if there is nothing at all."""
        return operations.looked_up(self._ask(operations.lookup(key, xattr)))

    def store_with_xattr(self, key: bytes, xattr: str, text: bytes, body: bytes, *, cas: int = 0) -> int | None:
        """Write body and xattr as one change; the new CAS, or None if *cas* is no longer the document's version."""
        return operations.stored(self._ask(operations.store_with_xattr(key, xattr, text, body, cas=cas)))

    def delete_with_xattr(self, key: bytes, xattr: str, text: bytes, *, cas: int = 0) -> int | None:
        """Make a tombstone with this xattr; its CAS, or None if there is no document of that version."""
        return operations.stored(self._ask(operations.delete_with_xattr(key, xattr, text, cas=cas)))

    def high_seqnos(self) -> dict[int, int]:
        """The high seqno of every active vbucket of the node."""
        return operations.seqnos(self._ask(operations.active_seqnos()))

    def _ask(self, request: Request) -> Frame:
        return self.pipeline([request])[0]

    # -- the connection

    def _exchange(self, requests: Sequence[Request], deadline: float) -> list[Frame]:
        first = self._opaque
        self._opaque += len(requests)
        outgoing = b"".join(request.pack(first + i & 0xFFFFFFFF) for i, request in enumerate(requests))
        answers: dict[int, Frame] = {}
        try:
            self._send_and_receive(outgoing, answers, len(requests), deadline)
            return [answers[first + i & 0xFFFFFFFF] for i in range(len(requests))]
        except OSError as error:
            self.close()
            raise OutcomeUnknown(f"{self._address} (source.url): {error.strerror or error}") from error
        except (KeyError, ProtocolError) as error:
            self.close()
            raise ProtocolError(f"{self._address} answered what was not asked: {error}") from error

    def _send_and_receive(self, outgoing: bytes, answers: dict[int, Frame], n_answers: int, deadline: float) -> None:
        """Both at once: a server that cannot get rid of its answers stops reading requests."""
        left = memoryview(outgoing)
        poll = select.poll()
        while len(answers) < n_answers:
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if left else 0))
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                raise TimeoutError(f"no answer within {self._timeout_s:g} s")
            mask = ready[0][1]
            if mask & select.POLLOUT:
                left = left[self._socket.send(left[:_CHUNK_BYTES]) :]
            if mask & ~select.POLLOUT:
                self._receive(answers)

    def _receive(self, answers: dict[int, Frame]) -> None:
        data = self._socket.recv(_CHUNK_BYTES)
        if not data:
            raise ConnectionError("it closed the connection")
        self._input += data
        offset = 0
        while (taken := mcbp.take_frame(self._input, offset)) is not None:
            frame, offset = taken
            answers[frame.opaque] = frame
        del self._input[:offset]

    def close(self) -> None:
        """Close the connection. May be called twice."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
