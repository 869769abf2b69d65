"""Answers `_changes`: in one piece, or for as long as the client stays."""

import hashlib
import time
from http import HTTPStatus
from typing import NamedTuple

from channelindex.reading.async_reader import AsyncChangesReader
from channelindex.reading.changes_reader import NOW
from channelindex.reading.following import Following
from channelindex.reading.paging import Changes
from channelindex.reading.query import Query
from workers.serving import rows
from workers.serving.counters import Counters
from workers.serving.http_error import Headers
from workers.serving.http_exchange import JSON, Exchange
from workers.serving.live import LIVE, LiveAnswer
from workers.serving.request import FeedKind, FeedRequest
from workers.serving.scans import Scans, is_kept
from workers.serving.whole import WholeAnswer

VARY = (b"vary", b"Authorization, Cookie, Accept, Accept-Encoding")


class Asked(NamedTuple):
    """A request whose channels are granted; `grants` names whose they are, for the ETag."""

    request: FeedRequest
    query: Query
    grants: str


class Feeds:
    """Answers requests from the index that *reader* reads."""

    def __init__(self, reader: AsyncChangesReader, scans: Scans, counters: Counters) -> None:
        self._reader = reader
        self._scans = scans
        self._counters = counters
        self._cache = rows.ChunkCache()

    async def normal(self, exchange: Exchange, asked: Asked) -> None:
        """Answer with what there is now.

        Raises:
            ChannelIndexError, HttpError: before the answer has begun.
        """
        request = asked.request
        if request.since == NOW or (request.since and is_kept(request.limit)):  # may be of an earlier read
            await self._write(exchange, asked, await self._read(asked), LIVE[0], VARY)
            return
        tag = _etag(await self._reader.stable_counter(), asked)
        if tag[1] == exchange.headers.get(b"if-none-match"):
            await exchange.begin(HTTPStatus.NOT_MODIFIED, *_cached(tag))
            await exchange.end()
            return
        await self._write(exchange, asked, await self._read(asked), *_cached(tag))

    async def open_live(self, exchange: Exchange, asked: Asked, feeds: set[LiveAnswer]) -> LiveAnswer | None:
        """Begin to answer as a longpoll, line by line, or as events; return what is to be run, and closed in any case.

        None where a longpoll is answered already. While the answer is open, it is one of *feeds*.

        Raises:
            ChannelIndexError, HttpError: before the answer has begun.
        """
        following = self._reader.following(asked.query, asked.request.since)
        answer = LiveAnswer(exchange, asked.request, following, feeds, self._cache, self._counters)
        answer.open()
        try:
            if asked.request.feed is not FeedKind.LONGPOLL or not await self._has_answered(exchange, asked, following):
                return answer
        except BaseException:
            answer.close()
            raise
        answer.close()
        return None

    async def _has_answered(self, exchange: Exchange, asked: Asked, following: Following) -> bool:
        """Answer a longpoll as `normal` does, if there is something; what is left serves its next page."""
        if following.is_up_to_date or asked.request.since == NOW:
            return False
        answer = await self._read(asked)
        if not answer.n_rows:
            following.move(answer.page)
            return False
        await self._write(exchange, asked, answer, *LIVE)
        return True

    async def _read(self, asked: Asked) -> WholeAnswer:
        """Read what is asked for, and make the first chunk of it."""
        request = asked.request
        began = time.monotonic()
        parts = await self._scans.read(asked.query, request.since, request.limit)
        return await self._reader.compute(lambda: WholeAnswer(request, parts, began))

    async def _write(
        self, exchange: Exchange, asked: Asked, answer: WholeAnswer, *headers: tuple[bytes, bytes]
    ) -> None:
        timing = (b"server-timing", b"read;dur=%.1f" % answer.made_in_ms)
        await exchange.begin(rows.OK, JSON, *headers, timing, *_progress(answer.page, up_to_date=answer.tells_all))
        await exchange.write(rows.HEAD + answer.first)
        while not answer.is_done:
            await exchange.write(await self._reader.compute(answer.chunk))
        await exchange.end(answer.end())
        self._counters.rows.labels(asked.request.feed.value).inc(answer.n_rows)

    async def only_count(self, exchange: Exchange, asked: Asked) -> None:
        """Answer limit=0: no row, but where the client is, and how many follow."""
        since = asked.request.since
        page = next(await self._reader.parts(asked.query, since, 1, 1))
        n_pending = page.pending + len(page.entries)
        token = since if n_pending else page.since
        body = rows.HEAD + rows.array_end(page.progress, token, n_pending, is_empty=True)
        await exchange.answer(rows.OK, body, JSON, LIVE[0], VARY, *_progress(page, up_to_date=not n_pending))


def _progress(page: Changes, *, up_to_date: bool) -> Headers:
    """Say how far the index is, and if the answer has all of it. No token: heads have 4 KB at many proxies."""
    return (
        (b"channelindex-seq", str(page.of).encode()),
        (b"channelindex-up-to-date", b"true" if up_to_date else b"false"),
    )


def _cached(tag: tuple[bytes, bytes]) -> Headers:
    """The headers of an answer that the client may keep, and ask whether it is still true."""
    return VARY, (b"cache-control", b"private, no-cache"), tag


def _etag(counter: int, asked: Asked) -> tuple[bytes, bytes]:
    request = asked.request
    what = (counter, asked.query.channels, asked.query.asked, asked.query.active_only, asked.grants)
    asked_for = repr((*what, request.since, request.limit, request.seq_interval))
    return b"etag", b'"%s"' % hashlib.blake2b(
        asked_for.encode(errors="surrogatepass"), digest_size=12
    ).hexdigest().encode()
