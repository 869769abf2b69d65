"""Bytes in, events out: the hot path of the feed.

A document frame costs one `unpack_from`, two slices and one tuple, no call and no object of ours, unless it is
compressed. Where the compiled kernel is in use, it takes runs of documents and usual snapshot markers that are in
order, and leaves the first other frame to the loop here; its events are no tuples before somebody looks at one. Every
other frame goes to the session as a `Frame`. Flow control is counted as bytes consumed less the few frames that are
exempt.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

import cramjam

from channelindex import kernel, mcbp
from channelindex.errors import ProtocolError
from channelindex.feeds.base import JSON, SNAPPY, XATTR, Events
from channelindex.feeds.dcp.messages import BodiesNeeded, NeedsBody
from channelindex.feeds.dcp.streams import Stream, Streams, no_such_stream
from channelindex.mcbp import Frame, Op

_DOCUMENT_HEAD = struct.Struct(">HHBBHII8xQ")
"""The header and the by_seqno that begins the extras of every document frame: magic and opcode, key length, extras
length, datatype, vbucket, body length, opaque, seqno."""
_DOCUMENT_HEAD_BYTES = 32
_MUTATION_EXTRAS_BYTES = 31
_EXTRAS_BYTES = range(18, 64)
"""From those of a deletion on: a later version may add some. Many more are a damaged length, for which we would take
a part of the key for extras."""
_UNKNOWN_DATATYPES = 0xFF & ~(JSON | SNAPPY | XATTR)
"""Bits that nobody negotiated."""
_FIRST_KIND = mcbp.REQUEST << 8 | Op.DCP_MUTATION
_LAST_KIND = mcbp.REQUEST << 8 | Op.DCP_EXPIRATION
_PREPARE_EXTRA_BYTES = 2
"""The server counts two bytes of a prepare that it does not send (MB-46634; KV docs, commands/prepare.md)."""


_MOST_OF_LENGTH = mcbp.MAX_BODY_BYTES >> 24
"""The highest first byte of a plain xattr section."""
assert _MOST_OF_LENGTH < 4, "a section is 4 bytes long at least: else it could be taken for a compressed one"


class Unfinished(NamedTuple):
    """A frame of which only a part has come: which one of the connection, and how many bytes of how many."""

    number: int
    n_bytes: int
    claimed_bytes: int


class FrameParser:
    """Cuts one connection's input into frames. Opcodes 0x57 to 0x59 become the events 0 to 2 of `feeds.base`.

    The parser moves the newest seqno of *streams* that are open. A document of a stream that is no more is dropped.
    One that is of no stream at all, or that cannot come at this point of its stream, breaks the protocol. So does any
    damage of a frame's head: the frames have no checksum.
    """

    def __init__(self, streams: Streams, on_frame: Callable[[Frame], None]) -> None:
        self._streams = streams
        self._on_frame = on_frame
        self._compiled = kernel.chosen()
        self._last: tuple[Stream, int] | None = None
        """Of the last document, where a document was what came last: its stream, and the newest seqno before it."""
        self._n_held = 0
        self._prefix_bytes = 0
        self._unusual = SNAPPY | _UNKNOWN_DATATYPES
        self._needs_body: NeedsBody | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._frame_bytes = 0
        self._events = self._new_events()
        self.counted_bytes = 0
        """Bytes so far that flow control counts: whole frames, of every request except noops. Until `feed` raises."""

    def expect(self, prefix_bytes: int, needs_body: NeedsBody | None) -> None:
        """Apply what the handshake settled: every key begins with *prefix_bytes* to cut off; bodies may be left out."""
        assert prefix_bytes >= 0
        self._prefix_bytes = prefix_bytes
        self._needs_body = needs_body
        self._unusual = _UNKNOWN_DATATYPES | (SNAPPY if needs_body is None else SNAPPY | JSON)

    def _new_events(self) -> Events:
        return [] if self._compiled is None else self._compiled.Events()

    @property
    def events(self) -> Events:
        """Events so far: documents, and those that *on_frame* appends."""
        return self._events

    def take_events(self) -> Events:
        """Take out the events so far."""
        events, self._events = self._events, self._new_events()
        return events

    def feed(self, data: bytes) -> None:
        """Take in *data* and handle every frame that is whole now.

        Raises:
            ProtocolError: the bytes are no frames, or frames out of order. `events` has all that came before.
            BodiesNeeded: the next document's body may matter, and was left out. The same holds of `events`.
        """
        offset = 0
        self._last = None
        while self._held:  # twice, where its header was not whole
            missing = self._frame_bytes - self._held_bytes
            assert missing > 0, "what is whole is held no more"
            part = data[offset : offset + missing]
            offset += len(part)
            self._held.append(part)
            self._held_bytes += len(part)
            if len(part) < missing:
                return
            frame = b"".join(self._held)
            self._held.clear()
            if not self._parse(frame, 0):
                self._hold(frame)
        consumed = self._parse(data, offset)
        if consumed < len(data):
            self._hold(data[consumed:])

    def _hold(self, rest: bytes) -> None:
        """Keep the beginning of a frame, without looking at it again before it is whole."""
        assert not self._held, "what was kept is part of it"
        self._n_held += 1
        self._held.append(rest)
        self._held_bytes = len(rest)
        body_bytes = int.from_bytes(rest[8:12], "big") if len(rest) >= mcbp.HEADER_BYTES else 0
        self._frame_bytes = mcbp.HEADER_BYTES + body_bytes
        assert self._held_bytes < self._frame_bytes or self._held_bytes < mcbp.HEADER_BYTES, "a whole frame was taken"

    @property
    def unfinished(self) -> Unfinished | None:
        """The frame that the input ends in the middle of."""
        return Unfinished(self._n_held, self._held_bytes, self._frame_bytes) if self._held else None

    def _parse(self, data: bytes, offset: int) -> int:
        """Handle the whole frames from *offset* on; the offset behind them."""
        while True:
            documents_end = self._take_run(data, offset)
            self.counted_bytes += documents_end - offset
            try:
                taken = mcbp.take_frame(data, documents_end)
            except ProtocolError:
                self._take_back_last()
                raise
            if taken is None:
                return documents_end
            frame, offset = taken
            if frame.magic == mcbp.REQUEST and frame.opcode != Op.DCP_NOOP:
                self.counted_bytes += offset - documents_end
                if frame.opcode == Op.DCP_PREPARE:
                    self.counted_bytes += _PREPARE_EXTRA_BYTES
            self._last = None
            self._on_frame(frame)

    def _take_back_last(self) -> None:
        """Drop the last document, since what follows is no frame: its length may be wrong. It will come again."""
        if self._last is not None:
            stream, seqno = self._last
            self._events.pop()
            stream.seqno = seqno

    def _take_run(self, data: bytes, offset: int) -> int:
        """Turn the run of whole document frames at *offset* into events; the offset behind it.

        The kernel takes the snapshot markers between them, too.
        """
        if self._compiled is None:
            return self._take_documents(data, offset, len(data))
        streams, events, prefix_bytes = self._streams.open_by_opaque, self._events, self._prefix_bytes
        take, unusual, look_closer = self._compiled.take_run, self._unusual, self._look_closer
        while True:
            end, stream, newest = take(data, offset, prefix_bytes, unusual, streams, events, look_closer)
            if end > offset:
                self._last = None if stream is None else (stream, newest)
            offset = self._take_documents(data, end, end)
            if offset == end:
                return offset

    def _take_documents(self, data: bytes, offset: int, last_start: int) -> int:
        """Turn the document frames at *offset*, to the one at *last_start*, into events; the offset behind them."""
        unpack = _DOCUMENT_HEAD.unpack_from
        append = self._events.append
        streams = self._streams.open_by_opaque
        prefix_bytes, unusual = self._prefix_bytes, self._unusual
        stream, newest = None, 0
        begin, end = offset, len(data)
        last_start = min(end - _DOCUMENT_HEAD_BYTES, last_start)
        while offset <= last_start:
            kind, key_size, extras_size, datatype, vb, body_size, opaque, seqno = unpack(data, offset)
            if not _FIRST_KIND <= kind <= _LAST_KIND:
                break
            key_start = offset + 24 + extras_size
            value_start = key_start + key_size
            frame_end = offset + 24 + body_size
            if frame_end > end:
                break
            if value_start > frame_end or (extras_size != _MUTATION_EXTRAS_BYTES and extras_size not in _EXTRAS_BYTES):
                raise ProtocolError(f"document frame with key {key_size}, extras {extras_size}, body {body_size} bytes")
            offset = frame_end
            try:
                stream = streams[opaque]
            except KeyError:
                stream = self._streams.opened(opaque, vb)
                continue
            newest = stream.seqno
            if not newest < seqno <= stream.snap_end or vb != stream.vb:
                raise _misplaced(stream, vb, seqno)
            value = data[value_start:frame_end]
            if datatype & unusual:
                datatype, value = self._look_closer(kind, data[key_start + prefix_bytes : value_start], datatype, value)
            stream.seqno = seqno
            append((kind - _FIRST_KIND, vb, seqno, data[key_start + prefix_bytes : value_start], datatype, value))
        if offset > begin:
            self._last = None if stream is None else (stream, newest)
        return offset

    def _look_closer(self, kind: int, key: bytes, datatype: int, value: bytes) -> tuple[int, bytes]:
        """Datatype and value of a document that is compressed, or whose body was left out although it may matter."""
        if datatype & _UNKNOWN_DATATYPES:
            raise ProtocolError(f"document with the unknown datatype 0x{datatype:02x}")
        if datatype & SNAPPY:
            datatype, value = decompress(datatype, value)
        needs_body = self._needs_body
        if needs_body and kind == _FIRST_KIND and datatype & JSON and needs_body(key, datatype, value):
            raise BodiesNeeded("a document came that may have its metadata in its body")
        return datatype, value


def _misplaced(stream: Stream, vb: int, seqno: int) -> ProtocolError:
    if vb != stream.vb:
        return no_such_stream(vb, stream.opaque)
    if seqno <= stream.seqno:
        return ProtocolError(f"vbucket {stream.vb}: seqno {seqno} after {stream.seqno}")
    return ProtocolError(f"vbucket {stream.vb}: seqno {seqno} in a snapshot that ends at {stream.snap_end}")


def decompress(datatype: int, value: bytes) -> tuple[int, bytes]:
    """Return datatype and value of a compressed document, without compression.

    A server compresses the whole value, xattrs and body together, in the raw format of Snappy. But one that cuts a body
    off inflates the value for it, puts the old datatype back, and may not compress again: then a plain xattr section
    comes under SNAPPY (kv_engine 6.0 and later, whether or not we asked for compression), or nothing at all. The first
    byte says which, always: a section begins with its length, big-endian, so with 0 or 1, for no document is larger
    than `MAX_BODY_BYTES`; a compressed value that begins with 0 or 1 is 0 or 1 byte long uncompressed, and no section.

    A value that cannot be decompressed stays as it is, for the decoder to refuse. The length that it claims is checked
    first: a few bytes could ask for gigabytes.
    """
    if not value or (datatype & XATTR and value[0] <= _MOST_OF_LENGTH):
        return datatype & ~SNAPPY, value
    try:
        if cramjam.snappy.decompress_raw_len(value) > mcbp.MAX_BODY_BYTES:
            return datatype, value
        return datatype & ~SNAPPY, bytes(cramjam.snappy.decompress_raw(value))
    except cramjam.DecompressionError:
        return datatype, value
