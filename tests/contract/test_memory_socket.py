"""The read half's contract, kept over the socket of a node that holds its index in memory."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from channelindex.errors import ConfigInvalid, IndexMismatch, ProtocolError, StoreUnavailable
from channelindex.stores.base import IndexReader
from channelindex.stores.memory import MemoryReader
from channelindex.stores.memory_client import MemoryClient
from channelindex.stores.memory_server import MAX_CONNECTIONS, MemoryServer
from channelindex.stores.memory_wire import WireAnswer, WireRequest, receive_message, send_message
from tests.contract.test_store_read import *  # noqa: F403 each of its tests, with the backend below
from tests.support.stores import META, Backend, append, entry


class ServedBackend(Backend):
    """An index in memory whose readers are at the other end of a socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("memory://")
        assert self.memory
        self.path = path
        self.server = MemoryServer(MemoryReader(self.memory, self.index_name), path)
        self.server.start()

    def reader(self) -> IndexReader:
        """A read half that asks the server."""
        client = MemoryClient(self.path)
        self._opened.append(client)
        return client

    def close(self) -> None:
        """Close all that was opened, and the server."""
        super().close()
        self.server.close()


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[ServedBackend]:
    with closing(ServedBackend(tmp_path / "index.sock")) as served:
        yield served


def test_more_than_one_page_of_channels_is_listed(backend, monkeypatch):
    monkeypatch.setattr("channelindex.stores.memory_client._PAGE", 3)
    backend.writer().write([append(f"c{number}", 1, entry(0, 1)) for number in range(7)])
    assert sorted(backend.reader().channels()) == [f"c{number}" for number in range(7)]


def test_reader_connects_again_to_a_node_that_was_restarted(backend):
    reader = backend.reader()
    backend.owner().create_or_check(META)
    assert reader.meta() == META
    backend.server.close()
    with pytest.raises(StoreUnavailable, match=r"index\.sock"):
        reader.meta()
    assert backend.memory
    backend.server = MemoryServer(MemoryReader(backend.memory, backend.index_name), backend.path)
    backend.server.start()
    assert reader.meta() == META


def _ask(path: Path, message: bytes) -> WireAnswer | None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(path))
        send_message(peer, message)
        answer = receive_message(peer)
    return msgspec.msgpack.decode(answer, type=WireAnswer) if answer is not None else None


@pytest.mark.parametrize(
    ("version", "method", "arguments", "kind"),
    [
        (2, "meta", (), "IndexMismatch"),
        (1, "close", (), "ProtocolError"),
        (1, "__class__", (), "ProtocolError"),
        (1, "blocks", (7,), "ProtocolError"),
        (1, "meta", (), "IndexMissing"),
    ],
)
def test_request_that_cannot_be_answered_is_answered_with_an_error(backend, version, method, arguments, kind):
    request = WireRequest(version, method, msgspec.Raw(msgspec.msgpack.encode(arguments)))
    answer = _ask(backend.path, msgspec.msgpack.encode(request))
    assert answer is not None
    assert answer.failure is not None
    assert answer.failure.kind == kind


def test_bytes_that_are_no_request_are_answered_and_a_huge_one_ends_the_connection(backend):
    answer = _ask(backend.path, b"\xc1 nonsense")
    assert answer is not None
    assert answer.failure is not None
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(backend.path))
        peer.sendall(struct.pack(">I", 0xFFFFFFFF))
        assert peer.recv(1) == b""


def test_connections_are_bounded_and_come_free_again(backend):
    backend.owner().create_or_check(META)
    readers = [MemoryClient(backend.path) for _ in range(MAX_CONNECTIONS)]
    for reader in readers:
        reader.meta()
    with closing(MemoryClient(backend.path)) as one_more:
        with pytest.raises(StoreUnavailable):
            one_more.meta()
        for reader in readers:
            reader.close()
        deadline = time.monotonic() + 60
        while True:
            try:
                assert one_more.meta() == META
                break
            except StoreUnavailable:
                assert time.monotonic() < deadline


def test_answer_of_another_kind_of_server_is_a_protocol_error(tmp_path):
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                receive_message(peer)
                send_message(peer, b"\xc1")

        threading.Thread(target=serve, daemon=True).start()
        with closing(MemoryClient(path)) as reader, pytest.raises(ProtocolError, match=r"other\.sock"):
            reader.meta()


def test_version_mismatch_reaches_the_reader_as_a_mismatch(backend, monkeypatch):
    monkeypatch.setattr("channelindex.stores.memory_server.WIRE_VERSION", 2)
    with pytest.raises(IndexMismatch, match="upgrade both"):
        backend.reader().meta()


def test_socket_that_cannot_be_made_is_a_configuration_error(tmp_path, backend):
    server = MemoryServer(MemoryReader(backend.memory, "test"), tmp_path / "no" / "index.sock")
    with pytest.raises(ConfigInvalid, match=r"node\.run_dir"):
        server.start()
    server.close()
