"""Frames as a server sends them on a DCP connection."""

import struct

from channelindex.mcbp import Frame, Op, pack_request, pack_response


def mutation(
    opaque: int, vb: int, seqno: int, key: bytes, value: bytes = b"", *, datatype: int = 0, more_extras: bytes = b""
) -> bytes:
    extras = struct.pack(">QQIIIHB", seqno, 1, 0, 0, 0, 0, 0) + more_extras
    return _document(Op.DCP_MUTATION, opaque, vb, key, extras, value, datatype)


def deletion(opaque: int, vb: int, seqno: int, key: bytes, *, delete_time: int | None = None) -> bytes:
    tail = struct.pack(">H", 0) if delete_time is None else struct.pack(">IB", delete_time, 0)
    return _document(Op.DCP_DELETION, opaque, vb, key, struct.pack(">QQ", seqno, 1) + tail)


def expiration(opaque: int, vb: int, seqno: int, key: bytes) -> bytes:
    return _document(Op.DCP_EXPIRATION, opaque, vb, key, struct.pack(">QQI", seqno, 1, 0))


def prepare(opaque: int, vb: int, seqno: int, key: bytes) -> bytes:
    return _document(Op.DCP_PREPARE, opaque, vb, key, struct.pack(">QQIIIBBB", seqno, 1, 0, 0, 0, 0, 0, 1))


def _document(
    opcode: int, opaque: int, vb: int, key: bytes, extras: bytes, value: bytes = b"", datatype: int = 0
) -> bytes:
    return pack_request(opcode, vbucket=vb, opaque=opaque, key=key, extras=extras, value=value, datatype=datatype)


def marker(opaque: int, vb: int, start: int, end: int) -> bytes:
    return stream_frame(Op.DCP_SNAPSHOT_MARKER, opaque, vb, struct.pack(">QQI", start, end, 1))


def marker_2(opaque: int, vb: int, start: int, end: int, version: int = 0, more: bytes = bytes(16)) -> bytes:
    """A marker of version 2.*version*: visible and completed seqno, and what a later version says, are *more*."""
    value = struct.pack(">QQI", start, end, 1) + more
    return stream_frame(Op.DCP_SNAPSHOT_MARKER, opaque, vb, bytes([version]), value=value)


def marker_2_2(opaque: int, vb: int, start: int, end: int, purge_seqno: int) -> bytes:
    return marker_2(opaque, vb, start, end, 2, struct.pack(">QQQQ", end, 0, purge_seqno, end))


def stream_end(opaque: int, vb: int, reason: int) -> bytes:
    return stream_frame(Op.DCP_STREAM_END, opaque, vb, reason.to_bytes(4, "big"))


def stream_frame(opcode: int, opaque: int, vb: int, extras: bytes, key: bytes = b"", value: bytes = b"") -> bytes:
    return pack_request(opcode, vbucket=vb, opaque=opaque, extras=extras, key=key, value=value)


def failover_log(*entries: tuple[int, int]) -> bytes:
    return b"".join(struct.pack(">QQ", vbuuid, seqno) for vbuuid, seqno in entries)


def response(request: Frame, status: int = 0, value: bytes = b"") -> bytes:
    return pack_response(request.opcode, status=status, opaque=request.opaque, value=value)
