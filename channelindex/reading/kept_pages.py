"""Keeps what a read found beyond the page that was asked for, until the token of that page is used."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from channelindex.reading.paging import Changes
from channelindex.reading.query import Query
from channelindex.reading.snapshot import IndexSnapshot

READ_AHEAD = 50_000
"""Documents of one read that are kept for its next pages, some 300 bytes each. What is beyond is read again."""
KEPT_DOCUMENTS = 300_000
"""Documents that are kept for all who page, except that one read is kept in any case."""
KEPT_S = 60.0
"""A client that has not come back for so long is not expected to."""

_Key = tuple[Query, str, int | None]
"""(query, the token at which the next page begins, its limit)."""


class NextPages(NamedTuple):
    """The pages that follow an answer, all as of *snapshot*."""

    snapshot: IndexSnapshot
    pages: Iterator[Changes]
    n_documents: int
    until: float

    def next(self, now: IndexSnapshot) -> Changes | None:
        """The next page; None if there is none, or if it is the last and the stable clock has moved until *now*.

        An answer after which nothing follows counts as complete: what was stable before the call is in it.
        """
        page = next(self.pages, None)
        is_complete = page is None or page.pending or self.snapshot.stable == now.stable
        return page if is_complete else None


class KeptPages:
    """The pages that follow some answers. Threads may share it: who takes pages has them for itself."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, NextPages] = OrderedDict()
        self._n_documents = 0

    def take(self, query: Query, since: str, limit: int | None, now: IndexSnapshot) -> NextPages | None:
        """The pages that follow the token *since*; None if they are not there, too old, or not all visible *now*.

        Nothing is taken back but by the begin of an epoch. What is newer than they are comes after them.
        """
        with self._lock:
            kept = self._pop((query, since, limit))
        if kept is None or kept.until <= self._monotonic():
            return None
        return kept if (kept.snapshot.meta, kept.snapshot.epochs) == (now.meta, now.epochs) else None

    def keep(
        self, query: Query, page: Changes, limit: int | None, snapshot: IndexSnapshot, pages: Iterator[Changes]
    ) -> None:
        """Keep *pages*, those after *page* of a read as of *snapshot*. The longest unused are forgotten."""
        now = self._monotonic()
        kept = NextPages(snapshot, pages, min(page.pending, READ_AHEAD), now + KEPT_S)
        with self._lock:
            self._pop((query, page.since, limit))
            self._kept[query, page.since, limit] = kept
            self._n_documents += kept.n_documents
            while len(self._kept) > 1:
                oldest = next(iter(self._kept))
                if self._n_documents <= KEPT_DOCUMENTS and self._kept[oldest].until > now:
                    break
                self._pop(oldest)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()
            self._n_documents = 0

    def _pop(self, key: _Key) -> NextPages | None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._n_documents -= kept.n_documents
        return kept
