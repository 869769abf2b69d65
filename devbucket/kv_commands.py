"""The commands on whole documents. No I/O.

Source: couchbase/kv_engine docs/BinaryProtocol.md. A client that has selected the bucket may send all of these.
"""

import struct

from channelindex.feeds.base import JSON, SNAPPY, XATTR
from channelindex.mcbp import Feature, Frame, Op, Status
from devbucket import framing
from devbucket.client_session import ClientSession, Command
from devbucket.items import DELETED, Item, compressed, is_too_large, join_value
from devbucket.replies import Malformed, Refused, Reply
from devbucket.vbucket import VBucket, VBucketState

GET_META = 0xA0
EVICT_KEY = 0x93
CAS_OF_LOCKED = 0xFFFFFFFFFFFFFFFF
"""The CAS that a read shows of a locked document: nobody else can use its own."""
NEVER_CREATE = 0xFFFFFFFF
"""Expiry of INCREMENT and DECREMENT that means: do not create the document."""

_SET_EXTRAS = struct.Struct(">II")  # flags, expiry
_COUNTER_EXTRAS = struct.Struct(">QQI")  # delta, initial value, expiry
_META = struct.Struct(">IIIQ")  # deleted, flags, expiry, rev seqno


_ACTIVE = frozenset({VBucketState.ACTIVE})
_COUNTER_LIMIT = 1 << 64


def find_for_change(session: ClientSession, request: Frame) -> tuple[VBucket, Item | None]:
    """Return the active vbucket of a request and the live document of its key, after the request's CAS was checked."""
    vbucket, item = find_active(session, request)
    if request.cas and item is None:
        raise Refused(Status.KEY_ENOENT)
    if (lock := vbucket.locks.of(request.key)) is not None:
        if request.cas != lock.cas:
            raise Refused(Status.LOCKED)
    elif request.cas and item is not None and request.cas != item.cas:
        raise Refused(Status.KEY_EEXISTS)
    return vbucket, item


def find_active(session: ClientSession, request: Frame) -> tuple[VBucket, Item | None]:
    """Return the active vbucket of a request and the live document of its key."""
    require_key(request)
    vbucket = session.find_vbucket(request.vbucket, states=_ACTIVE)
    item = vbucket.find(request.key)
    return vbucket, None if item is None or item.deleted else item


def require_key(request: Frame) -> None:
    """Let only a request with a key pass; its length was checked."""
    if not request.key:
        raise Malformed


def _get(session: ClientSession, request: Frame) -> Reply:
    vbucket, item = find_active(session, request)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    locked = vbucket.locks.of(request.key) is not None
    return document_reply(session, item, cas=CAS_OF_LOCKED if locked else item.cas)


def document_reply(session: ClientSession, item: Item, *, cas: int) -> Reply:
    """Return a document's body, as this client can read it."""
    body, datatype = item.body(), item.datatype & session.json_datatype
    if item.compressed and Feature.SNAPPY in session.features and not item.datatype & XATTR:
        body, datatype = compressed(body), datatype | SNAPPY
    return Reply(body, item.flags.to_bytes(4, "big"), cas=cas, datatype=datatype)


def _get_meta(session: ClientSession, request: Frame) -> Reply:
    """Return a document's metadata, or its tombstone's. A client asks for the datatype with version 2."""
    require_key(request)
    item = session.find_vbucket(request.vbucket, states=_ACTIVE).find(request.key)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    extras = _META.pack(item.deleted, item.flags, item.expiry, item.rev)
    if request.extras == b"\x02":
        extras += bytes([item.datatype])
    return Reply(extras=extras, cas=item.cas)


def _set(session: ClientSession, request: Frame) -> Reply:
    vbucket, item = find_for_change(session, request)
    return _store(session, request, vbucket, item)


def _add(session: ClientSession, request: Frame) -> Reply:
    vbucket, item = find_active(session, request)
    if item is not None:
        raise Refused(Status.KEY_EEXISTS)
    return _store(session, request, vbucket, item)


def _replace(session: ClientSession, request: Frame) -> Reply:
    vbucket, item = find_for_change(session, request)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    return _store(session, request, vbucket, item)


def _store(session: ClientSession, request: Frame, vbucket: VBucket, old: Item | None) -> Reply:
    """Store a request's value; the xattrs of a live document stay."""
    if len(request.extras) != _SET_EXTRAS.size or request.datatype & ~(JSON | SNAPPY):
        raise Malformed
    xattrs = old.xattrs() if old else {}
    if is_too_large(xattrs, request.value):
        raise Refused(Status.E2BIG)
    flags, expiry = _SET_EXTRAS.unpack(request.extras)
    value, datatype = join_value(xattrs, request.value)
    expiry = old.expiry if old and framing.keeps_expiry(request) else session.bucket.absolute_expiry(expiry)
    came_compressed = bool(request.datatype & SNAPPY) and not xattrs  # to add the xattrs, it was inflated
    item = vbucket.write(request.key, value, datatype, flags=flags, expiry=expiry, compressed=came_compressed)
    return session.mutated(vbucket, item)


def _delete(session: ClientSession, request: Frame) -> Reply:
    vbucket, item = find_for_change(session, request)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    return session.mutated(vbucket, vbucket.delete(request.key, fate=DELETED))


def _evict(session: ClientSession, request: Frame) -> Reply:
    """Let the value be on disk only. What is in memory as a checkpoint is streamed from there all the same."""
    _, item = find_active(session, request)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    session.node.cluster.persist()
    item.store(resident=False)
    return Reply(b"Ejected.")


def _touch(session: ClientSession, request: Frame) -> Reply:
    return Reply(cas=_touched(session, request).cas)


def _get_and_touch(session: ClientSession, request: Frame) -> Reply:
    item = _touched(session, request)
    return document_reply(session, item, cas=item.cas)


def _touched(session: ClientSession, request: Frame) -> Item:
    """Return the document after its expiry was set, which is a mutation."""
    if len(request.extras) != 4:
        raise Malformed
    vbucket, item = find_for_change(session, request)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    expiry = session.bucket.absolute_expiry(int.from_bytes(request.extras, "big"))
    touched = vbucket.write(
        request.key, item.value, item.datatype, flags=item.flags, expiry=expiry, compressed=item.compressed
    )
    session.bucket.note_expiry(vbucket.vb, item.key, expiry)
    return touched


def _append(session: ClientSession, request: Frame) -> Reply:
    return _extend(session, request, before=b"", after=request.value)


def _prepend(session: ClientSession, request: Frame) -> Reply:
    return _extend(session, request, before=request.value, after=b"")


def _extend(session: ClientSession, request: Frame, *, before: bytes, after: bytes) -> Reply:
    assert not (before and after), "one end grows"
    vbucket, item = find_for_change(session, request)
    if item is None:
        raise Refused(Status.NOT_STORED)
    body = before + item.body() + after
    if is_too_large(item.xattrs(), body):
        raise Refused(Status.E2BIG)
    value, datatype = join_value(item.xattrs(), body)
    return session.mutated(vbucket, vbucket.write(request.key, value, datatype, flags=item.flags, expiry=item.expiry))


def _increment(session: ClientSession, request: Frame) -> Reply:
    return _count(session, request, sign=1)


def _decrement(session: ClientSession, request: Frame) -> Reply:
    return _count(session, request, sign=-1)


def _count(session: ClientSession, request: Frame, *, sign: int) -> Reply:
    """Change a counter. Its value is raw, though it looks like JSON; it wraps upwards and stops at 0 downwards."""
    assert sign in {1, -1}
    if len(request.extras) != _COUNTER_EXTRAS.size:
        raise Malformed
    delta, number, expiry = _COUNTER_EXTRAS.unpack(request.extras)
    vbucket, item = find_for_change(session, request)
    if item is None and expiry == NEVER_CREATE:
        raise Refused(Status.KEY_ENOENT)
    if item is not None:
        number = max(0, _number_of(item) + sign * delta) % _COUNTER_LIMIT
        expiry = item.expiry
    else:
        expiry = session.bucket.absolute_expiry(expiry)
    value, datatype = join_value(item.xattrs() if item else {}, str(number).encode())
    flags = item.flags if item else 0
    counter = vbucket.write(request.key, value, datatype & ~JSON, flags=flags, expiry=expiry)
    return session.mutated(vbucket, counter, number.to_bytes(8, "big"))


def _number_of(item: Item) -> int:
    body = item.body()
    if not (body.isdigit() and len(body) <= 20 and int(body) < _COUNTER_LIMIT):
        raise Refused(Status.DELTA_BADVAL)
    return int(body)


COMMANDS: dict[int, Command] = {
    Op.GET: _get,
    GET_META: _get_meta,
    Op.SET: _set,
    Op.ADD: _add,
    Op.REPLACE: _replace,
    Op.DELETE: _delete,
    EVICT_KEY: _evict,
    Op.TOUCH: _touch,
    Op.GET_AND_TOUCH: _get_and_touch,
    Op.APPEND: _append,
    Op.PREPEND: _prepend,
    Op.INCREMENT: _increment,
    Op.DECREMENT: _decrement,
}
