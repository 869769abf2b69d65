"""One request and its response, and conversations made of them, without I/O.

A conversation is a generator that yields requests and is sent their responses. The blocking KV client and the
non-blocking DCP session drive the same ones, each in its own way.
"""

from collections.abc import Generator
from typing import NamedTuple, TypeVar

import msgspec

from channelindex import mcbp
from channelindex.errors import AuthenticationFailed, ChannelIndexError, ProtocolError, SourceUnavailable
from channelindex.mcbp import Frame, Op, Status

_Result = TypeVar("_Result")
Conversation = Generator["Request", Frame, _Result]


class Request(NamedTuple):
    """A request before it has its opaque. `vb` None: that of the key, where a key has one."""

    opcode: int
    key: bytes = b""
    extras: bytes = b""
    value: bytes = b""
    vb: int | None = None
    cas: int = 0
    datatype: int = 0

    def pack(self, opaque: int) -> bytes:
        """The bytes of the frame."""
        assert 0 <= opaque < 1 << 32, "it is 32 bits on the wire"
        return mcbp.pack_request(
            self.opcode,
            vbucket=self.vb or 0,
            opaque=opaque,
            cas=self.cas,
            datatype=self.datatype,
            extras=self.extras,
            key=self.key,
            value=self.value,
        )


class _ErrorContext(msgspec.Struct):
    context: str = ""
    ref: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorContext


def error_text(frame: Frame) -> str:
    """The message of a response with an error status, for a person."""
    try:
        status = Status(frame.status).name
    except ValueError:
        status = f"status 0x{frame.status:02x}"
    try:
        error = msgspec.json.decode(frame.value, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return status
    return " ".join(filter(None, (status, error.context, error.ref)))


def opcode_name(opcode: int) -> str:
    """The name of *opcode*, or its number."""
    try:
        return Op(opcode).name
    except ValueError:
        return f"0x{opcode:02x}"


RETRYABLE_STATUSES = frozenset(
    (
        Status.NOT_MY_VBUCKET,
        Status.NO_BUCKET,
        Status.ENOMEM,
        Status.EINTERNAL,
        Status.EBUSY,
        Status.ETMPFAIL,
        Status.UNKNOWN_COLLECTION,
        Status.UNKNOWN_SCOPE,
        Status.NO_COLLECTIONS_MANIFEST,
        Status.COLLECTIONS_MANIFEST_AHEAD,
    )
)
"""Statuses that a later attempt may not meet: a vbucket moves, a node starts or is busy, or learns of a collection."""


def refusal(frame: Frame) -> ChannelIndexError:
    """The error for a response of which nothing better is known than that it is not a success."""
    message = f"the server refused {opcode_name(frame.opcode)}: {error_text(frame)}"
    if frame.status == Status.EACCESS:
        return AuthenticationFailed(f"{message}; give source.user the privilege, or name another user")
    return SourceUnavailable(message) if frame.status in RETRYABLE_STATUSES else ProtocolError(message)
