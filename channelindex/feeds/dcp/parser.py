"""Bytes in, events out: the hot path of the feed.

A document frame costs one `unpack_from`, two slices and one tuple, no call and no object of ours, unless it is
compressed. Every other frame goes to the session as a `Frame`. Flow control is counted as bytes consumed less the few
frames that are exempt.
"""

import struct
from collections.abc import Callable

from channelindex import mcbp
from channelindex.errors import ProtocolError
from channelindex.feeds.base import JSON, SNAPPY, Event
from channelindex.feeds.dcp.bodies import BodiesNeeded, NeedsBody
from channelindex.feeds.dcp.compression import decompress
from channelindex.mcbp import Frame, Op

_DOCUMENT_HEAD = struct.Struct(">HHBBHII8xQ")
"""The header and the by_seqno that begins the extras of every document frame: magic and opcode, key length, extras
length, datatype, vbucket, body length, opaque, seqno."""
_DOCUMENT_HEAD_BYTES = 32
_LEAST_EXTRAS_BYTES = 18
"""Of a deletion; mutations and expirations have more, and more may be added behind."""
_FIRST_KIND = mcbp.REQUEST << 8 | Op.DCP_MUTATION
_LAST_KIND = mcbp.REQUEST << 8 | Op.DCP_EXPIRATION
_PREPARE_EXTRA_BYTES = 2
"""The server counts two bytes of a prepare that it does not send (MB-46634; KV docs, commands/prepare.md)."""


class FrameParser:
    """Cuts one connection's input into frames. Opcodes 0x57 to 0x59 become the events 0 to 2 of `feeds.base`.

    *seqno_by_opaque* holds the newest seqno of every stream that is open, by its opaque; the parser moves it. A
    document of any other opaque belongs to a stream that is no more, and is dropped.
    """

    def __init__(self, seqno_by_opaque: dict[int, int], on_frame: Callable[[Frame], None]) -> None:
        self._seqno_by_opaque = seqno_by_opaque
        self._on_frame = on_frame
        self._prefix_bytes = 0
        self._unusual = SNAPPY
        self._needs_body: NeedsBody | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._wanted_bytes = 0
        self.events: list[Event] = []
        """Where documents are appended, and whatever else *on_frame* makes of its frames."""
        self.counted_bytes = 0
        """Bytes so far that flow control counts: whole frames, of every request except noops."""

    def expect(self, prefix_bytes: int, needs_body: NeedsBody | None) -> None:
        """What the handshake settled: every key begins with *prefix_bytes* to be taken off; bodies may be left out."""
        self._prefix_bytes = prefix_bytes
        self._needs_body = needs_body
        self._unusual = SNAPPY if needs_body is None else SNAPPY | JSON

    def feed(self, data: bytes) -> None:
        """Take in *data* and handle every frame that is whole now.

        Raises:
            ProtocolError: the bytes are no frames, or frames out of order. `events` has all that came before.
            BodiesNeeded: the next document's body may matter, and was left out. The same holds of `events`.
        """
        if self._held:
            self._held.append(data)
            self._held_bytes += len(data)
            if self._held_bytes < self._wanted_bytes:
                return
            data = b"".join(self._held)
            self._held.clear()
        consumed = self._parse(data)
        if consumed < len(data):
            self._hold(data[consumed:])

    def _hold(self, rest: bytes) -> None:
        """Keep the beginning of a frame, without looking at it again before it is whole."""
        self._held.append(rest)
        self._held_bytes = len(rest)
        body_bytes = int.from_bytes(rest[8:12], "big") if len(rest) >= mcbp.HEADER_BYTES else 0
        self._wanted_bytes = mcbp.HEADER_BYTES + body_bytes

    def _parse(self, data: bytes) -> int:
        offset = 0
        while True:
            documents_end = self._take_documents(data, offset)
            self.counted_bytes += documents_end - offset
            taken = mcbp.take_frame(data, documents_end)
            if taken is None:
                return documents_end
            frame, offset = taken
            if frame.magic == mcbp.REQUEST and frame.opcode != Op.DCP_NOOP:
                self.counted_bytes += offset - documents_end
                if frame.opcode == Op.DCP_PREPARE:
                    self.counted_bytes += _PREPARE_EXTRA_BYTES
            self._on_frame(frame)

    def _take_documents(self, data: bytes, offset: int) -> int:
        """Turn the run of whole document frames at *offset* into events; the offset behind it."""
        unpack = _DOCUMENT_HEAD.unpack_from
        append = self.events.append
        seqno_by_opaque = self._seqno_by_opaque
        prefix_bytes, unusual = self._prefix_bytes, self._unusual
        end = len(data)
        last_start = end - _DOCUMENT_HEAD_BYTES
        while offset <= last_start:
            kind, key_size, extras_size, datatype, vb, body_size, opaque, seqno = unpack(data, offset)
            if not _FIRST_KIND <= kind <= _LAST_KIND:
                break
            key_start = offset + 24 + extras_size
            value_start = key_start + key_size
            frame_end = offset + 24 + body_size
            if frame_end > end:
                break
            if value_start > frame_end or extras_size < _LEAST_EXTRAS_BYTES:
                raise ProtocolError(f"document frame with key {key_size}, extras {extras_size}, body {body_size} bytes")
            newest = seqno_by_opaque.get(opaque)
            if newest is not None:
                if seqno <= newest:
                    raise ProtocolError(f"vbucket {vb}: seqno {seqno} after {newest}")
                value = data[value_start:frame_end]
                if datatype & unusual:
                    datatype, value = self._look_closer(
                        kind, data[key_start + prefix_bytes : value_start], datatype, value
                    )
                seqno_by_opaque[opaque] = seqno
                append((kind - _FIRST_KIND, vb, seqno, data[key_start + prefix_bytes : value_start], datatype, value))
            offset = frame_end
        return offset

    def _look_closer(self, kind: int, key: bytes, datatype: int, value: bytes) -> tuple[int, bytes]:
        """Datatype and value of a document that is compressed, or whose body was left out although it may matter."""
        if datatype & SNAPPY:
            datatype, value = decompress(datatype, value)
        needs_body = self._needs_body
        if needs_body and kind == _FIRST_KIND and datatype & JSON and needs_body(key, datatype, value):
            raise BodiesNeeded("a document came that may have its metadata in its body")
        return datatype, value
