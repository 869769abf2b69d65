"""A bare client of the memcached binary protocol for tests: sends frames, reads frames, knows no rules."""

import contextlib
import socket
import struct
import time
from collections.abc import Callable

from channelindex import mcbp
from channelindex.mcbp import Frame, Op
from devbucket.accounts import Account, Accounts
from devbucket.bucket import Bucket
from devbucket.bucket_cluster import BucketCluster
from devbucket.client_session import ClientSession, NodeContext
from devbucket.dispatch import answer

TIMEOUT_S = 60.0

Call = Callable[..., Frame]


class RawClient:
    """One connection, which *wrap* may put into TLS. Reads wait until a deadline."""

    def __init__(self, port: int, wrap: Callable[[socket.socket], socket.socket] = lambda plain: plain) -> None:
        self._socket = wrap(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S))
        self._buffer = bytearray()

    def close(self) -> None:
        self._socket.close()

    @property
    def unread(self) -> bytes:
        """What has come and is no whole frame."""
        return bytes(self._buffer)

    def send(self, data: bytes) -> None:
        """Send bytes; that the server has hung up already is for the next read to find."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def read(self, timeout_s: float = TIMEOUT_S) -> Frame | None:
        """The next frame; None if the server hung up.

        Raises:
            TimeoutError: nothing came.
        """
        deadline = time.monotonic() + timeout_s
        while (taken := mcbp.take_frame(self._buffer)) is None:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._socket.recv(1 << 18)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._buffer += data
        frame, end = taken
        del self._buffer[:end]
        return frame

    def call(self, opcode: int, **fields) -> Frame:
        """Send a request and read one frame, which has to be its response."""
        self.send(mcbp.pack_request(opcode, **fields))
        frame = self.read()
        assert frame is not None, f"hung up after 0x{opcode:02x}"
        assert frame.opcode == opcode
        return frame

    def durable_set(self, vb: int, key: bytes, level: int) -> Frame:
        """SET of {} at a level of durability, 0 for none; the response."""
        plain = mcbp.pack_request(Op.SET, vbucket=vb, magic=mcbp.FRAMED_REQUEST, extras=bytes(8), key=key, value=b"{}")
        framing = bytes([0x11, level]) if level else b""
        size = len(framing) + len(plain) - mcbp.HEADER_BYTES
        head = plain[:2] + bytes([len(framing), len(key)]) + plain[4:8] + size.to_bytes(4, "big") + plain[12:24]
        self.send(head + framing + plain[24:])
        frame = self.read()
        assert frame is not None, "hung up"
        return frame

    def log_in(
        self,
        features: tuple[int, ...] = (0x06, 0x07, 0x08, 0x0B),
        user: str = "Administrator",
        password: str = "password",
    ) -> "RawClient":
        """HELLO, PLAIN, SELECT_BUCKET of the bucket "default"."""
        self.call(Op.HELLO, value=b"".join(feature.to_bytes(2, "big") for feature in features))
        assert self.call(Op.SASL_AUTH, key=b"PLAIN", value=f"\0{user}\0{password}".encode()).status == 0
        assert self.call(Op.SELECT_BUCKET, key=b"default").status == 0
        return self

    def open_dcp(self, name: str = "test", flags: int = 0x05, **controls: str) -> "RawClient":
        """DCP_OPEN and controls; no-ops are on."""
        assert self.call(Op.DCP_OPEN, key=name.encode(), extras=struct.pack(">II", 0, flags)).status == 0
        for control, value in {"enable_noop": "true", **controls}.items():
            assert self.call(Op.DCP_CONTROL, key=control.encode(), value=value.encode()).status == 0
        return self

    def request_stream(
        self,
        vb: int,
        start: int = 0,
        end: int = 2**64 - 1,
        vbuuid: int = 0,
        snapshot: tuple[int, int] | None = None,
        flags: int = 0,
        value: bytes = b"",
    ) -> Frame:
        snap_start, snap_end = snapshot or (start, start)
        extras = struct.pack(">IIQQQQQ", flags, 0, start, end, vbuuid, snap_start, snap_end)
        return self.call(Op.DCP_STREAM_REQ, vbucket=vb, opaque=vb, extras=extras, value=value)


class Writer:
    """Writes documents through any way to run a request: a connection, or a session inside the server."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def get(self, vb: int, key: bytes) -> Frame:
        return self.call(Op.GET, vbucket=vb, key=key)

    def set(self, vb: int, key: bytes, value: bytes, flags: int = 0, expiry: int = 0) -> Frame:
        return self.call(Op.SET, vbucket=vb, key=key, value=value, extras=struct.pack(">II", flags, expiry))

    def delete(self, vb: int, key: bytes) -> Frame:
        return self.call(Op.DELETE, vbucket=vb, key=key)

    def mutate_in(
        self, vb: int, key: bytes, *specs: tuple[int, int, str, bytes], doc_flags: int = 0, expiry: int | None = None
    ) -> Frame:
        """Each spec: opcode, path flags, path, value."""
        value = b"".join(
            struct.pack(">BBHI", opcode, flags, len(path), len(text)) + path.encode() + text
            for opcode, flags, path, text in specs
        )
        extras = b"" if expiry is None else expiry.to_bytes(4, "big")
        extras += bytes([doc_flags]) if doc_flags else b""
        return self.call(Op.SUBDOC_MULTI_MUTATION, vbucket=vb, key=key, value=value, extras=extras)

    def lookup_in(
        self, vb: int, key: bytes, *specs: tuple[int, int, str], doc_flags: int = 0
    ) -> tuple[int, list[tuple[int, bytes]]]:
        """The overall status and, per spec, status and text."""
        value = b"".join(struct.pack(">BBH", opcode, flags, len(path)) + path.encode() for opcode, flags, path in specs)
        frame = self.call(
            Op.SUBDOC_MULTI_LOOKUP, vbucket=vb, key=key, value=value, extras=bytes([doc_flags]) if doc_flags else b""
        )
        results, at = [], 0
        while at < len(frame.value):
            status, size = struct.unpack_from(">HI", frame.value, at)
            results.append((status, frame.value[at + 6 : at + 6 + size]))
            at += 6 + size
        return frame.status, results


def local_session(bucket: Bucket) -> ClientSession:
    """A session that logged in and selected the bucket, without a connection."""
    session = ClientSession(NodeContext(BucketCluster(bucket, Accounts([]), 0, time.monotonic)), hang_up=lambda: None)
    session.account, session.selected = Account("somebody", ""), bucket
    return session


def local_writer(bucket: Bucket) -> Writer:
    """Writes inside the server, without a connection, so that nothing depends on time."""
    session = local_session(bucket)

    def call(opcode: int, **fields) -> Frame:
        taken = mcbp.take_frame(mcbp.pack_request(opcode, **fields))
        assert taken is not None
        replies: list[bytes] = []
        answer(session, taken[0], replies)
        response = mcbp.take_frame(replies[0])
        assert response is not None
        return response[0]

    return Writer(call)
