"""The DCP commands of a client. No I/O.

Source: couchbase/kv_engine docs/dcp/documentation/commands, and recordings of a server where those leave it open.
"""

import struct

import orjson

from channelindex.mcbp import Feature, Frame, Op, Status
from devbucket.client_session import ClientSession, Command
from devbucket.items import BARE_KEYS, NO_VALUE, NO_VALUE_KEEP_DATATYPE, TAKES_SNAPPY
from devbucket.manifest import KeyFilter, default_only
from devbucket.producer import MODE_FLAGS, PRODUCER, Producer
from devbucket.producer_stream import Range
from devbucket.replies import HangUp, Malformed, Refused, Reply
from devbucket.vbucket import VBucket, VBucketState

# Flags of STREAM_REQ; unknown ones are ignored.
DISK_ONLY = 0x02
LATEST = 0x04
ACTIVE_ONLY = 0x10
STRICT_VBUUID = 0x20

MAX_NAME_BYTES = 200

_STREAM_REQ_EXTRAS = struct.Struct(">IIQQQQQ")  # flags, reserved, start, end, vbuuid, snapshot start and end
_STREAMABLE = frozenset({VBucketState.ACTIVE, VBucketState.REPLICA, VBucketState.PENDING})
_ACTIVE = frozenset({VBucketState.ACTIVE})
_ANY = frozenset(VBucketState)


def _open(session: ClientSession, request: Frame) -> Reply:
    """Become a DCP connection. A name that another connection has ends that one."""
    if session.dcp_open:
        raise HangUp("second DCP_OPEN")
    session.require_bucket(request)
    if session.account is None or not session.account.may_stream:
        raise session.denied(
            "Authorization failure: can't execute DCP_OPEN operation without the DcpProducer privilege"
        )
    if len(request.extras) != 8 or not 1 <= len(request.key) <= MAX_NAME_BYTES:
        raise Malformed
    flags = int.from_bytes(request.extras[4:], "big")
    if flags & ~(PRODUCER | MODE_FLAGS) or (flags & NO_VALUE and flags & NO_VALUE_KEEP_DATATYPE):
        raise Malformed
    name = request.key.decode(errors="replace")
    session.dcp_open = True
    session.node.take_over(name, session)
    if flags & PRODUCER:
        cluster = session.node.cluster
        mode = flags & MODE_FLAGS | (TAKES_SNAPPY if Feature.SNAPPY in session.features else 0)
        if session.bucket.manifest is not None and not session.knows_collections:
            mode |= BARE_KEYS
        session.producer = Producer(name, mode, cluster.idle_timeout_s, cluster.now())
    return Reply()


def _control(session: ClientSession, request: Frame) -> Reply:
    name, value = request.key.decode(errors="replace"), request.value.decode(errors="replace")
    _producer(session).control(name, value, session.node.cluster.now())
    return Reply()


def _stream_req(session: ClientSession, request: Frame) -> Reply:
    """Open a stream, or say to which seqno the client must roll back."""
    producer = _producer(session)
    if len(request.extras) != _STREAM_REQ_EXTRAS.size:
        raise Malformed
    flags, _, start, end, vbuuid, snap_start, snap_end = _STREAM_REQ_EXTRAS.unpack(request.extras)
    states = _ACTIVE if flags & ACTIVE_ONLY else _STREAMABLE
    vbucket = session.find_vbucket(request.vbucket, states=states)
    if producer.lacks_noop:
        raise Refused(Status.NOT_SUPPORTED)
    key_filter = _key_filter(session, request)
    if start > end or not snap_start <= start <= snap_end:
        raise Refused(Status.ERANGE)
    if producer.has_stream(vbucket.vb):
        raise Refused(Status.KEY_EEXISTS)
    strict = bool(flags & STRICT_VBUUID)
    purge_seen = _purge_seen(request.value) if producer.knows_purges else 0
    rollback = vbucket.rollback_for(vbuuid, start, snap_start, snap_end, strict=strict, purge_seen=purge_seen)
    if rollback is not None:
        raise Refused(Status.ROLLBACK, rollback.to_bytes(8, "big"))
    requested = Range(start, _end_of(vbucket, flags, end), snap_start)
    from_disk = bool(flags & DISK_ONLY)
    producer.add_stream(vbucket, request.opaque, requested, from_disk=from_disk, key_filter=key_filter)
    return Reply(vbucket.failover_log.packed())


def _key_filter(session: ClientSession, request: Frame) -> KeyFilter | None:
    """Return what of the vbucket is to be streamed. Without collections a value is ignored."""
    manifest = session.bucket.manifest
    if manifest is None:
        return None
    return manifest.filter_of(request.value) if session.knows_collections else default_only


def _purge_seen(value: bytes) -> int:
    """Return the newest purge seqno that a client says it has seen: who has seen a purge need not roll back for it.

    Source: couchbase/kv_engine master, dcp/documentation/commands/stream-request-value.md (read).
    """
    try:
        seen = orjson.loads(value or b"{}").get("purge_seqno", "0")
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise Malformed from error
    if not isinstance(seen, str) or not seen.isdecimal():
        raise Refused(Status.EINVAL)
    return int(seen)


def _end_of(vbucket: VBucket, flags: int, end: int) -> int:
    return min(end, vbucket.high_seqno) if flags & (LATEST | DISK_ONLY) else end


def _close_stream(session: ClientSession, request: Frame) -> Reply:
    _producer(session).close_stream(request.vbucket)
    return Reply()


def _get_failover_log(session: ClientSession, request: Frame) -> Reply:
    _producer(session)
    return Reply(session.find_vbucket(request.vbucket, states=_ANY).failover_log.packed())


def _buffer_ack(session: ClientSession, request: Frame) -> None:
    """Count acknowledged bytes; this request has no response."""
    if len(request.extras) != 4:
        raise Malformed
    _producer(session).flow.acknowledged(int.from_bytes(request.extras, "big"))


def _noop(_session: ClientSession, _request: Frame) -> None:
    raise HangUp("a client does not send no-ops")


def take_response(session: ClientSession, response: Frame) -> None:
    """Take a client's response: to a no-op; responses to other messages are ignored.

    Raises:
        HangUp: we asked nothing, or the response is to another no-op.
    """
    producer = _producer(session)
    if response.opcode == Op.DCP_NOOP:
        producer.noop.answered(response.opaque)


def _producer(session: ClientSession) -> Producer:
    if session.producer is None:
        raise HangUp("DCP without DCP_OPEN")
    return session.producer


COMMANDS: dict[int, Command] = {
    Op.DCP_OPEN: _open,
    Op.DCP_CONTROL: _control,
    Op.DCP_STREAM_REQ: _stream_req,
    Op.DCP_CLOSE_STREAM: _close_stream,
    Op.DCP_GET_FAILOVER_LOG: _get_failover_log,
    Op.DCP_BUFFER_ACK: _buffer_ack,
    Op.DCP_NOOP: _noop,
}
