"""An answer of what there is, made in chunks so that one of any length takes little memory. Runs in threads."""

import time
from collections.abc import Iterator

from channelindex.reading.following import Part
from channelindex.reading.paging import Changes
from workers.serving import rows
from workers.serving.request import FeedRequest

CHUNK_ROWS = 1000
"""Rows that are made and sent together."""


class WholeAnswer:
    """The page that *request* asks for, of which *parts* has the parts. `page` is the part that came last.

    It is made with its `first` chunk, in `made_in_ms` since *began*, monotonic.
    """

    page: Changes

    def __init__(self, request: FeedRequest, parts: Iterator[Changes], began: float) -> None:
        self._parts = parts
        self._interval = request.seq_interval
        self._left = request.limit
        self._before = request.since
        self.n_rows = 0
        self.is_done = False
        self.first = self.chunk()
        self.made_in_ms = 1000 * (time.monotonic() - began)

    @property
    def tells_all(self) -> bool:
        """True if nothing is left once the answer is sent whole."""
        return self._left is None or self.page.pending <= self._left - self.n_rows

    def chunk(self) -> bytes:
        """The next rows, with what comes between them and the rows before."""
        assert not self.is_done, "there is no chunk after the last"
        chunk: list[bytes] = []
        end = self.n_rows + CHUNK_ROWS
        while self.n_rows < end and not self.is_done:
            page = next(self._parts)
            made = rows.rows_of(Part(self._before, page), self.n_rows, self._interval)
            chunk.append(rows.as_array(made, is_first=not self.n_rows))
            self.n_rows += len(made)
            self.page, self._before = page, page.since
            self.is_done = not page.pending or self.n_rows == self._left
        return b"".join(chunk)

    def end(self) -> bytes:
        """Return the bytes after the last row."""
        return rows.array_end(self.page.progress, self.page.since, self.page.pending, is_empty=not self.n_rows)
