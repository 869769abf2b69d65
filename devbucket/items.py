"""One version of one document, and its DCP message. No I/O.

The message is kept in pieces around the opaque, the only part that differs between streams, so that streaming is a
join: `head` + opaque + `middle` + `payload`. In the usual feed modes the payload *is* the document's value, not a copy.
"""

import re
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
FROM_DISK = 0x100000  # of one snapshot: what is not in memory is read as it lies on disk

_HEAD = struct.Struct(">BBHBBHI")  # the frame header up to the opaque
_MUTATION = struct.Struct(">QQQIIIHB")  # CAS, by-seqno, rev seqno, flags, expiry, lock time, nmeta, nru
_DELETION = struct.Struct(">QQQH")  # CAS, by-seqno, rev seqno, nmeta
_DELETION_V2 = struct.Struct(">QQQIB")  # CAS, by-seqno, rev seqno, delete time, unused
_EXPIRATION = struct.Struct(">QQQI")  # CAS, by-seqno, rev seqno, delete time
_EVENT = struct.Struct(">QIB")  # by-seqno, kind, version of the format
_CAS_BYTES = 8
_ESCAPED = re.compile(rb"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKET = re.compile(rb'[{}\[\]"]')
_PARSER_DEPTH = 1024  # levels that orjson takes
_NRU = 2  # what a real server sends for a document that nobody read
_NRU_EVICTED = 3

MAX_VALUE_BYTES = 20 * 1024 * 1024
"""Of a body and the xattrs of users."""
MAX_SYSTEM_XATTR_BYTES = 1024 * 1024
"""Of the xattrs of which the name starts with an underscore: they come on top."""

ALIVE = 0
DELETED = 1
EXPIRED = 2
SYSTEM_EVENT = 3  # a collection or scope begins: its value is what is sent


class Item:
    """One version of a document. Immutable but for `superseded_by`, where and how it is stored, the cached message.

    `value` is the xattr section, if the datatype says so, and the body, never compressed, though `compressed` says that
    memory holds it so, as disk always does. `resident`: memory holds the value too. `changed_at` is Unix seconds.
    """

    __slots__ = (
        "cas",
        "changed_at",
        "compressed",
        "datatype",
        "expiry",
        "fate",
        "flags",
        "head",
        "key",
        "middle",
        "mode",
        "payload",
        "resident",
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
        compressed: bool = False,
    ) -> None:
        assert seqno > 0, "0 is before the first"
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
        self.compressed = compressed
        self.resident = True
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

    def store(self, *, compressed: bool | None = None, resident: bool | None = None) -> None:
        """Let memory hold the value in another form, or no longer, or again."""
        self.compressed = self.compressed if compressed is None else compressed
        self.resident = self.resident if resident is None else resident
        self.mode = -1

    def encode_for(self, mode: int) -> None:
        """Fill `head`, `middle`, `payload` and `size` for a stream of that feed mode."""
        if self.fate == SYSTEM_EVENT:
            self._encode_event(mode)
            return
        opcode, extras = self._opcode_and_extras(mode)
        datatype, self.payload = self._datatype_and_payload(mode)
        key = self.key[1:] if mode & BARE_KEYS else self.key
        self._put_together(mode, opcode, datatype, extras, key)

    def _encode_event(self, mode: int) -> None:
        assert self.fate == SYSTEM_EVENT
        kind, _, name = event_of(self.key)
        self.payload = self.value
        extras = bytes(_CAS_BYTES) + _EVENT.pack(self.seqno, kind, 0)
        self._put_together(mode, Op.DCP_SYSTEM_EVENT, 0, extras, name)

    def _put_together(self, mode: int, opcode: int, datatype: int, extras: bytes, key: bytes) -> None:
        assert mode >= 0, "-1 is that of an item that was not encoded"
        extras_bytes = len(extras) - _CAS_BYTES
        assert extras_bytes >= 0, "the CAS is before the extras"
        body_bytes = extras_bytes + len(key) + len(self.payload)
        self.head = _HEAD.pack(mcbp.REQUEST, opcode, len(key), extras_bytes, datatype, self.vb, body_bytes)
        self.middle = extras + key
        self.size = mcbp.HEADER_BYTES + body_bytes
        self.mode = mode

    def _opcode_and_extras(self, mode: int) -> tuple[int, bytes]:
        """Return the opcode, and the extras preceded by the CAS, which lies before them in a frame."""
        if not self.deleted:
            nru = _NRU if self.resident else _NRU_EVICTED
            extras = _MUTATION.pack(self.cas, self.seqno, self.rev, self.flags, self.expiry, 0, 0, nru)
            return Op.DCP_MUTATION, extras
        if not mode & DELETE_TIMES:
            return Op.DCP_DELETION, _DELETION.pack(self.cas, self.seqno, self.rev, 0)
        if self.fate == EXPIRED and mode & EXPIRY_OPCODE:
            return Op.DCP_EXPIRATION, _EXPIRATION.pack(self.cas, self.seqno, self.rev, self.changed_at)
        return Op.DCP_DELETION, _DELETION_V2.pack(self.cas, self.seqno, self.rev, self.changed_at, 0)

    def _datatype_and_payload(self, mode: int) -> tuple[int, bytes]:
        """Return what a stream of *mode* sends of the value. Without its body, a document's datatype may lie."""
        comes_compressed = self._comes_compressed(mode)
        whole = not mode & (NO_VALUE | NO_VALUE_KEEP_DATATYPE)
        if not whole:
            datatype, payload = self._without_body(mode, comes_compressed=comes_compressed)
        elif mode & INCLUDE_XATTRS or not self.datatype & XATTR:
            datatype, payload = self.datatype, self.value
        else:  # the value was inflated to cut the xattrs off
            datatype, payload, comes_compressed = self.datatype & ~XATTR, self.body(), False
        if not payload or not mode & TAKES_SNAPPY:
            return datatype, payload
        if mode & COMPRESS:  # what gets longer by it is compressed all the same if it came so
            packed = compressed(payload)
            worthwhile = self.deleted or comes_compressed or len(packed) < len(payload)
            return (datatype | SNAPPY, packed) if worthwhile else (datatype, payload)
        return (datatype | SNAPPY, compressed(payload)) if whole and comes_compressed else (datatype, payload)

    def _comes_compressed(self, mode: int) -> bool:
        """True if the stream gets a compressed value to send.

        Disk holds all values compressed and gives them so to a client that takes Snappy; tombstones are only there.
        """
        on_disk = bool(mode & FROM_DISK) and (self.deleted or not self.resident)
        return bool(self.value) and (self.compressed or (on_disk and bool(mode & TAKES_SNAPPY)))

    def _without_body(self, mode: int, *, comes_compressed: bool) -> tuple[int, bytes]:
        """Return datatype and xattr section. Of a compressed value, which has to be inflated for it, it says Snappy.

        Recorded of a server of 6.0; couchbase/kv_engine engines/ep/src/item.cc does so up to master (read).
        """
        kept = self.datatype | (SNAPPY if comes_compressed else 0)
        if not mode & INCLUDE_XATTRS:
            return (0 if self.deleted else self.datatype | (SNAPPY if self.compressed else 0)), b""
        payload = mcbp.join_xattrs(self.xattrs().items(), b"") if self.datatype & XATTR else b""
        return (kept if mode & NO_VALUE_KEEP_DATATYPE else self.datatype & XATTR), payload


def compressed(value: bytes) -> bytes:
    """Return *value* in Snappy's raw format."""
    return bytes(cramjam.snappy.compress_raw(value))


def is_compressible(value: bytes) -> bool:
    """Tell whether *value* gets shorter: else no server holds it compressed."""
    return len(compressed(value)) < len(value)


def decompressed(value: bytes, most_bytes: int) -> bytes | None:
    """Return the value of which this is the compressed form; None if it is none, or longer than *most_bytes*."""
    assert most_bytes >= 0
    try:
        if cramjam.snappy.decompress_raw_len(value) > most_bytes:
            return None
        return bytes(cramjam.snappy.decompress_raw(value))
    except cramjam.DecompressionError:
        return None


def datatype_of(body: bytes) -> int:
    """Return the JSON bit, set by looking at the body as a real server does: a number is JSON, an empty body is not.

    A server looks at syntax alone: it takes unpaired surrogates, and any nesting, for JSON. Read in kv_engine,
    utilities/JSON_checker.c at 4688e0f43 (`checkUTF8JSON`: levels up to half the size, four hexadecimal digits behind
    each backslash and u, UTF-8). Since c8e1a47d5 the checker is in another repository, which was not read;
    json/syntax_validator.cc of master still calls it.
    """
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return JSON if _is_json_to_a_server(body) else 0
    return JSON


def _is_json_to_a_server(body: bytes) -> bool:
    """Look again at what our parser refuses. Of what nests deeper than it goes, quotes and brackets have to fit."""
    try:
        body.decode()
        orjson.loads(_ESCAPED.sub(_harmless, body))
    except UnicodeDecodeError:
        return False
    except orjson.JSONDecodeError:
        return _depth(_STRING.sub(b"", body)) > _PARSER_DEPTH
    return True


def _depth(text: bytes) -> int:
    """Return how deep the brackets of *text* nest; 0 if they do not fit, or a quote is left open."""
    closing, deepest = bytearray(), 0
    for token in _BRACKET.findall(text):
        if token in (b"{", b"["):
            closing += b"}" if token == b"{" else b"]"
            deepest = max(deepest, len(closing))
        elif not closing or closing.pop() != token[0]:
            return 0
    return 0 if closing else deepest


def _harmless(escape: re.Match[bytes]) -> bytes:
    return rb"\u0020" if len(escape[0]) == len(rb"\ud800") else escape[0]


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
