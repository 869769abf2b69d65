"""Waits until the index is as far as a client demands: as a token that it has, or as its bucket is now."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Generic, TypeVar

from channelindex.errors import TokenAhead
from channelindex.reading import since_token
from channelindex.reading.async_reader import AsyncChangesReader
from channelindex.reading.snapshot import IndexSnapshot
from workers.serving.http_error import HttpError, unavailable
from workers.serving.request import FeedRequest

LOOK_S = 0.02
"""Between two looks at the stable clock while somebody waits."""
DEFAULT_TIMEOUT_S = 60.0

HighSeqnos = Callable[[], Mapping[int, int] | None]
"""Asks the bucket for its high seqnos by vbucket, in a thread; None where it cannot be asked."""

Result = TypeVar("Result")


class SharedCall(Generic[Result]):
    """Calls *function* for all who ask: one call for all who came before it began, one call at a time."""

    def __init__(self, function: Callable[[], Awaitable[Result]]) -> None:
        self._function = function
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Result] | None = None

    async def ask(self) -> Result:
        """Return or raise the outcome of a call that begins after this one."""
        if self._next is None:
            self._next = asyncio.create_task(self._call())
        return await asyncio.shield(self._next)

    async def _call(self) -> Result:
        async with self._turn:
            self._next = None
            return await self._function()


class Demands:
    """See the module. *high_seqnos* is None where no bucket is configured."""

    def __init__(self, reader: AsyncChangesReader, high_seqnos: HighSeqnos | None) -> None:
        self._snapshot = SharedCall(reader.snapshot)
        self._high = SharedCall(lambda: asyncio.to_thread(high_seqnos)) if high_seqnos else None

    async def met(self, request: FeedRequest) -> None:
        """Return once the index is as far as *request* demands.

        Raises:
            HttpError: it is not so within the time that the client waits, or nobody knows how far that is.
            TokenInvalid: `at_least` is no token of this index.
        """
        if request.at_least is None and not request.request_plus:
            return
        high = await self._bucket() if request.request_plus else {}
        timeout_s = DEFAULT_TIMEOUT_S if request.timeout_s is None else request.timeout_s
        deadline = time.monotonic() + timeout_s
        while not _reaches(await self._snapshot.ask(), request.at_least, high):
            if time.monotonic() >= deadline:
                raise unavailable(f"the index has not come so far within {timeout_s:g} s")
            await asyncio.sleep(LOOK_S)

    async def _bucket(self) -> Mapping[int, int]:
        if self._high is None:
            reason = "request_plus: this service does not know the bucket, see source.url"
            raise HttpError(HTTPStatus.NOT_IMPLEMENTED, "not_implemented", reason)
        high = await self._high.ask()
        if high is None:
            raise unavailable("the bucket cannot be asked how far it is")
        return high


def _reaches(snapshot: IndexSnapshot, at_least: str | None, high: Mapping[int, int]) -> bool:
    if any(snapshot.stable[vb] < seqno for vb, seqno in high.items()):
        return False
    if at_least is not None:
        try:
            snapshot.resume(since_token.decode(at_least, snapshot.meta, None))
        except TokenAhead:
            return False
    return True
