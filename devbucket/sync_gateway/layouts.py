"""Places a document's `_sync` in the bucket: inline in its body, or in an extended attribute. No I/O.

Source: couchbase/sync_gateway 1.x (inline) and from 1.5 on (attributes); couchbase/kv_engine docs/SubDocument.md.
"""

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from channelindex.feeds.dcp import operations
from channelindex.feeds.dcp.exchange import Request
from channelindex.mcbp import Frame, Op
from devbucket.sync_gateway.revisions import Revision

_XATTR_PATH = 0x04
_EXPAND_MACROS = 0x10
_ADD = 0x02
_ACCESS_DELETED = 0x04
_CREATE_AS_DELETED = 0x08
_MACROS = ((b"_sync.cas", b'"${Mutation.CAS}"'), (b"_sync.value_crc32c", b'"${Mutation.value_crc32c}"'))
"""Filled in by the server, so that Sync Gateway can tell its own writes from others'."""


class StoredDocument(NamedTuple):
    """A document in the bucket: its `_sync`, its CAS, and whether it lives or is a tombstone (or nothing)."""

    sync: Mapping[str, Any] | None
    cas: int
    alive: bool


NOTHING = StoredDocument(None, 0, alive=False)


class Layout(Protocol):
    """Makes the requests that read and write documents. `operations.stored` parses the answer to a write."""

    def read(self, key: bytes) -> Request:
        """Ask for a document."""
        ...

    def found(self, answer: Frame) -> StoredDocument:
        """Return what the answer to `read` says.

        Raises:
            SourceUnavailable, ProtocolError: there is no sensible answer now.
        """
        ...

    def write(self, revision: Revision, sync: Mapping[str, Any], stored: StoredDocument) -> Request:
        """Write *revision* with its metadata in place of *stored*, and only if the document still is that version."""
        ...

    def written(self, revision: Revision, sync: Mapping[str, Any], cas: int) -> StoredDocument:
        """Return what the bucket has after a write that was given *cas*."""
        ...

    def rewrite(self, key: bytes, sync: Mapping[str, Any], answer: Frame) -> list[Request]:
        """Write *sync* alone over the living document that *answer* to `read` describes, each request after the other.

        Each is meant for the version that the one before made, the first for the one that was read.
        """
        ...


class InlineLayout:
    """`_sync` is a property of the body. A deleted document stays, with a body that says so."""

    def read(self, key: bytes) -> Request:
        """See `Layout.read`."""
        return operations.get(key)

    def found(self, answer: Frame) -> StoredDocument:
        """See `Layout.found`."""
        document = operations.document(answer)
        if document is None:
            return NOTHING
        return StoredDocument(_object((_object(document.body) or {}).get("_sync")), document.cas, alive=True)

    def write(self, revision: Revision, sync: Mapping[str, Any], stored: StoredDocument) -> Request:
        """See `Layout.write`."""
        deleted = {"_deleted": True} if revision.deleted else {}
        body = msgspec.json.encode({**revision.body, **deleted, "_sync": sync})
        request = operations.store(revision.id.encode(), body, cas=stored.cas)
        return request if stored.alive else request._replace(opcode=Op.ADD)

    def written(self, revision: Revision, sync: Mapping[str, Any], cas: int) -> StoredDocument:  # noqa: ARG002
        """See `Layout.written`."""
        return StoredDocument(sync, cas, alive=True)

    def rewrite(self, key: bytes, sync: Mapping[str, Any], answer: Frame) -> list[Request]:
        """See `Layout.rewrite`."""
        body = {**(_object(answer.value) or {}), "_sync": sync}
        return [operations.store(key, msgspec.json.encode(body))]


class XattrLayout:
    """`_sync` is an extended attribute. A deleted document is a tombstone that keeps it."""

    def read(self, key: bytes) -> Request:
        """See `Layout.read`."""
        return operations.lookup(key, "_sync")

    def found(self, answer: Frame) -> StoredDocument:
        """See `Layout.found`."""
        document = operations.looked_up(answer)
        if document is None:
            return NOTHING
        return StoredDocument(_object(document.xattr), document.cas, alive=document.body is not None)

    def write(self, revision: Revision, sync: Mapping[str, Any], stored: StoredDocument) -> Request:
        """See `Layout.write`. The CAS of a tombstone is not compared: servers let nobody change one under its CAS."""
        changes = self._sync_changes(sync)
        if not revision.deleted:
            changes += _change(Op.SET, 0, b"", msgspec.json.encode(revision.body))
        elif stored.alive:
            changes += _change(Op.DELETE, 0, b"", b"")
        return Request(
            Op.SUBDOC_MULTI_MUTATION,
            revision.id.encode(),
            _document_flags(revision, stored),
            changes,
            cas=stored.cas if stored.alive else 0,
        )

    def written(self, revision: Revision, sync: Mapping[str, Any], cas: int) -> StoredDocument:
        """See `Layout.written`."""
        return StoredDocument(sync, cas, alive=not revision.deleted)

    def rewrite(self, key: bytes, sync: Mapping[str, Any], answer: Frame) -> list[Request]:
        """See `Layout.rewrite`. `_mou` says that only metadata was written, from which version on.

        Sync Gateway writes both xattrs at once, which servers before 7.6 and the dev bucket refuse.
        """
        about = {"cas": "", "pCas": f"0x{answer.cas.to_bytes(8, 'little').hex()}"}
        noted = _change(Op.SUBDOC_DICT_UPSERT, _XATTR_PATH, b"_mou", msgspec.json.encode(about))
        noted += _change(Op.SUBDOC_DICT_UPSERT, _XATTR_PATH | _EXPAND_MACROS, b"_mou.cas", _MACROS[0][1])
        changes = self._sync_changes(sync)
        mutation = Op.SUBDOC_MULTI_MUTATION
        return [Request(mutation, key, b"", noted), Request(mutation, key, b"", changes)]

    def _sync_changes(self, sync: Mapping[str, Any]) -> bytes:
        changes = _change(Op.SUBDOC_DICT_UPSERT, _XATTR_PATH, b"_sync", msgspec.json.encode(sync))
        for path, macro in _MACROS:
            changes += _change(Op.SUBDOC_DICT_UPSERT, _XATTR_PATH | _EXPAND_MACROS, path, macro)
        return changes


def _document_flags(revision: Revision, stored: StoredDocument) -> bytes:
    if stored.alive:
        return b""
    if not revision.deleted:
        return bytes((_ADD,))
    if stored.cas:
        return bytes((_ACCESS_DELETED,))
    return bytes((_ADD | _ACCESS_DELETED | _CREATE_AS_DELETED,))


def _change(opcode: int, flags: int, path: bytes, value: bytes) -> bytes:
    assert len(path) < 1 << 16, "its length has 16 bits"
    return struct.pack(">BBHI", opcode, flags, len(path), len(value)) + path + value


def _object(value: Any) -> dict[str, Any] | None:
    """*value* if it is an object, or the JSON text of one; else None: a document of somebody else's."""
    if isinstance(value, bytes):
        try:
            value = msgspec.json.decode(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None
