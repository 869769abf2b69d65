"""The sub-document commands: several reads, or several changes, of one document and its xattrs at once. No I/O.

Source: couchbase/kv_engine docs/SubDocument.md. Changes are all or nothing. Changes of the body are made before those
of xattrs, so that a macro can take the checksum of the new body.
"""

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any

import google_crc32c
import orjson

from channelindex.feeds.base import JSON, XATTR
from channelindex.mcbp import Frame, Op, Status
from devbucket import framing, jsonpath
from devbucket.client_session import ClientSession, Command
from devbucket.items import Item, is_too_large, join_value
from devbucket.jsonpath import PathError
from devbucket.kv_commands import find_for_change, require_key
from devbucket.replies import Malformed, Refused, Reply
from devbucket.subdoc_edit import INVALID_COMBO, Macros, PathFlag, Spec, SubdocEdit
from devbucket.vbucket import VBucket, VBucketState

SEVERAL_XATTRS = 0xCF

MAX_PATHS = 16
DOCUMENT = "$document"

_LOOKUP_HEAD = struct.Struct(">BBH")  # opcode, flags, path length
_CHANGE_HEAD = struct.Struct(">BBHI")  # opcode, flags, path length, value length
_LOOKUP_RESULT = struct.Struct(">HI")  # status, value length
_ANSWER = struct.Struct(">BHI")  # index of the path, status, value length
_FAILURE = struct.Struct(">BH")  # index of the path, status


class DocFlag(IntEnum):
    """Flags of the whole command."""

    MAKE_DOCUMENT = 0x01
    ADD = 0x02
    ACCESS_DELETED = 0x04
    CREATE_AS_DELETED = 0x08


def _multi_lookup(session: ClientSession, request: Frame) -> Reply:
    doc_flags = _doc_flags(request.extras, allowed_lengths=(0, 1))
    specs = _specs(request.value, with_values=False)
    require_key(request)
    vbucket = session.find_vbucket(request.vbucket, states=frozenset({VBucketState.ACTIVE}))
    item = vbucket.find(request.key)
    if item is None or (item.deleted and not doc_flags & DocFlag.ACCESS_DELETED):
        raise Refused(Status.KEY_ENOENT)
    results = [_lookup(item, spec) for spec in specs]
    value = b"".join(_LOOKUP_RESULT.pack(status, len(text)) + text for status, text in results)
    failed = any(status != Status.SUCCESS for status, _ in results)
    return Reply(value, cas=item.cas, status=_overall(failed=failed, deleted=item.deleted))


def _lookup(item: Item, spec: Spec) -> tuple[int, bytes]:
    """Return the status and the text of one path."""
    try:
        text = _read(item, spec)
    except PathError as error:
        return error.status, b""
    return Status.SUCCESS, b"" if spec.opcode == Op.SUBDOC_EXISTS else text


def _read(item: Item, spec: Spec) -> bytes:
    if spec.opcode == Op.GET and not spec.path:
        return item.body()
    if spec.opcode not in (Op.SUBDOC_GET, Op.SUBDOC_EXISTS, Op.SUBDOC_GET_COUNT):
        raise PathError(INVALID_COMBO)
    root, steps = _root_and_steps(item, spec)
    found = jsonpath.count(root, steps) if spec.opcode == Op.SUBDOC_GET_COUNT else jsonpath.get(root, steps)
    return orjson.dumps(found)


def _root_and_steps(item: Item, spec: Spec) -> tuple[Any, Sequence[jsonpath.Step]]:
    """Return the parsed body or xattr that a path leads into, and the steps from there."""
    if not spec.flags & PathFlag.XATTR:
        return jsonpath.parse(item.body()), jsonpath.split_path(spec.path) if spec.path else ()
    name, *rest = jsonpath.split_path(spec.path)
    xattrs = {DOCUMENT: _about(item)} if name == DOCUMENT else item.xattrs()
    if name not in xattrs:
        raise PathError(Status.SUBDOC_PATH_ENOENT)
    return jsonpath.parse(xattrs[str(name)]), rest


def _about(item: Item) -> bytes:
    """Return the virtual xattr `$document`: a document's metadata."""
    body = item.body()
    about = {
        "CAS": f"0x{item.cas:016x}",
        "seqno": f"0x{item.seqno:016x}",
        "revid": str(item.rev),
        "exptime": item.expiry,
        "flags": item.flags,
        "deleted": item.deleted,
        "datatype": [name for bit, name in ((JSON, "json"), (XATTR, "xattr")) if item.datatype & bit] or ["raw"],
        "value_bytes": len(body),
        "value_crc32c": f"0x{google_crc32c.value(body):08x}",
    }
    return orjson.dumps(about)


def _multi_mutation(session: ClientSession, request: Frame) -> Reply:
    doc_flags = _doc_flags(request.extras, allowed_lengths=(0, 1, 4, 5))
    specs = _specs(request.value, with_values=True)
    if len({spec.path.partition(".")[0] for spec in specs if spec.flags & PathFlag.XATTR}) > 1:
        raise Refused(SEVERAL_XATTRS)
    vbucket, item = _document_to_change(session, request, doc_flags)
    edit = _edit_of(item, doc_flags)
    was_deleted = not edit.alive
    macros = Macros(vbucket.next_cas(), vbucket.high_seqno + 1)
    try:
        answers = _apply_all(edit, specs, macros, doc_flags)
    except _SpecFailed as failed:
        status = _overall(failed=True, deleted=was_deleted)
        raise Refused(status, _FAILURE.pack(failed.index, failed.status)) from failed
    if is_too_large(edit.xattrs, edit.body):
        raise Refused(Status.E2BIG)
    expiry = _new_expiry(session, request, item)
    changed = _store(vbucket, request.key, edit, item, macros.cas, expiry)
    value = b"".join(_ANSWER.pack(index, Status.SUCCESS, len(text)) + text for index, text in answers if text)
    status = _overall(failed=False, deleted=was_deleted and not edit.alive)
    return session.mutated(vbucket, changed, value, status=status)


class _SpecFailed(Exception):
    def __init__(self, index: int, status: int) -> None:
        super().__init__(f"path {index}: status 0x{status:02x}")
        self.index = index
        self.status = status


def _apply_all(edit: SubdocEdit, specs: list[Spec], macros: Macros, doc_flags: int) -> Iterable[tuple[int, bytes]]:
    """Carry out all paths, those of the body first; what they answer, by their index in the command."""
    make_parents = bool(doc_flags & (DocFlag.MAKE_DOCUMENT | DocFlag.ADD))
    answers: dict[int, bytes] = {}
    for index in sorted(range(len(specs)), key=lambda index: specs[index].flags & PathFlag.XATTR):
        try:
            answers[index] = edit.apply(specs[index], macros, make_parents=make_parents)
        except PathError as error:
            raise _SpecFailed(index, error.status) from error
    return sorted(answers.items())


def _document_to_change(session: ClientSession, request: Frame, doc_flags: int) -> tuple[VBucket, Item | None]:
    """Return the vbucket and the document, or its tombstone if the flags give access; None if it is to be made."""
    vbucket, item = find_for_change(session, request)
    if item is not None and doc_flags & DocFlag.ADD:
        raise Refused(Status.KEY_EEXISTS)
    if item is None and doc_flags & DocFlag.ACCESS_DELETED:
        item = vbucket.find(request.key)
    if item is None and not doc_flags & (DocFlag.MAKE_DOCUMENT | DocFlag.ADD):
        raise Refused(Status.KEY_ENOENT)
    return vbucket, item


def _edit_of(item: Item | None, doc_flags: int) -> SubdocEdit:
    if item is None:
        deleted = bool(doc_flags & DocFlag.CREATE_AS_DELETED)
        return SubdocEdit({}, b"" if deleted else b"{}", alive=not deleted)
    return SubdocEdit(item.xattrs(), item.body(), alive=not item.deleted)


def _store(vbucket: VBucket, key: bytes, edit: SubdocEdit, old: Item | None, cas: int, expiry: int) -> Item:
    if not edit.alive:
        return vbucket.delete(key, cas=cas, xattrs=edit.xattrs)
    value, datatype = join_value(edit.xattrs, edit.body)
    return vbucket.write(key, value, datatype, cas=cas, flags=old.flags if old else 0, expiry=expiry)


def _new_expiry(session: ClientSession, request: Frame, item: Item | None) -> int:
    """Return the expiry that the client sent, else the document's own."""
    if len(request.extras) >= 4 and not (item and framing.keeps_expiry(request)):
        return session.bucket.absolute_expiry(int.from_bytes(request.extras[:4], "big"))
    return item.expiry if item else 0


def _doc_flags(extras: bytes, *, allowed_lengths: tuple[int, ...]) -> int:
    """Return the document flags: the odd byte at the end of the extras, if there is one."""
    if len(extras) not in allowed_lengths:
        raise Malformed
    flags = extras[-1] if len(extras) % 4 else 0
    if flags & DocFlag.MAKE_DOCUMENT and flags & DocFlag.ADD:
        raise Malformed
    return flags


def _specs(value: bytes, *, with_values: bool) -> list[Spec]:
    """Return the paths of a command."""
    head = _CHANGE_HEAD if with_values else _LOOKUP_HEAD
    specs: list[Spec] = []
    at = 0
    while at < len(value):
        if len(value) - at < head.size:
            raise Malformed
        opcode, flags, path_bytes, *sizes = head.unpack_from(value, at)
        path_at = at + head.size
        value_at = path_at + path_bytes
        at = value_at + sum(sizes)
        specs.append(Spec(opcode, flags, value[path_at:value_at].decode(errors="replace"), value[value_at:at]))
    if at != len(value) or not 1 <= len(specs) <= MAX_PATHS:
        raise Malformed
    return specs


def _overall(*, failed: bool, deleted: bool) -> int:
    if failed:
        return Status.SUBDOC_MULTI_PATH_FAILURE_DELETED if deleted else Status.SUBDOC_MULTI_PATH_FAILURE
    return Status.SUBDOC_SUCCESS_DELETED if deleted else Status.SUCCESS


COMMANDS: dict[int, Command] = {
    Op.SUBDOC_MULTI_LOOKUP: _multi_lookup,
    Op.SUBDOC_MULTI_MUTATION: _multi_mutation,
}
