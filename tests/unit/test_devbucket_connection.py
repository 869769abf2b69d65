"""A connection's bounds: what it holds for a client that does not read, and how streams share it."""

import asyncio
import struct
from itertools import pairwise
from typing import Any, cast

from channelindex import mcbp
from channelindex.mcbp import Frame, Op
from devbucket.accounts import Account, Accounts
from devbucket.bucket import Bucket
from devbucket.bucket_cluster import BucketCluster
from devbucket.client_connection import CHUNK_BYTES, MAX_UNSENT_BYTES, ClientConnection
from devbucket.client_session import NodeContext
from devbucket.producer_stream import TURN_BYTES
from tests.support.mcbp_client import local_writer

FOREVER = 2**64 - 1
BIG = b"x" * 100_000


class SlowTransport:
    """A transport whose client does not read: it keeps all bytes and pauses its protocol as asyncio's does."""

    def __init__(self, connection: ClientConnection) -> None:
        self.unsent = bytearray()
        self.high = 0
        self.reading = True
        self._connection = connection
        self._paused = False
        self._closing = False

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def write(self, data: bytes) -> None:
        self.unsent += data
        if len(self.unsent) > self.high and not self._paused:
            self._paused = True
            self._connection.pause_writing()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def read_all(self) -> bytes:
        """The client reads at last."""
        data, self.unsent = bytes(self.unsent), bytearray()
        if self._connection.session.producer is not None:
            self._connection.session.producer.check()
        if self._paused:
            self._paused = False
            self._connection.resume_writing()
        return data


def connected(bucket: Bucket) -> tuple[ClientConnection, SlowTransport]:
    node = NodeContext(BucketCluster(bucket, Accounts([]), 360, asyncio.get_running_loop().time))
    connection = ClientConnection(node, set())
    transport = SlowTransport(connection)
    connection.connection_made(cast("Any", transport))
    connection.session.account, connection.session.selected = Account("somebody", ""), bucket
    connection.data_received(request(Op.DCP_OPEN, key=b"test", extras=struct.pack(">II", 0, 1)))
    return connection, transport


def request(opcode: int, **fields) -> bytes:
    return mcbp.pack_request(opcode, **fields)


def stream_request(vb: int) -> bytes:
    extras = struct.pack(">IIQQQQQ", 0, 0, 0, FOREVER, 0, 0, 0)
    return request(Op.DCP_STREAM_REQ, vbucket=vb, opaque=vb, extras=extras)


async def settle() -> None:
    """Let all callbacks run that follow from each other."""
    for _ in range(200):
        await asyncio.sleep(0)


def frames_of(data: bytes) -> list[Frame]:
    frames, offset = [], 0
    while (taken := mcbp.take_frame(data, offset)) is not None:
        frame, offset = taken
        frames.append(frame)
    assert offset == len(data)
    return frames


def test_client_that_does_not_read_is_not_buffered_for():
    async def scenario() -> tuple[int, list[Frame]]:
        bucket = Bucket("default", 1)
        bucket.bulk_load((0, i, b"%d" % i, BIG) for i in range(1, 101))
        connection, transport = connected(bucket)
        connection.data_received(stream_request(0))
        data, held = b"", 0
        for _ in range(20):
            await settle()
            held = max(held, len(transport.unsent))
            data += transport.read_all()
        return held, frames_of(data)

    held, frames = asyncio.run(scenario())
    assert MAX_UNSENT_BYTES < held <= MAX_UNSENT_BYTES + CHUNK_BYTES + TURN_BYTES + len(BIG)
    assert sum(frame.opcode == Op.DCP_MUTATION for frame in frames) == 100


def test_client_that_reads_no_answers_is_not_read_from():
    async def scenario() -> tuple[bool, bool]:
        bucket = Bucket("default", 1)
        local_writer(bucket).set(0, b"k", BIG)
        connection, transport = connected(bucket)
        connection.session.producer = None
        for _ in range(20):
            connection.data_received(request(Op.GET, key=b"k"))
        while_full = transport.reading
        transport.read_all()
        return while_full, transport.reading

    assert asyncio.run(scenario()) == (False, True)


def test_streams_take_turns():
    async def scenario() -> list[Frame]:
        bucket = Bucket("default", 2)
        bucket.bulk_load((vb, i, b"%d" % i, b"x" * 1000) for i in range(1, 101) for vb in (0, 1))
        connection, transport = connected(bucket)
        connection.data_received(stream_request(0) + stream_request(1))
        await settle()
        return frames_of(transport.read_all())

    order = [frame.vbucket for frame in asyncio.run(scenario()) if frame.opcode == Op.DCP_MUTATION]
    switches = sum(before != after for before, after in pairwise(order))
    assert switches >= 2 * 100 * 1000 // TURN_BYTES - 2


def test_snapshot_is_sent_as_it_was_taken_even_if_its_documents_change_meanwhile():
    async def scenario() -> list[Frame]:
        bucket = Bucket("default", 1)
        writer = local_writer(bucket)
        for i in range(4):
            writer.set(0, b"%d" % i, b"old")
        connection, transport = connected(bucket)
        connection.data_received(request(Op.DCP_CONTROL, key=b"connection_buffer_size", value=b"50"))
        connection.data_received(stream_request(0))
        await settle()
        writer.set(0, b"3", b"new")
        for _ in range(20):
            connection.data_received(request(Op.DCP_BUFFER_ACK, extras=struct.pack(">I", 1000)))
            await settle()
        return frames_of(transport.read_all())

    frames = [frame for frame in asyncio.run(scenario()) if frame.magic == mcbp.REQUEST]
    told = [
        struct.unpack(">QQI", frame.extras)[:2] if frame.opcode == Op.DCP_SNAPSHOT_MARKER else (frame.key, frame.value)
        for frame in frames
    ]
    old = [(b"%d" % i, b"old") for i in range(4)]
    assert told == [(0, 4), *old, (5, 5), (b"3", b"new")]


def test_frames_may_arrive_in_any_pieces():
    async def scenario() -> list[Frame]:
        connection, transport = connected(Bucket("default", 1))
        for byte in request(Op.NOOP, opaque=7) + request(Op.NOOP, opaque=8):
            connection.data_received(bytes([byte]))
        return frames_of(transport.read_all())

    assert [frame.opaque for frame in asyncio.run(scenario())][-2:] == [7, 8]


def test_stalled_connection_streams_again_when_asked_to():
    async def scenario() -> tuple[list[Frame], list[Frame]]:
        bucket = Bucket("default", 1)
        local_writer(bucket).set(0, b"k", b"{}")
        connection, transport = connected(bucket)
        connection.stall(on=True)
        connection.data_received(stream_request(0))
        await settle()
        before = frames_of(transport.read_all())
        connection.stall(on=False)
        await settle()
        return before, frames_of(transport.read_all())

    before, after = asyncio.run(scenario())
    assert all(frame.magic == mcbp.RESPONSE for frame in before)
    assert [frame.opcode for frame in after] == [Op.DCP_SNAPSHOT_MARKER, Op.DCP_MUTATION]
