"""Parses a request's framing extras: durability, preserved expiry. No I/O.

Source: couchbase/kv_engine docs/BinaryProtocol.md, request header with flexible framing extras.
"""

from collections.abc import Iterator

from channelindex.mcbp import Frame
from devbucket.replies import Malformed

DURABILITY = 1
PRESERVE_EXPIRY = 5

MAJORITY = 1
MAJORITY_AND_PERSIST = 2  # on the active node
PERSIST_TO_MAJORITY = 3

_ESCAPE = 15
"""An id or a length of 15 or more does not fit into half a byte: what is above 15 follows in a byte of its own."""


def durability_level(request: Frame) -> int:
    """Return the durability that the request wants, 0 for none.

    Raises:
        Malformed: no such level.
    """
    level = dict(_infos(request.framing)).get(DURABILITY)
    if level is None:
        return 0
    if not level or not MAJORITY <= level[0] <= PERSIST_TO_MAJORITY:
        raise Malformed
    return level[0]


def keeps_expiry(request: Frame) -> bool:
    """Return whether a change leaves the document's expiry as it is."""
    return any(number == PRESERVE_EXPIRY for number, _ in _infos(request.framing))


def _infos(framing: bytes) -> Iterator[tuple[int, bytes]]:
    """Return the pairs of id and content."""
    at = 0
    while at < len(framing):
        number, size = framing[at] >> 4, framing[at] & 0x0F
        at += 1
        if number == _ESCAPE:
            number, at = number + _byte(framing, at), at + 1
        if size == _ESCAPE:
            size, at = size + _byte(framing, at), at + 1
        if at + size > len(framing):
            raise Malformed
        yield number, framing[at : at + size]
        at += size


def _byte(framing: bytes, at: int) -> int:
    if at >= len(framing):
        raise Malformed
    return framing[at]
