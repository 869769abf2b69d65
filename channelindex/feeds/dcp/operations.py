"""Makes KV requests and parses their responses. No I/O; `kv.KvClient` sends them.

Source: couchbase/kv_engine docs/BinaryProtocol.md and docs/SubDocument.md.
"""

import struct
from typing import NamedTuple

from channelindex.errors import ProtocolError
from channelindex.feeds.dcp.exchange import Request, refusal
from channelindex.mcbp import Frame, Op, Status

_ACTIVE = 1
"""The vbucket state that GET_ALL_VB_SEQNOS is restricted to; it would count replicas too."""
_XATTR_PATH = 0x04
_MAKE_PARENTS = 0x01
_MAKE_DOCUMENT = 0x01
_ACCESS_DELETED = 0x04
_NEVER_CREATE = 0xFFFFFFFF
"""The expiry with which INCREMENT refuses to create a counter."""


class Document(NamedTuple):
    """A document as it is stored. `body` is None for one that is deleted and lives on for its xattrs."""

    body: bytes | None
    cas: int
    xattr: bytes | None = None


def active_seqnos(collection: int | None = None) -> Request:
    """Ask for the high seqnos of the node's active vbuckets, or of one *collection* in them."""
    extras = struct.pack(">I", _ACTIVE) if collection is None else struct.pack(">II", _ACTIVE, collection)
    return Request(Op.GET_ALL_VB_SEQNOS, extras=extras, vb=0)


def get(key: bytes) -> Request:
    """Read a document's body."""
    return Request(Op.GET, key)


def store(key: bytes, body: bytes, *, cas: int = 0, flags: int = 0, expiry: int = 0) -> Request:
    """Write a document whole, and drop its user xattrs. With *cas*, only if it is still that version."""
    return Request(Op.SET, key, struct.pack(">II", flags, expiry), body, cas=cas)


def delete(key: bytes, *, cas: int = 0) -> Request:
    """Delete a document; its system xattrs, whose names begin with `_`, stay."""
    return Request(Op.DELETE, key, cas=cas)


def increment(key: bytes, delta: int = 1, initial: int | None = None) -> Request:
    """Add *delta* to a counter, which is created as *initial* if that is given."""
    assert delta >= 0, "DECREMENT is another command"
    expiry = _NEVER_CREATE if initial is None else 0
    return Request(Op.INCREMENT, key, struct.pack(">QQI", delta, initial or 0, expiry))


def lookup(key: bytes, xattr: str) -> Request:
    """Read a document's body and one of its xattrs, also where it is deleted."""
    path = xattr.encode()
    value = struct.pack(">BBH", Op.SUBDOC_GET, _XATTR_PATH, len(path)) + path + struct.pack(">BBH", Op.GET, 0, 0)
    return Request(Op.SUBDOC_MULTI_LOOKUP, key, bytes((_ACCESS_DELETED,)), value)


def store_with_xattr(key: bytes, xattr: str, text: bytes, body: bytes, *, cas: int = 0) -> Request:
    """Write a document's body and one of its xattrs, whose JSON is *text*, as one change."""
    value = _upsert(xattr, text) + struct.pack(">BBHI", Op.SET, 0, 0, len(body)) + body
    return Request(Op.SUBDOC_MULTI_MUTATION, key, bytes((_MAKE_DOCUMENT,)), value, cas=cas)


def delete_with_xattr(key: bytes, xattr: str, text: bytes, *, cas: int = 0) -> Request:
    """Delete a document's body and write one of its system xattrs, as one change: a tombstone of Sync Gateway."""
    value = _upsert(xattr, text) + struct.pack(">BBHI", Op.DELETE, 0, 0, 0)
    return Request(Op.SUBDOC_MULTI_MUTATION, key, b"", value, cas=cas)


def _upsert(xattr: str, text: bytes) -> bytes:
    path = xattr.encode()
    head = struct.pack(">BBHI", Op.SUBDOC_DICT_UPSERT, _XATTR_PATH | _MAKE_PARENTS, len(path), len(text))
    return head + path + text


def document(answer: Frame) -> Document | None:
    """Parse the answer to `get`; None for no document.

    Raises:
        SourceUnavailable: there is no answer now.
    """
    if answer.status == Status.KEY_ENOENT:
        return None
    _check(answer)
    return Document(answer.value, answer.cas)


_LOOKED_UP = frozenset(
    (
        Status.SUCCESS,
        Status.SUBDOC_MULTI_PATH_FAILURE,
        Status.SUBDOC_SUCCESS_DELETED,
        Status.SUBDOC_MULTI_PATH_FAILURE_DELETED,
    )
)
_DELETED = frozenset((Status.SUBDOC_SUCCESS_DELETED, Status.SUBDOC_MULTI_PATH_FAILURE_DELETED))


def looked_up(answer: Frame) -> Document | None:
    """Parse the answer to `lookup`; None for no document, not even a deleted one.

    Raises:
        SourceUnavailable: there is no answer now.
        ProtocolError: the answer is malformed.
    """
    if answer.status == Status.KEY_ENOENT:
        return None
    if answer.status not in _LOOKED_UP:
        raise refusal(answer)
    xattr, end = _looked_up_path(answer.value, 0)
    body, end = _looked_up_path(answer.value, end)
    return Document(None if answer.status in _DELETED else body, answer.cas, xattr)


def _looked_up_path(value: bytes, offset: int) -> tuple[bytes | None, int]:
    start = offset + 6
    if len(value) < start:
        raise ProtocolError(f"lookup result of {len(value)} bytes, {start} needed")
    status, size = struct.unpack_from(">HI", value, offset)
    if len(value) < start + size:
        raise ProtocolError(f"lookup result of {len(value)} bytes, {start + size} needed")
    return (value[start : start + size] if status == Status.SUCCESS else None), start + size


def stored(answer: Frame) -> int | None:
    """The CAS of what a write stored; None if the document is not (or no longer) the version that the write was for.

    Raises:
        SourceUnavailable: nothing was written.
    """
    if answer.status in (Status.KEY_EEXISTS, Status.KEY_ENOENT, Status.NOT_STORED):
        return None
    if answer.status != Status.SUBDOC_SUCCESS_DELETED:
        _check(answer)
    return answer.cas


def counted(answer: Frame) -> int | None:
    """The counter after an `increment`; None if there is none.

    Raises:
        SourceUnavailable: nothing was counted.
    """
    if answer.status == Status.KEY_ENOENT:
        return None
    _check(answer)
    return int.from_bytes(answer.value, "big")


def seqnos(answer: Frame) -> dict[int, int]:
    """The seqnos that `active_seqnos` asked for, by vbucket.

    Raises:
        SourceUnavailable: there is no answer now.
        ProtocolError: the answer is malformed.
    """
    _check(answer)
    if len(answer.value) % 10:
        raise ProtocolError(f"list of seqnos of {len(answer.value)} bytes")
    return dict(struct.iter_unpack(">HQ", answer.value))


def _check(answer: Frame) -> None:
    if answer.status != Status.SUCCESS:
        raise refusal(answer)
