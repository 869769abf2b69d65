"""The memcached binary protocol as Couchbase speaks it: numbers, the frame header, xattr sections. No I/O.

Shared by the DCP client, the KV client and the dev bucket. Source: couchbase/kv_engine docs/BinaryProtocol.md,
docs/dcp/documentation, docs/Document.md (xattrs).
"""

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple, TypedDict, Unpack

from channelindex.errors import ProtocolError

HEADER = struct.Struct(">BBHBBHII8s")
"""magic u8, opcode u8, key length u16, extras length u8, datatype u8, vbucket or status u16, body length u32,
opaque u32, CAS 8 bytes."""
HEADER_BYTES = 24
MAX_BODY_BYTES = 21 * 1024 * 1024 + 1024 * 1024
"""A 20 MB document, its xattrs and the head of a frame. A longer body is taken for garbage."""

REQUEST = 0x80
RESPONSE = 0x81
SERVER_REQUEST = 0x82
SERVER_RESPONSE = 0x83
FRAMED_REQUEST = 0x08
FRAMED_RESPONSE = 0x18
"""With framing extras (docs/BinaryProtocol.md, alternative encodings): of the key length's two bytes the first is
their length, and they stand before the extras."""

_LEB128_BYTES = 5
_PLAIN_MAGIC = {FRAMED_REQUEST: REQUEST, FRAMED_RESPONSE: RESPONSE}


class Op(IntEnum):
    """Opcodes that some part of the project sends or understands."""

    GET = 0x00
    SET = 0x01
    ADD = 0x02
    REPLACE = 0x03
    DELETE = 0x04
    INCREMENT = 0x05
    DECREMENT = 0x06
    QUIT = 0x07
    FLUSH = 0x08
    NOOP = 0x0A
    VERSION = 0x0B
    APPEND = 0x0E
    PREPEND = 0x0F
    STAT = 0x10
    TOUCH = 0x1C
    GET_AND_TOUCH = 0x1D
    HELLO = 0x1F
    SASL_LIST_MECHS = 0x20
    SASL_AUTH = 0x21
    SASL_STEP = 0x22
    GET_ALL_VB_SEQNOS = 0x48
    DCP_OPEN = 0x50
    DCP_ADD_STREAM = 0x51
    DCP_CLOSE_STREAM = 0x52
    DCP_STREAM_REQ = 0x53
    DCP_GET_FAILOVER_LOG = 0x54
    DCP_STREAM_END = 0x55
    DCP_SNAPSHOT_MARKER = 0x56
    DCP_MUTATION = 0x57
    DCP_DELETION = 0x58
    DCP_EXPIRATION = 0x59
    DCP_FLUSH = 0x5A
    DCP_SET_VBUCKET_STATE = 0x5B
    DCP_NOOP = 0x5C
    DCP_BUFFER_ACK = 0x5D
    DCP_CONTROL = 0x5E
    DCP_SYSTEM_EVENT = 0x5F
    DCP_PREPARE = 0x60
    DCP_SEQNO_ACK = 0x61
    DCP_COMMIT = 0x62
    DCP_ABORT = 0x63
    DCP_SEQNO_ADVANCED = 0x64
    DCP_OSO_SNAPSHOT = 0x65
    LIST_BUCKETS = 0x87
    SELECT_BUCKET = 0x89
    OBSERVE_SEQNO = 0x91
    GET_LOCKED = 0x94
    UNLOCK = 0x95
    SET_WITH_META = 0xA2
    DEL_WITH_META = 0xA8
    GET_CLUSTER_CONFIG = 0xB5
    COLLECTIONS_GET_MANIFEST = 0xBA
    COLLECTIONS_GET_ID = 0xBB
    SUBDOC_GET = 0xC5
    SUBDOC_EXISTS = 0xC6
    SUBDOC_DICT_ADD = 0xC7
    SUBDOC_DICT_UPSERT = 0xC8
    SUBDOC_DELETE = 0xC9
    SUBDOC_REPLACE = 0xCA
    SUBDOC_ARRAY_PUSH_LAST = 0xCB
    SUBDOC_ARRAY_PUSH_FIRST = 0xCC
    SUBDOC_ARRAY_INSERT = 0xCD
    SUBDOC_ARRAY_ADD_UNIQUE = 0xCE
    SUBDOC_COUNTER = 0xCF
    SUBDOC_MULTI_LOOKUP = 0xD0
    SUBDOC_MULTI_MUTATION = 0xD1
    SUBDOC_GET_COUNT = 0xD2
    GET_ERROR_MAP = 0xFE


class Status(IntEnum):
    """Response statuses."""

    SUCCESS = 0x00
    KEY_ENOENT = 0x01
    KEY_EEXISTS = 0x02
    E2BIG = 0x03
    EINVAL = 0x04
    NOT_STORED = 0x05
    DELTA_BADVAL = 0x06
    NOT_MY_VBUCKET = 0x07
    NO_BUCKET = 0x08
    LOCKED = 0x09
    AUTH_ERROR = 0x20
    AUTH_CONTINUE = 0x21
    ERANGE = 0x22
    ROLLBACK = 0x23
    EACCESS = 0x24
    UNKNOWN_COMMAND = 0x81
    ENOMEM = 0x82
    NOT_SUPPORTED = 0x83
    EINTERNAL = 0x84
    EBUSY = 0x85
    ETMPFAIL = 0x86
    XATTR_EINVAL = 0x87
    UNKNOWN_COLLECTION = 0x88
    NO_COLLECTIONS_MANIFEST = 0x89
    COLLECTIONS_MANIFEST_AHEAD = 0x8B
    UNKNOWN_SCOPE = 0x8C
    SUBDOC_PATH_ENOENT = 0xC0
    SUBDOC_PATH_MISMATCH = 0xC1
    SUBDOC_PATH_EINVAL = 0xC2
    SUBDOC_DOC_NOTJSON = 0xC6
    SUBDOC_PATH_EEXISTS = 0xC9
    SUBDOC_MULTI_PATH_FAILURE = 0xCC
    SUBDOC_SUCCESS_DELETED = 0xCD
    SUBDOC_MULTI_PATH_FAILURE_DELETED = 0xD3


class Feature(IntEnum):
    """Features that HELLO can negotiate."""

    TLS = 0x02
    TCP_NODELAY = 0x03
    MUTATION_SEQNO = 0x04
    TCP_DELAY = 0x05
    XATTR = 0x06
    XERROR = 0x07
    SELECT_BUCKET = 0x08
    SNAPPY = 0x0A
    JSON = 0x0B
    DUPLEX = 0x0C
    CLUSTERMAP_NOTIFICATION = 0x0D
    UNORDERED_EXECUTION = 0x0E
    ALT_REQUEST = 0x10
    SYNC_REPLICATION = 0x11
    COLLECTIONS = 0x12
    PRESERVE_TTL = 0x14


CLUSTERMAP_CHANGED = 0x01
"""The opcode of a SERVER_REQUEST whose value is a new cluster configuration."""


class _Parts(TypedDict, total=False):
    """The fields that requests and responses share."""

    opaque: int
    cas: int
    datatype: int
    extras: bytes
    key: bytes
    value: bytes


class Frame(NamedTuple):
    """One whole frame. `status` is meant for responses; in a request the same two bytes are the `vbucket`.

    `framing` is what a frame with framing extras has before its extras; its magic is that of the plain encoding.
    """

    magic: int
    opcode: int
    status: int
    datatype: int
    opaque: int
    cas: int
    extras: bytes
    key: bytes
    value: bytes
    framing: bytes = b""

    @property
    def vbucket(self) -> int:
        """The vbucket that a request is for."""
        return self.status


def pack_request(opcode: int, *, vbucket: int = 0, magic: int = REQUEST, **rest: Unpack[_Parts]) -> bytes:
    """Return the bytes of a request; *magic* may be `SERVER_REQUEST`."""
    return _pack(magic, opcode, vbucket, **rest)


def pack_response(opcode: int, *, status: int = 0, **rest: Unpack[_Parts]) -> bytes:
    """Return the bytes of a response."""
    return _pack(RESPONSE, opcode, status, **rest)


def _pack(
    magic: int,
    opcode: int,
    vbucket_or_status: int,
    *,
    opaque: int = 0,
    cas: int = 0,
    datatype: int = 0,
    extras: bytes = b"",
    key: bytes = b"",
    value: bytes = b"",
) -> bytes:
    size = len(extras) + len(key) + len(value)
    head = HEADER.pack(
        magic, opcode, len(key), len(extras), datatype, vbucket_or_status, size, opaque, cas.to_bytes(8, "big")
    )
    return head + extras + key + value


def take_frame(buffer: bytes | bytearray | memoryview, offset: int = 0) -> tuple[Frame, int] | None:
    """Cut the frame that starts at *offset*; return it and the offset behind it, None while it is not complete.

    Raises:
        ProtocolError: the bytes are no frame: unknown magic, or lengths that contradict each other.
    """
    if len(buffer) - offset < HEADER_BYTES:
        return None
    magic, opcode, key_size, extras_size, datatype, status, body_size, opaque, cas = HEADER.unpack_from(buffer, offset)
    framing_size = 0
    if magic in _PLAIN_MAGIC:
        magic, framing_size, key_size = _PLAIN_MAGIC[magic], key_size >> 8, key_size & 0xFF
    if not REQUEST <= magic <= SERVER_RESPONSE:
        raise ProtocolError(f"frame with unknown magic 0x{magic:02x}")
    if framing_size + key_size + extras_size > body_size or body_size > MAX_BODY_BYTES:
        raise ProtocolError(f"frame 0x{opcode:02x} with key {key_size}, extras {extras_size}, body {body_size} bytes")
    extras_start = offset + HEADER_BYTES + framing_size
    end = offset + HEADER_BYTES + body_size
    if len(buffer) < end:
        return None
    key_start = extras_start + extras_size
    value_start = key_start + key_size
    frame = Frame(
        magic,
        opcode,
        status,
        datatype,
        opaque,
        int.from_bytes(cas, "big"),
        bytes(buffer[extras_start:key_start]),
        bytes(buffer[key_start:value_start]),
        bytes(buffer[value_start:end]),
        bytes(buffer[offset + HEADER_BYTES : extras_start]),
    )
    return frame, end


def split_xattrs(value: bytes) -> tuple[dict[str, bytes], bytes]:
    """Split a value whose datatype says XATTR into xattrs (name -> JSON text) and body; an empty value has none.

    Raises:
        ProtocolError: the xattr section is longer than the value or not made of whole pairs.
    """
    if not value:
        return {}, value
    if len(value) < 4:
        raise ProtocolError(f"xattr section length needs 4 bytes, {len(value)} left")
    section_end = 4 + int.from_bytes(value[:4], "big")
    if section_end > len(value):
        raise ProtocolError(f"xattr section of {section_end - 4} bytes in a value of {len(value)}")
    return dict(_iter_xattrs(value, section_end)), value[section_end:]


def _iter_xattrs(value: bytes, section_end: int) -> Iterator[tuple[str, bytes]]:
    offset = 4
    while offset < section_end:
        start = offset + 4
        offset = start + int.from_bytes(value[offset:start], "big")
        name, separator, rest = value[start:offset].partition(b"\0")
        if offset > section_end or not separator or not rest.endswith(b"\0"):
            raise ProtocolError(f"xattr pair at byte {start - 4} of {section_end} is malformed")
        yield name.decode("utf-8", "replace"), rest[:-1]


def join_xattrs(xattrs: Iterable[tuple[str, bytes]], body: bytes) -> bytes:
    """Build a value with an xattr section: the inverse of `split_xattrs`."""
    xattrs = [*xattrs]
    assert not any("\0" in name for name, _ in xattrs), "a zero byte ends a name"
    pairs = b"".join(
        (len(name.encode()) + len(text) + 2).to_bytes(4, "big") + name.encode() + b"\0" + text + b"\0"
        for name, text in xattrs
    )
    return len(pairs).to_bytes(4, "big") + pairs + body


def pack_leb128(number: int) -> bytes:
    """Return *number* in unsigned LEB128, as it begins keys in collections: seven bits a byte, the lowest first."""
    assert number >= 0, "unsigned"
    packed = bytearray()
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    packed.append(number)
    return bytes(packed)


def split_leb128(key: bytes) -> tuple[int, bytes] | None:
    """Split *key* into the number of at most 32 bits that it begins with and the rest; None if it begins with none."""
    number = 0
    for i, byte in enumerate(key[:_LEB128_BYTES]):
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number, key[i + 1 :]
    return None
