"""Reads the index for requests, a few at a time: more wait, and too many are refused."""

from collections.abc import Iterator
from http import HTTPStatus

from prometheus_client import Gauge

from channelindex.reading.async_reader import AsyncChangesReader
from channelindex.reading.paging import Changes
from channelindex.reading.query import Query
from workers.serving.http_error import RETRY_S, HttpError
from workers.serving.rows import PART

MAX_WAITING = 200
"""Reads that wait for their turn. More are refused: they would wait for longer than their clients do."""


class Scans:
    """See the module. *n_at_once* have their turn."""

    def __init__(self, reader: AsyncChangesReader, n_at_once: int, running: Gauge) -> None:
        assert n_at_once > 0, "somebody has a turn"
        self._reader = reader
        self._n_most = n_at_once + MAX_WAITING
        self._n_running = 0
        self._running = running

    async def read(self, query: Query, since: str | None, limit: int | None) -> Iterator[Changes]:
        """The page after *since*, in parts of at most `PART` documents.

        Raises:
            HttpError: too many wait already.
            ChannelIndexError: see `ChangesReader.changes`.
        """
        if self._n_running >= self._n_most:
            reason = "too many reads of the index are waiting"
            after = (b"retry-after", str(RETRY_S).encode())
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, "busy", reason, (after,))
        self._count(1)
        try:
            if is_kept(limit):
                return iter((await self._reader.page(query, since, limit),))
            return await self._reader.parts(query, since, limit, PART)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._n_running += change
        assert 0 <= self._n_running <= self._n_most
        self._running.set(self._n_running)


def is_kept(limit: int | None) -> bool:
    """True if the reader keeps what is left of a read for the next page of *limit*."""
    return limit is not None and limit <= PART
