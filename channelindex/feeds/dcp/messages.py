"""Parses the frames and answers of a stream. No I/O, no state.

Source: couchbase/kv_engine docs/dcp/documentation/commands and docs/BinaryProtocol.md (OBSERVE_SEQNO).
"""

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from channelindex.errors import AuthenticationFailed, ChannelIndexError, ConfigInvalid, InvariantBroken, ProtocolError
from channelindex.feeds.base import FailoverLog
from channelindex.feeds.dcp.exchange import Request, error_text
from channelindex.mcbp import Frame, Op, Status
from channelindex.model import Checkpoint

SEQNO_OFFSET: dict[int, int] = {Op.DCP_SEQNO_ADVANCED: 0, Op.DCP_SYSTEM_EVENT: 0, Op.DCP_PREPARE: 0, Op.DCP_ABORT: 8}
"""Frames that move the seqno and carry no document for us, and where in their extras it stands. A prepare is not
visible before its commit, which a consumer that did not ask for sync writes gets as a plain mutation."""

UNASKED: dict[int, str] = {
    Op.DCP_COMMIT: "a commit without its document",
    Op.DCP_OSO_SNAPSHOT: "an out-of-order snapshot",
}
"""Frames that a server sends only to those who asked for them. To go on after one would lose documents: we never ask
for out-of-order snapshots, because a position inside of one cannot be resumed from."""

FROM_SERVER = range(Op.DCP_STREAM_END, 0x80)
"""Opcodes of what a server may send unasked on a DCP connection, those among them that a later version may add. The
others are requests of clients, or not of DCP: to ignore one could be to lose a document that was damaged on its way."""
OF_STREAMS = frozenset(
    {
        Op.DCP_SNAPSHOT_MARKER,
        Op.DCP_STREAM_END,
        Op.DCP_MUTATION,
        Op.DCP_DELETION,
        Op.DCP_EXPIRATION,
        *SEQNO_OFFSET,
        *UNASKED,
    }
)
"""Those of them that belong to a stream."""

NeedsBody = Callable[[bytes, int, bytes], bool]
"""Of a mutation's key, datatype and value without body: whether the body may matter. Called for JSON documents only."""


class BodiesNeeded(ChannelIndexError):
    """A stream without bodies cannot go on, or the server knows no such streams. Nothing behind it was taken.

    Bodies are a large part of a bucket's bytes, and say nothing where the metadata is in an xattr. A feed that chooses
    by itself begins without them, and takes them as soon as one document comes that may have its metadata in its body:
    from exactly that document on, so that none is decoded from what was left out of it.
    """


_OBSERVED = struct.Struct(">BHQQQ")  # format, vbucket, vbuuid, persisted seqno, current seqno
_OBSERVED_FAILED_OVER = struct.Struct(">QQ")  # the vbuuid that was asked for, and the last seqno of its history here


class StreamEnd(IntEnum):
    """Why the server closed a stream (KV docs, commands/stream-end.md), and what we do about it.

    All but the last two are asked for again where they were, after a pause that grows: on the node that the newest map
    names. The answer is then ROLLBACK where history changed. OK ends a stream that has an end.
    """

    OK = 0
    CLOSED = 1
    STATE_CHANGED = 2
    """The vbucket moves; the map is asked for anew."""
    DISCONNECTED = 3
    TOO_SLOW = 4
    BACKFILL_FAILED = 5
    ROLLBACK = 6
    FILTER_EMPTY = 7
    """All collections of the stream were dropped: what they held is gone without a deletion. The connection is made
    again, to look them up: a collection of the same name may be created at any time."""
    LOST_PRIVILEGES = 8
    """The connection is made again, to see whether we are refused for good."""


def stream_end_reason(frame: Frame) -> int:
    """The reason of a STREAM_END.

    Raises:
        AuthenticationFailed: to ask for the stream again would be in vain.
        ProtocolError: the frame does not say.
    """
    if len(frame.extras) != 4:
        raise ProtocolError(f"end of a stream with {len(frame.extras)} bytes of extras")
    reason = int.from_bytes(frame.extras, "big")
    if reason == StreamEnd.LOST_PRIVILEGES:
        raise AuthenticationFailed("source.user lost the privilege to stream the bucket of source.url")
    return reason


def reason_name(reason: int) -> str:
    """The name of a STREAM_END's *reason*, or its number."""
    try:
        return StreamEnd(reason).name.lower()
    except ValueError:
        return f"0x{reason:x}"


def failover_log(answer: Frame) -> FailoverLog:
    """The log that a vbucket's node answered with."""
    if not answer.value or len(answer.value) % 16:
        raise ProtocolError(f"failover log of {len(answer.value)} bytes")
    return tuple(struct.iter_unpack(">QQ", answer.value))


def seqno_of(frame: Frame) -> int:
    """The seqno of one of the frames of `SEQNO_OFFSET`."""
    assert frame.opcode in SEQNO_OFFSET
    offset = SEQNO_OFFSET[frame.opcode]
    if len(frame.extras) < offset + 8:
        raise ProtocolError(f"frame 0x{frame.opcode:02x} with {len(frame.extras)} bytes of extras")
    return int.from_bytes(frame.extras[offset : offset + 8], "big")


def stream_refusal(vb: int, at: Checkpoint, answer: Frame) -> Exception:
    """The error for a stream request from *at* that no later attempt can cure."""
    assert answer.status != Status.SUCCESS, "it was refused"
    message = f"vbucket {vb}: the server refused to stream from {at}: {error_text(answer)}"
    match answer.status:
        case Status.EACCESS:
            return AuthenticationFailed(f"{message}; give source.user the privilege to stream this bucket")
        case Status.NOT_SUPPORTED:
            return ConfigInvalid(f"{message}; the server of source.url cannot stream as we need it")
        case Status.ERANGE:
            return InvariantBroken(message)
        case _:
            return ProtocolError(message)


class Observed(NamedTuple):
    """The part of one history of a vbucket that a node has on its disk."""

    vbuuid: int
    persisted_seqno: int


def observe(vb: int, vbuuid: int) -> Request:
    """Ask a node how much of the history *vbuuid* of *vb* it has persisted."""
    return Request(Op.OBSERVE_SEQNO, value=struct.pack(">Q", vbuuid), vb=vb)


def observed(answer: Frame) -> Observed:
    """Parse the answer to `observe`. After a failover it names the new history, and how much of ours that one has."""
    if len(answer.value) < _OBSERVED.size:
        raise ProtocolError(f"observed seqno of {len(answer.value)} bytes")
    form, _, vbuuid, persisted, _ = _OBSERVED.unpack_from(answer.value)
    if form == 0 or len(answer.value) < _OBSERVED.size + _OBSERVED_FAILED_OVER.size:
        return Observed(vbuuid, persisted)
    asked, last_seqno = _OBSERVED_FAILED_OVER.unpack_from(answer.value, _OBSERVED.size)
    return Observed(asked, min(persisted, last_seqno))
