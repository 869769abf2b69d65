"""The commands on whole documents, and what a bucket tells of its vbuckets. No I/O.

Source: couchbase/kv_engine docs/BinaryProtocol.md. A client that has selected the bucket may send all of these.
"""

import struct

from channelindex.feeds.base import JSON
from channelindex.mcbp import Frame, Op, Status
from devbucket import framing
from devbucket.items import DELETED, Item, is_too_large, join_value
from devbucket.keyspace import pack_leb128
from devbucket.replies import Malformed, Refused, Reply
from devbucket.session import Command, Session
from devbucket.vbucket import State, VBucket

GET_META = 0xA0
CAS_OF_LOCKED = 0xFFFFFFFFFFFFFFFF
"""What a read shows of a locked document: nobody else can use its CAS."""
NEVER_CREATE = 0xFFFFFFFF
"""Expiry of INCREMENT and DECREMENT that means: do not create the document."""

_SET_EXTRAS = struct.Struct(">II")  # flags, expiry
_COUNTER_EXTRAS = struct.Struct(">QQI")  # delta, initial value, expiry
_META = struct.Struct(">IIIQ")  # deleted, flags, expiry, rev seqno
_VB_SEQNO = struct.Struct(">HQ")
_OBSERVED = struct.Struct(">BHQQQ")  # format, vbucket, vbuuid, persisted seqno, current seqno

_OBSERVED_BEFORE = struct.Struct(">BHQQQQQ")  # and the vbuuid that was asked for, the last seqno of its history

_ACTIVE = frozenset({State.ACTIVE})
_NOT_DEAD = frozenset({State.ACTIVE, State.REPLICA, State.PENDING})
_COUNTER_LIMIT = 1 << 64


def find_for_change(session: Session, request: Frame) -> tuple[VBucket, Item | None]:
    """The active vbucket of a request and the live document of its key, after the request's CAS was checked."""
    vbucket, item = find_active(session, request)
    if request.cas and item is None:
        raise Refused(Status.KEY_ENOENT)
    if (lock := vbucket.locks.of(request.key)) is not None:
        if request.cas != lock.cas:
            raise Refused(Status.LOCKED)
    elif request.cas and item is not None and request.cas != item.cas:
        raise Refused(Status.KEY_EEXISTS)
    return vbucket, item


def find_active(session: Session, request: Frame) -> tuple[VBucket, Item | None]:
    """The active vbucket of a request and the live document of its key."""
    require_key(request)
    vbucket = session.find_vbucket(request.status, states=_ACTIVE)
    item = vbucket.find(request.key)
    return vbucket, None if item is None or item.deleted else item


def require_key(request: Frame) -> None:
    """Let only a request with a key pass; its length was checked."""
    if not request.key:
        raise Malformed


def _get(session: Session, request: Frame) -> Reply:
    vbucket, item = find_active(session, request)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    locked = vbucket.locks.of(request.key) is not None
    return document_reply(session, item, cas=CAS_OF_LOCKED if locked else item.cas)


def document_reply(session: Session, item: Item, *, cas: int) -> Reply:
    """A document's body, as this client can read it."""
    return Reply(item.body(), item.flags.to_bytes(4, "big"), cas=cas, datatype=item.datatype & session.json_datatype)


def _get_meta(session: Session, request: Frame) -> Reply:
    """A document's metadata, or its tombstone's. A client asks for the datatype with version 2."""
    require_key(request)
    item = session.find_vbucket(request.status, states=_ACTIVE).find(request.key)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    extras = _META.pack(item.deleted, item.flags, item.expiry, item.rev)
    if request.extras == b"\x02":
        extras += bytes([item.datatype])
    return Reply(extras=extras, cas=item.cas)


def _set(session: Session, request: Frame) -> Reply:
    vbucket, item = find_for_change(session, request)
    return _store(session, request, vbucket, item)


def _add(session: Session, request: Frame) -> Reply:
    vbucket, item = find_active(session, request)
    if item is not None:
        raise Refused(Status.KEY_EEXISTS)
    return _store(session, request, vbucket, item)


def _replace(session: Session, request: Frame) -> Reply:
    vbucket, item = find_for_change(session, request)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    return _store(session, request, vbucket, item)


def _store(session: Session, request: Frame, vbucket: VBucket, old: Item | None) -> Reply:
    """Store a request's value; the xattrs of a live document stay."""
    if len(request.extras) != _SET_EXTRAS.size or request.datatype & ~JSON:
        raise Malformed
    xattrs = old.xattrs() if old else {}
    if is_too_large(xattrs, request.value):
        raise Refused(Status.E2BIG)
    flags, expiry = _SET_EXTRAS.unpack(request.extras)
    value, datatype = join_value(xattrs, request.value)
    expiry = old.expiry if old and framing.keeps_expiry(request) else session.bucket.absolute_expiry(expiry)
    return session.mutated(vbucket, vbucket.write(request.key, value, datatype, flags=flags, expiry=expiry))


def _delete(session: Session, request: Frame) -> Reply:
    vbucket, item = find_for_change(session, request)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    return session.mutated(vbucket, vbucket.delete(request.key, fate=DELETED))


def _touch(session: Session, request: Frame) -> Reply:
    return Reply(cas=_touched(session, request).cas)


def _get_and_touch(session: Session, request: Frame) -> Reply:
    item = _touched(session, request)
    return document_reply(session, item, cas=item.cas)


def _touched(session: Session, request: Frame) -> Item:
    """The document after its expiry was set, which is a mutation."""
    if len(request.extras) != 4:
        raise Malformed
    vbucket, item = find_for_change(session, request)
    if item is None:
        raise Refused(Status.KEY_ENOENT)
    expiry = session.bucket.absolute_expiry(int.from_bytes(request.extras, "big"))
    touched = vbucket.write(request.key, item.value, item.datatype, flags=item.flags, expiry=expiry)
    session.bucket.note_expiry(vbucket.vb, item.key, expiry)
    return touched


def _append(session: Session, request: Frame) -> Reply:
    return _extend(session, request, before=b"", after=request.value)


def _prepend(session: Session, request: Frame) -> Reply:
    return _extend(session, request, before=request.value, after=b"")


def _extend(session: Session, request: Frame, *, before: bytes, after: bytes) -> Reply:
    vbucket, item = find_for_change(session, request)
    if item is None:
        raise Refused(Status.NOT_STORED)
    body = before + item.body() + after
    if is_too_large(item.xattrs(), body):
        raise Refused(Status.E2BIG)
    value, datatype = join_value(item.xattrs(), body)
    return session.mutated(vbucket, vbucket.write(request.key, value, datatype, flags=item.flags, expiry=item.expiry))


def _increment(session: Session, request: Frame) -> Reply:
    return _count(session, request, sign=1)


def _decrement(session: Session, request: Frame) -> Reply:
    return _count(session, request, sign=-1)


def _count(session: Session, request: Frame, *, sign: int) -> Reply:
    """Change a counter. Its value is raw, though it looks like JSON; it wraps upwards and stops at 0 downwards."""
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


def _flush(_session: Session, _request: Frame) -> Reply:
    raise Refused(Status.NOT_SUPPORTED)


def _stat(session: Session, request: Frame) -> list[Reply]:
    """A few numbers; only the general group is known. A reply without a key ends the list."""
    if request.key:
        raise Refused(Status.KEY_ENOENT)
    vbuckets = list(session.vbuckets)
    alive = sum(vbucket.state == State.ACTIVE for vbucket in vbuckets)
    seqnos = sum(vbucket.high_seqno for vbucket in vbuckets)
    numbers = {"ep_vb_total": len(vbuckets), "vb_active_num": alive, "vb_high_seqno_sum": seqnos}
    return [*(Reply(str(number).encode(), key=name.encode()) for name, number in numbers.items()), Reply()]


def _get_all_vb_seqnos(session: Session, request: Frame) -> Reply:
    """The high seqnos of the vbuckets in one state, or in all states but dead; of one collection, if it is named."""
    if len(request.extras) not in ((0, 4, 8) if session.knows_collections else (0, 4)):
        raise Malformed
    state = int.from_bytes(request.extras[:4], "big")
    collection = request.extras[4:]
    vbuckets = [
        vbucket for vbucket in session.vbuckets if (vbucket.state == state if state else vbucket.state in _NOT_DEAD)
    ]
    prefix = session.inner_key(pack_leb128(int.from_bytes(collection, "big")) + b"k")[:-1] if collection else b""
    return Reply(b"".join(_VB_SEQNO.pack(vbucket.vb, _high_seqno(vbucket, prefix)) for vbucket in vbuckets))


def _high_seqno(vbucket: VBucket, prefix: bytes) -> int:
    """The last seqno of a document of which the key begins with *prefix*; 0 if there is none."""
    if not prefix:
        return vbucket.high_seqno
    return max((item.seqno for item in vbucket.items_after(0) if item.key.startswith(prefix)), default=0)


def _observe_seqno(session: Session, request: Frame) -> Reply:
    """How far a vbucket is in memory and on disk. A client that asks by an older history is told how that ended."""
    if len(request.value) != 8:
        raise Malformed
    cluster = session.node.cluster
    if session.node.has_replica(request.status):
        vbucket = session.bucket.vbuckets[request.status]
        persisted = high = cluster.replica_seqno(vbucket)
    else:
        vbucket = session.find_vbucket(request.status, states=frozenset(State))
        persisted, high = cluster.persisted_seqno(vbucket), vbucket.high_seqno
    asked, now = int.from_bytes(request.value, "big"), vbucket.failover_log.vbuuid
    if asked == now:
        return Reply(_OBSERVED.pack(0, vbucket.vb, now, persisted, high))
    end = vbucket.failover_log.end_of(asked, high)
    if end is None:
        raise Refused(Status.KEY_ENOENT)
    return Reply(_OBSERVED_BEFORE.pack(1, vbucket.vb, now, persisted, high, asked, end))


COMMANDS: dict[int, Command] = {
    Op.GET: _get,
    GET_META: _get_meta,
    Op.SET: _set,
    Op.ADD: _add,
    Op.REPLACE: _replace,
    Op.DELETE: _delete,
    Op.TOUCH: _touch,
    Op.GET_AND_TOUCH: _get_and_touch,
    Op.APPEND: _append,
    Op.PREPEND: _prepend,
    Op.INCREMENT: _increment,
    Op.DECREMENT: _decrement,
    Op.FLUSH: _flush,
    Op.STAT: _stat,
    Op.GET_ALL_VB_SEQNOS: _get_all_vb_seqnos,
    Op.OBSERVE_SEQNO: _observe_seqno,
}
