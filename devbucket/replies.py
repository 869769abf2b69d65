"""Makes the answers of commands: a reply, a refusal, or nothing but a closed connection. No I/O."""

import uuid
from typing import NamedTuple

import orjson

from channelindex import mcbp
from channelindex.feeds.base import JSON
from channelindex.mcbp import Frame, Status


class Reply(NamedTuple):
    """The parts of a response that a command decides."""

    value: bytes = b""
    extras: bytes = b""
    key: bytes = b""
    cas: int = 0
    datatype: int = 0
    status: int = Status.SUCCESS

    def packed(self, request: Frame) -> bytes:
        """Return the response frame to *request*."""
        return mcbp.pack_response(
            request.opcode,
            status=self.status,
            opaque=request.opaque,
            cas=self.cas,
            datatype=self.datatype,
            extras=self.extras,
            key=self.key,
            value=self.value,
        )


class Refused(Exception):
    """The command is answered with an error status; the connection goes on."""

    def __init__(self, status: int, value: bytes = b"", datatype: int = 0) -> None:
        super().__init__(f"status 0x{status:02x}")
        self.reply = Reply(status=status, value=value, datatype=datatype)


class Malformed(Refused):
    """The frame breaks the command's format: answered with EINVAL, and then the connection is closed."""

    def __init__(self) -> None:
        super().__init__(Status.EINVAL)


class HangUp(Exception):
    """The connection is closed without an answer."""


def refusal(status: int, context: str = "", *, as_json: bool, with_ref: bool = False) -> Refused:
    """Return a refusal that explains itself; *as_json* if the client negotiated the JSON datatype.

    `ref` is what a person would search the server's log for.
    """
    error = {"context": context} if context else {}
    if with_ref:
        error["ref"] = str(uuid.uuid4())
    return Refused(status, orjson.dumps({"error": error}), JSON if as_json else 0)
