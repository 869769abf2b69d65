"""One version of one document, and its DCP message. No I/O.

The message is kept in pieces around the opaque, the only part that differs between streams, so that streaming is a
join: `head` + opaque + `middle` + `payload`. In the usual feed modes the payload *is* the document's value, not a copy.
"""

import struct

import cramjam
import orjson

from channelindex import mcbp
from channelindex.feeds.base import JSON, SNAPPY, XATTR
from channelindex.mcbp import Op
from devbucket.manifest import event_of

# Feed modes: the flags of DCP_OPEN that change what a message carries, and the controls that do.
INCLUDE_XATTRS = 0x04
NO_VALUE = 0x08
DELETE_TIMES = 0x20
NO_VALUE_KEEP_DATATYPE = 0x40
EXPIRY_OPCODE = 0x10000
TAKES_SNAPPY = 0x20000
COMPRESS = 0x40000
BARE_KEYS = 0x80000  # of a bucket with collections, to a client that knows none

_HEAD = struct.Struct(">BBHBBHI")  # the frame header up to the opaque
_MUTATION = struct.Struct(">QQQIIIHB")  # CAS, by-seqno, rev seqno, flags, expiry, lock time, nmeta, nru
_DELETION = struct.Struct(">QQQH")  # CAS, by-seqno, rev seqno, nmeta
_DELETION_V2 = struct.Struct(">QQQIB")  # CAS, by-seqno, rev seqno, delete time, unused
_EXPIRATION = struct.Struct(">QQQI")  # CAS, by-seqno, rev seqno, delete time
_EVENT = struct.Struct(">QIB")  # by-seqno, kind, version of the format
_CAS_BYTES = 8
_NRU = 2  # what a real server sends for a document that nobody read

MAX_VALUE_BYTES = 20 * 1024 * 1024
"""Of a body and the xattrs of users."""
MAX_SYSTEM_XATTR_BYTES = 1024 * 1024
"""Of the xattrs of which the name starts with an underscore: they come on top."""

ALIVE = 0
DELETED = 1
EXPIRED = 2
SYSTEM_EVENT = 3  # a collection or scope begins: its value is what is sent


class Item:
    """One version of a document. Immutable but for `superseded_by` and the cached message.

    `value` is the xattr section, if the datatype says so, and the body. `changed_at` is Unix seconds.
    """

    __slots__ = (
        "cas",
        "changed_at",
        "datatype",
        "expiry",
        "fate",
        "flags",
        "head",
        "key",
        "middle",
        "mode",
        "payload",
        "rev",
        "seqno",
        "size",
        "superseded_by",
        "value",
        "vb",
    )

    def __init__(
        self,
        vb: int,
        key: bytes,
        seqno: int,
        rev: int,
        cas: int,
        *,
        value: bytes,
        datatype: int,
        flags: int = 0,
        expiry: int = 0,
        fate: int = ALIVE,
        changed_at: int = 0,
    ) -> None:
        self.vb = vb
        self.key = key
        self.seqno = seqno
        self.rev = rev
        self.cas = cas
        self.value = value
        self.datatype = datatype
        self.flags = flags
        self.expiry = expiry
        self.fate = fate
        self.changed_at = changed_at
        self.superseded_by = 0  # the seqno of the next version of this key; 0: this is the newest
        self.mode = -1  # the feed mode that the four fields below are encoded for
        self.head = self.middle = self.payload = b""
        self.size = 0

    @property
    def deleted(self) -> bool:
        """Return whether this is a tombstone."""
        return self.fate in (DELETED, EXPIRED)

    def xattrs(self) -> dict[str, bytes]:
        """Return the xattrs by name, each as JSON text."""
        return mcbp.split_xattrs(self.value)[0] if self.datatype & XATTR else {}

    def body(self) -> bytes:
        """Return the value without its xattrs."""
        return mcbp.split_xattrs(self.value)[1] if self.datatype & XATTR else self.value

    def encode_for(self, mode: int) -> None:
        """Fill `head`, `middle`, `payload` and `size` for a stream of that feed mode."""
        if self.fate == SYSTEM_EVENT:
            self._encode_event(mode)
            return
        opcode, extras = self._opcode_and_extras(mode)
        datatype, self.payload = self._datatype_and_payload(mode)
        if mode & (TAKES_SNAPPY if self.deleted else COMPRESS) and self.payload:
            datatype, self.payload = self._compressed(datatype, self.payload)
        key = self.key[1:] if mode & BARE_KEYS else self.key
        self._put_together(mode, opcode, datatype, extras, key)

    def _encode_event(self, mode: int) -> None:
        kind, _, name = event_of(self.key)
        self.payload = self.value
        extras = bytes(_CAS_BYTES) + _EVENT.pack(self.seqno, kind, 0)
        self._put_together(mode, Op.DCP_SYSTEM_EVENT, 0, extras, name)

    def _put_together(self, mode: int, opcode: int, datatype: int, extras: bytes, key: bytes) -> None:
        extras_bytes = len(extras) - _CAS_BYTES
        body_bytes = extras_bytes + len(key) + len(self.payload)
        self.head = _HEAD.pack(mcbp.REQUEST, opcode, len(key), extras_bytes, datatype, self.vb, body_bytes)
        self.middle = extras + key
        self.size = mcbp.HEADER_BYTES + body_bytes
        self.mode = mode

    def _opcode_and_extras(self, mode: int) -> tuple[int, bytes]:
        """Return the opcode, and the extras preceded by the CAS, which lies before them in a frame."""
        if not self.deleted:
            extras = _MUTATION.pack(self.cas, self.seqno, self.rev, self.flags, self.expiry, 0, 0, _NRU)
            return Op.DCP_MUTATION, extras
        if not mode & DELETE_TIMES:
            return Op.DCP_DELETION, _DELETION.pack(self.cas, self.seqno, self.rev, 0)
        if self.fate == EXPIRED and mode & EXPIRY_OPCODE:
            return Op.DCP_EXPIRATION, _EXPIRATION.pack(self.cas, self.seqno, self.rev, self.changed_at)
        return Op.DCP_DELETION, _DELETION_V2.pack(self.cas, self.seqno, self.rev, self.changed_at, 0)

    def _datatype_and_payload(self, mode: int) -> tuple[int, bytes]:
        """Return what a mode leaves of the value. Without xattrs and value, a document keeps a datatype that lies."""
        if not mode & INCLUDE_XATTRS:
            if not mode & (NO_VALUE | NO_VALUE_KEEP_DATATYPE):
                return self.datatype & ~XATTR, self.body()
            return (0 if self.deleted else self.datatype), b""
        if not mode & (NO_VALUE | NO_VALUE_KEEP_DATATYPE):
            return self.datatype, self.value
        payload = mcbp.join_xattrs(self.xattrs().items(), b"") if self.datatype & XATTR else b""
        return (self.datatype if mode & NO_VALUE_KEEP_DATATYPE else self.datatype & XATTR), payload

    def _compressed(self, datatype: int, value: bytes) -> tuple[int, bytes]:
        """Datatype and value compressed: of a document only if it gets shorter.

        Tombstones lie on a real server's disk compressed, and are sent so to whoever can take it.
        """
        compressed = bytes(cramjam.snappy.compress_raw(value))
        if self.deleted or len(compressed) < len(value):
            return datatype | SNAPPY, compressed
        return datatype, value


def decompressed(value: bytes, most_bytes: int) -> bytes | None:
    """Return the value of which this is the compressed form; None if it is none, or longer than *most_bytes*."""
    try:
        if cramjam.snappy.decompress_raw_len(value) > most_bytes:
            return None
        return bytes(cramjam.snappy.decompress_raw(value))
    except cramjam.DecompressionError:
        return None


def datatype_of(body: bytes) -> int:
    """Return the JSON bit, set by looking at the body as a real server does: a number is JSON, an empty body is not."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return 0
    return JSON


def join_value(xattrs: dict[str, bytes], body: bytes) -> tuple[bytes, int]:
    """Return the value of a document with these xattrs and this body, and its datatype."""
    if not xattrs:
        return body, datatype_of(body)
    return mcbp.join_xattrs(xattrs.items(), body), datatype_of(body) | XATTR


def is_too_large(xattrs: dict[str, bytes], body: bytes) -> bool:
    """Return whether a real server takes no document with these xattrs and this body."""
    system = system_xattrs(xattrs)
    system_bytes = len(mcbp.join_xattrs(system.items(), b"")) if system else 0
    user_bytes = len(mcbp.join_xattrs(xattrs.items(), body)) - system_bytes if xattrs else len(body)
    return system_bytes > MAX_SYSTEM_XATTR_BYTES or user_bytes > MAX_VALUE_BYTES


def system_xattrs(xattrs: dict[str, bytes]) -> dict[str, bytes]:
    """Return the xattrs that a deletion keeps: those of which the name starts with an underscore."""
    return {name: text for name, text in xattrs.items() if name.startswith("_")}
