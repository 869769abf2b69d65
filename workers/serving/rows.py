"""Writes changes as the lines of a feed. Pure."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from channelindex.reading.following import Part
from channelindex.reading.hub import Kept
from workers.serving.request import FeedKind

PART = 100
"""Rows from one full token to the next: as many come again at most when a client continues between them."""
MAX_RENDERED = 256
"""Answers whose bytes are remembered for those who ask the same."""
MAX_RENDERED_BYTES = 16 * 1024 * 1024
"""Bytes of all of them, except that one is remembered in any case."""
OK = HTTPStatus.OK
HEAD = b'{"results":[\n'
_encode = msgspec.json.Encoder().encode


class _Rev(msgspec.Struct):
    rev: str


class FeedRow(msgspec.Struct, omit_defaults=True):
    """One line of a feed."""

    seq: str | None
    id: str
    changes: tuple[_Rev]
    deleted: bool = False
    removed: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    withdrawn: bool = False


def seq_of(progress: int, token: str | None) -> str:
    """A `seq` or `last_seq`: for people, and for the next `since`."""
    return f"{progress}-{token}" if token else "0"


def rows_of(part: Part, begun: int = 0, interval: int | None = None) -> list[FeedRow]:
    """The rows of *part*, before which an answer has *begun* with so many.

    The last one has a token; the others the one before them, and how many rows ago that was. With *interval*, only
    every so many rows have a `seq` at all.
    """
    assert begun >= 0
    page, before = part.page, part.before or "0"
    last = len(page.entries)
    return [
        FeedRow(
            seq_of(page.progress, page.since)
            if number == last
            else None
            if interval and (begun + number) % interval
            else f"{page.progress}-{before}.{number}",
            entry.id,
            (_Rev(entry.rev),),
            entry.deleted,
            entry.left,
            entry.channels,
            entry.withdrawn,
        )
        for number, entry in enumerate(page.entries, start=1)
    ]


def as_array(rows: Sequence[FeedRow], *, is_first: bool) -> bytes:
    """*rows* in the array of `results`, after others unless *is_first*."""
    if not rows:
        return b""
    lines = b",\n".join([_encode(row) for row in rows])
    return lines if is_first else b",\n" + lines


def as_lines(rows: Sequence[FeedRow]) -> bytes:
    """*rows* as a continuous feed has them."""
    return b"".join([_encode(row) + b"\n" for row in rows])


def as_events(rows: Sequence[FeedRow]) -> bytes:
    """*rows* as an event stream has them."""
    events = [(row.seq, _encode(row)) for row in rows]
    return b"".join(
        [
            b"id: %s\nevent: message\ndata: %s\n\n" % (seq.encode(), line) if seq else b"data: %s\n\n" % line
            for seq, line in events
        ]
    )


def array_end(progress: int, token: str | None, pending: int, *, is_empty: bool) -> bytes:
    """Return the end of an object that `HEAD` began."""
    return b"%s],\n%s\n" % (b"" if is_empty else b"\n", _summary(progress, token, pending)[1:])


def line_end(progress: int, token: str | None, pending: int) -> bytes:
    """The last line of a continuous feed."""
    return _summary(progress, token, pending) + b"\n"


def _summary(progress: int, token: str | None, pending: int) -> bytes:
    return _encode({"last_seq": seq_of(progress, token), "pending": pending})


def render(part: Part, feed: FeedKind, begun: int = 0, interval: int | None = None) -> bytes:
    """*part* as a *feed* that is live has it; see `rows_of`."""
    rows = rows_of(part, begun, interval)
    return as_events(rows) if feed is FeedKind.EVENTSOURCE else as_lines(rows)


class Chunk(NamedTuple):
    """Rows as they go over the wire in an answer of unknown length; `kept` has what they were made of."""

    kept: Kept
    n_rows: int
    content: bytes


def chunk_of(kept: Kept, feed: FeedKind) -> Chunk:
    """All pages of *kept* in one chunk (RFC 9112, section 7.1); without rows, it is empty."""
    before, parts = kept.begin, []
    for page in kept.pages:
        parts.append(render(Part(before, page), feed))
        before = page.since
    rows = b"".join(parts)
    n_rows = sum(len(page.entries) for page in kept.pages)
    return Chunk(kept, n_rows, b"%x\r\n%s\r\n" % (len(rows), rows) if rows else b"")


class ChunkCache:
    """Remembers the newest chunks: all followers of a channel get the same."""

    def __init__(self) -> None:
        self._by_identity: dict[tuple[int, FeedKind], Chunk] = {}
        self._n_bytes = 0

    def chunk_of(self, kept: Kept, feed: FeedKind) -> Chunk:
        """See the function."""
        key = id(kept), feed
        known = self._by_identity.get(key)
        if known is None:
            known = chunk_of(kept, feed)
            self._n_bytes += len(known.content)
            while self._by_identity and (len(self._by_identity) >= MAX_RENDERED or self._n_bytes > MAX_RENDERED_BYTES):
                self._n_bytes -= len(self._by_identity.pop(next(iter(self._by_identity))).content)
                assert self._n_bytes >= 0
            self._by_identity[key] = known
        return known
