"""Answers questions about a bucket: its vbuckets, its collections. No I/O.

Source: couchbase/kv_engine docs/BinaryProtocol.md and docs/Collections.md.
"""

import struct

from channelindex.mcbp import Frame, Op, Status, pack_leb128
from devbucket.client_session import ClientSession, Command
from devbucket.manifest import CollectionManifest
from devbucket.replies import Malformed, Refused, Reply
from devbucket.vbucket import VBucket, VBucketState

_VB_SEQNO = struct.Struct(">HQ")
_OBSERVED = struct.Struct(">BHQQQ")  # format, vbucket, vbuuid, persisted seqno, current seqno
_OBSERVED_BEFORE = struct.Struct(">BHQQQQQ")  # and the vbuuid that was asked for, the last seqno of its history
_COLLECTION_ID = struct.Struct(">QI")  # manifest, collection


_NOT_DEAD = frozenset({VBucketState.ACTIVE, VBucketState.REPLICA, VBucketState.PENDING})


def _flush(_session: ClientSession, _request: Frame) -> Reply:
    raise Refused(Status.NOT_SUPPORTED)


def _stat(session: ClientSession, request: Frame) -> list[Reply]:
    """Tell a few numbers; only the general group is known. A reply without a key ends the list."""
    if request.key:
        raise Refused(Status.KEY_ENOENT)
    vbuckets = list(session.vbuckets)
    alive = sum(vbucket.state == VBucketState.ACTIVE for vbucket in vbuckets)
    seqnos = sum(vbucket.high_seqno for vbucket in vbuckets)
    numbers = {"ep_vb_total": len(vbuckets), "vb_active_num": alive, "vb_high_seqno_sum": seqnos}
    return [*(Reply(str(number).encode(), key=name.encode()) for name, number in numbers.items()), Reply()]


def _get_all_vb_seqnos(session: ClientSession, request: Frame) -> Reply:
    """Tell the high seqnos of the vbuckets in one state, or in all but dead; of one collection, if it is named."""
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
    """Return the last seqno of a document of which the key begins with *prefix*; 0 if there is none."""
    if not prefix:
        return vbucket.high_seqno
    return max((item.seqno for item in vbucket.items_after(0) if item.key.startswith(prefix)), default=0)


def _observe_seqno(session: ClientSession, request: Frame) -> Reply:
    """Tell how far a vbucket is in memory and on disk; to who asks by an older history, how that ended."""
    if len(request.value) != 8:
        raise Malformed
    cluster = session.node.cluster
    if session.node.has_replica(request.vbucket):
        vbucket = session.bucket.vbuckets[request.vbucket]
        persisted = high = cluster.replica_seqno(vbucket)
    else:
        vbucket = session.find_vbucket(request.vbucket, states=frozenset(VBucketState))
        persisted, high = cluster.persisted_seqno(vbucket), vbucket.high_seqno
    asked, now = int.from_bytes(request.value, "big"), vbucket.failover_log.vbuuid
    if asked == now:
        return Reply(_OBSERVED.pack(0, vbucket.vb, now, persisted, high))
    end = vbucket.failover_log.end_of(asked, high)
    if end is None:
        raise Refused(Status.KEY_ENOENT)
    return Reply(_OBSERVED_BEFORE.pack(1, vbucket.vb, now, persisted, high, asked, end))


def _get_manifest(session: ClientSession, _request: Frame) -> Reply:
    return Reply(_manifest(session).to_json(), datatype=session.json_datatype)


def _get_id(session: ClientSession, request: Frame) -> Reply:
    """Return the number of `scope.collection`, which clients send as the value, older ones as the key."""
    manifest = _manifest(session)
    number = manifest.number_of((request.value or request.key).decode(errors="replace"))
    if number is None:
        raise Refused(Status.UNKNOWN_COLLECTION, manifest.unknown_context(), session.json_datatype)
    return Reply(extras=_COLLECTION_ID.pack(manifest.manifest_uid, number))


def _manifest(session: ClientSession) -> CollectionManifest:
    if session.bucket.manifest is None:
        raise Refused(Status.NOT_SUPPORTED)
    return session.bucket.manifest


COMMANDS: dict[int, Command] = {
    Op.FLUSH: _flush,
    Op.STAT: _stat,
    Op.GET_ALL_VB_SEQNOS: _get_all_vb_seqnos,
    Op.OBSERVE_SEQNO: _observe_seqno,
    Op.COLLECTIONS_GET_MANIFEST: _get_manifest,
    Op.COLLECTIONS_GET_ID: _get_id,
}
