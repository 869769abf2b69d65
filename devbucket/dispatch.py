"""Which command answers a frame. No I/O."""

from collections.abc import Sequence

from channelindex import mcbp
from channelindex.feeds.base import SNAPPY
from channelindex.mcbp import Feature, Frame, Op, Status
from devbucket import (
    bucket_commands,
    client_session,
    dcp_commands,
    framing,
    kv_commands,
    lock_commands,
    subdoc_commands,
)
from devbucket.client_session import ClientSession
from devbucket.items import decompressed
from devbucket.replies import HangUp, Malformed, Refused, Reply

_COMMANDS = client_session.COMMANDS | dcp_commands.COMMANDS
_DOCUMENT_COMMANDS = kv_commands.COMMANDS | lock_commands.COMMANDS | subdoc_commands.COMMANDS
_READS = frozenset({Op.GET, kv_commands.GET_META, Op.SUBDOC_MULTI_LOOKUP})
"""Commands for an account that must not write."""


def answer(session: ClientSession, frame: Frame, replies: list[bytes]) -> None:
    """Carry out one frame of a client and append the response frames to *replies*.

    Raises:
        HangUp: the connection is to be closed, after *replies* were sent.
    """
    if frame.magic == mcbp.RESPONSE:
        dcp_commands.take_response(session, frame)
    if frame.magic != mcbp.REQUEST:
        return  # else a response to a map that we pushed
    if frame.framing and session.node.cluster.without_sync_writes:
        raise HangUp("the magic of a frame with framing extras means nothing to a server of then")
    try:
        reply = _run(session, frame)
    except Malformed as malformed:
        replies.append(malformed.reply.packed(frame))
        raise HangUp("malformed request") from malformed
    except Refused as refused:
        reply = refused.reply
    if reply is not None:
        several = [reply] if isinstance(reply, Reply) else reply
        replies += [one.packed(frame) for one in several]
    if frame.opcode == Op.QUIT:
        raise HangUp("client quits")


def _run(session: ClientSession, frame: Frame) -> Reply | Sequence[Reply] | None:
    if (command := _COMMANDS.get(frame.opcode)) is not None:
        return command(session, frame)
    if (command := bucket_commands.COMMANDS.get(frame.opcode)) is not None:
        session.require_bucket(frame)
        return command(session, frame)
    if (command := _DOCUMENT_COMMANDS.get(frame.opcode)) is not None:
        session.require_bucket(frame)
        if frame.opcode not in _READS and not (session.account and session.account.may_write):
            raise session.denied(f"Authorization failure: no privilege to write, for command 0x{frame.opcode:02x}")
        if frame.key:
            frame = frame._replace(key=session.inner_key(frame.key))
        if frame.datatype & SNAPPY:
            frame = _decompressed(session, frame)
        level = framing.durability_level(frame) if frame.framing else 0
        reply = command(session, frame)
        if level:
            _make_durable(session, frame, level)
        return reply
    raise Refused(Status.UNKNOWN_COMMAND)


def _make_durable(session: ClientSession, frame: Frame, level: int) -> None:
    """Keep what was written as durable as its client asked. No replica has to be waited for: all share our copy."""
    assert 0 < level <= framing.PERSIST_TO_MAJORITY, "others are malformed"
    on_disk = level >= framing.MAJORITY_AND_PERSIST
    if on_disk:
        session.node.cluster.persist()
    session.bucket.vbuckets[frame.vbucket].note_durable(on_disk=on_disk)


def _decompressed(session: ClientSession, frame: Frame) -> Frame:
    """Return the request with its value decompressed; the datatype says that it came compressed."""
    value = decompressed(frame.value, mcbp.MAX_BODY_BYTES) if Feature.SNAPPY in session.features else None
    if value is None:
        raise Malformed
    return frame._replace(value=value)
