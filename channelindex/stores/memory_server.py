"""Answers readers of other processes from an index in this process's memory, on a unix socket."""

import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from channelindex import logs
from channelindex.errors import ChangesForgotten, ChannelIndexError, ConfigInvalid, IndexMismatch
from channelindex.stores.memory import MemoryReader
from channelindex.stores.memory_wire import (
    MAX_WAIT_S,
    METHODS,
    WIRE_VERSION,
    Failure,
    WireAnswer,
    WireRequest,
    receive_message,
    send_message,
)

MAX_CONNECTIONS = 64
"""Each takes a thread. Readers keep one or two; a reader that leaks them must not take the node's memory."""

_encode = msgspec.msgpack.Encoder().encode
_request = msgspec.msgpack.Decoder(WireRequest).decode
_log = logs.get("memory_server")


class MemoryServer:
    """Listens at *path* for its owner alone (mode 0600), from `start` to `close`. A thread per connection."""

    def __init__(self, reader: MemoryReader, path: Path) -> None:
        self._reader = reader
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._peers: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False

    def start(self) -> None:
        """Begin to answer. What is at the path is replaced: the caller has made sure that nobody serves there.

        Raises:
            ConfigInvalid: the socket cannot be made.
        """
        try:
            self._path.unlink(missing_ok=True)
            self._listener.bind(str(self._path))
            self._path.chmod(0o600)  # nobody can connect before it listens
            self._listener.listen()
        except OSError as error:
            raise ConfigInvalid(f"node.run_dir: cannot listen at {self._path}: {error.strerror or error}") from error
        threading.Thread(target=self._accept, name="memory-server", daemon=True).start()

    def close(self) -> None:
        """Take no request any more, and cut who is connected. May be called twice."""
        with self._lock:
            self._closed = True
            peers = list(self._peers)
        for open_socket in (self._listener, *peers):
            with suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._lock:
                admitted = not self._closed and len(self._peers) < MAX_CONNECTIONS
                if admitted:
                    self._peers.add(peer)
            if admitted:
                threading.Thread(target=self._serve, args=(peer,), name="memory-reader", daemon=True).start()
            else:
                _log.warning("memory.reader_refused", connections=MAX_CONNECTIONS)
                peer.close()

    def _serve(self, peer: socket.socket) -> None:
        try:
            while (message := receive_message(peer)) is not None:
                send_message(peer, _encode(self._answer(message)))
        except OSError as error:
            _log.debug("memory.reader_lost", msg=str(error))
        finally:
            with self._lock:
                self._peers.discard(peer)
            peer.close()

    def _answer(self, message: bytes) -> WireAnswer:
        try:
            request = _request(message)
            if request.version != WIRE_VERSION:
                raise IndexMismatch(
                    f"the node speaks version {WIRE_VERSION}, the reader {request.version}: upgrade both"
                )
            return WireAnswer(None, msgspec.Raw(_encode(self._call(request))))
        except ChangesForgotten as error:
            return _failed(Failure("ChangesForgotten", str(error), error.channel, error.floor))
        except ChannelIndexError as error:
            return _failed(Failure(type(error).__name__, str(error)))
        except (msgspec.MsgspecError, KeyError) as error:
            return _failed(Failure("ProtocolError", f"a request that is none: {error}"))

    def _call(self, request: WireRequest) -> Any:
        arguments = msgspec.msgpack.decode(request.arguments, type=METHODS[request.method].arguments)
        if request.method == "wait_stable":
            counter, timeout_s = arguments
            return self._reader.wait_stable(counter, min(timeout_s, MAX_WAIT_S))
        return getattr(self._reader, request.method)(*arguments)


def _failed(failure: Failure) -> WireAnswer:
    return WireAnswer(failure, msgspec.Raw(b"\xc0"))
