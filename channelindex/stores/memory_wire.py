"""Defines the messages between a reader and the node with an index in memory, on a unix socket.

Each message is its length (u32, big-endian) and as many bytes of MessagePack. A request is [version, method,
arguments], the answer [failure or nil, result]. Methods are those of `IndexReader`, and `channel_page`.
"""

import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from channelindex.epochs import EpochStart, PartitionRecord
from channelindex.model import IndexMeta
from channelindex.stores.base import BlockRef, ChannelState, Quarantined, StableView
from channelindex.timeline import Moment

WIRE_VERSION = 1
"""Raised with every change of a message; both sides are of one machine, so they are upgraded together."""

MAX_MESSAGE_BYTES = 1 << 28
"""A longer message is no message: a peer that speaks something else must not make us reserve memory."""

MAX_WAIT_S = 60.0
"""Longest `wait_stable` of one request: a reader that is gone holds a thread no longer."""

_LENGTH = struct.Struct(">I")


class Method(NamedTuple):
    """The types of a method's arguments and of its result."""

    arguments: Any
    result: Any


METHODS: Mapping[str, Method] = {
    "meta": Method(tuple[()], IndexMeta),
    "stable_view": Method(tuple[()], StableView),
    "partition_records": Method(tuple[list[int] | None], list[PartitionRecord]),
    "archived_starts": Method(tuple[list[int]], list[list[EpochStart]]),
    "timelines": Method(tuple[list[int]], list[list[Moment]]),
    "channel_page": Method(tuple[int, int], list[str]),
    "channel_states": Method(tuple[list[str]], list[ChannelState | None]),
    "blocks": Method(tuple[list[BlockRef]], list[bytes | None]),
    "principal_counter": Method(tuple[str], int),
    "stable_counter": Method(tuple[()], int),
    "wait_stable": Method(tuple[int, float], int),
    "quarantined": Method(tuple[int], tuple[int, list[Quarantined]]),
}


class WireRequest(msgspec.Struct, array_like=True):
    """One call."""

    version: int
    method: str
    arguments: msgspec.Raw


class Failure(msgspec.Struct, array_like=True):
    """An error of `channelindex.errors` by its name. `channel` and `floor` are those of `ChangesForgotten`."""

    kind: str
    message: str
    channel: str = ""
    floor: dict[int, int] = {}


class WireAnswer(msgspec.Struct, array_like=True):
    """The answer to a call: `failure`, or the result."""

    failure: Failure | None
    result: msgspec.Raw


def socket_path(run_dir: str, index_name: str) -> Path:
    """The socket on which the node with the index *index_name* in memory listens."""
    return Path(run_dir) / f"{index_name}.sock"


def send_message(peer: socket.socket, message: bytes) -> None:
    """Send one message."""
    peer.sendall(_LENGTH.pack(len(message)) + message)


def receive_message(peer: socket.socket) -> bytes | None:
    """The next message; None where the peer has ended the connection between two.

    Raises:
        OSError: the connection broke, or what came is no message.
    """
    head = _receive(peer, _LENGTH.size)
    if not head:
        return None
    (size,) = _LENGTH.unpack(head)
    if size > MAX_MESSAGE_BYTES:
        raise OSError(f"a message of {size} bytes, at most {MAX_MESSAGE_BYTES} are expected")
    body = _receive(peer, size)
    if len(body) < size:
        raise OSError("the connection ended within a message")
    return body


def _receive(peer: socket.socket, size: int) -> bytes:
    """*size* bytes, or none where the connection ends before the first.

    Raises:
        OSError: it ends later, or breaks.
    """
    assert size >= 0
    received = bytearray()
    while len(received) < size:
        part = peer.recv(min(size - len(received), 1 << 20))
        if not part:
            if received:
                raise OSError("the connection ended within a message")
            return b""
        received += part
    return bytes(received)
