"""The read side: what changed in these channels since I last looked?"""

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Self

from channelindex.blocks import OnCorrupt, refuse
from channelindex.errors import ReaderClosed, TokenAhead, Transient
from channelindex.reading import since_token
from channelindex.reading.block_walk import NOTHING_READ, walk
from channelindex.reading.keeping import TokenStore
from channelindex.reading.kept_pages import READ_AHEAD, KeptPages
from channelindex.reading.paging import Changes, Pager, Withdrawn
from channelindex.reading.patience import BEHIND_S, Patience
from channelindex.reading.query import Query
from channelindex.reading.scan import Scan
from channelindex.reading.since_token import Token
from channelindex.reading.snapshot import IndexSnapshot, Snapshots
from channelindex.reading.withdrawn import ReturningScan
from channelindex.stores.base import IndexReader

CONSUMED_AT_ONCE = 1000
"""Documents in a page of `consume`, which come again after a crash in the midst of it."""
NOW = "now"
"""The `since` of a reader that takes what comes next, and nothing that is there."""


class ChangesReader:
    """Answers from one index. Keeps nothing between calls that cannot be read again; as safe for threads as its store.

    That of `open_index` may be shared by any number of threads, each with its own followers and pages.

    No answer goes beyond the stable clock, so only a rollback of the source takes one back. A reader that had read
    what was rolled back gets all documents of that vbucket once more, in their present state. A document that was in
    the channels only by what was rolled back is returned before them, as `withdrawn`, as long as the index knows of it.

    A `since` is good for the channels and `doc_ids` with which it was made, in any order, and refused for others: it
    says nothing of them. `since="now"` begins with what comes next.

    With `active_only`, a reader does not get deletions and removals of documents that it never got: for one
    who begins with nothing. In vbuckets that it has read before, it gets all, so it may ask so for ever.

    *on_corrupt* is called for each damaged or missing block. If it returns, the answer holds what is intact, and what
    was damaged is never reported: the token goes beyond it.
    """

    def __init__(self, store: IndexReader, on_corrupt: OnCorrupt = refuse) -> None:
        self._store = store
        self._on_corrupt = on_corrupt
        self._snapshots = Snapshots(store)
        self._kept_pages = KeptPages()
        self._is_closed = False

    def changes(
        self,
        channels: Iterable[str],
        since: str | None = None,
        limit: int | None = None,
        *,
        active_only: bool = False,
        doc_ids: Iterable[str] | None = None,
    ) -> Changes:
        """The documents that changed in any of *channels* after *since*, each once, at most *limit*.

        Ordered by vbucket and seqno, beginning where the page before ended. The pages of a channel at rest give the
        same list whatever the limit; in a busy one, no vbucket keeps the others waiting. Blocks are read as far back
        as *since* requires, whatever the limit. So what is beyond the page is kept, within bounds (`KeptPages`), for
        the call that goes on with its token and the same limit, which reads no block then: to page through many changes
        costs little more than `pages`, in one process.

        Raises:
            TypeError: *channels* is a string, or not of strings; so *doc_ids*.
            TokenInvalid: *since* is garbled, of another index, made for something else, or from the future.
            IndexCorrupt: a block is missing or damaged, and the reader's *on_corrupt* raises it.
            ChangesForgotten: the store holds only the newest changes, and *since* is older than they are.
            IndexMissing, StoreUnavailable: see `IndexReader`.
            ReaderClosed: the reader is closed.
        """
        check_limit(limit)
        return self.page(Query.of(channels, doc_ids, active_only=active_only), since, limit)

    def pages(
        self,
        channels: Iterable[str],
        since: str | None = None,
        limit: int | None = None,
        *,
        active_only: bool = False,
        doc_ids: Iterable[str] | None = None,
    ) -> Iterator[Changes]:
        """The answers of `changes` one after the other, all as of now and from one read; at least one.

        Raises:
            See `changes`. All of them before the first page.
        """
        check_limit(limit)
        return self._read(Query.of(channels, doc_ids, active_only=active_only), since, limit)

    def page(self, query: Query, since: str | None, limit: int | None) -> Changes:
        """The page at *since*. If another is to follow, what was read of it is kept."""
        snapshot = self.snapshot()
        kept = self._kept_pages.take(query, since, limit, snapshot) if since else None
        page = kept.next(snapshot) if kept else None
        if kept and page:
            snapshot, pages = kept.snapshot, kept.pages
        else:
            pages = read_pages(self._store, snapshot, query, since, limit, self._on_corrupt, READ_AHEAD)
            page = next(pages)
        if page.pending:
            self._kept_pages.keep(query, page, limit, snapshot, pages)
        return page

    def _read(self, query: Query, since: str | None, limit: int | None) -> Iterator[Changes]:
        return self.parts(query, since, limit, None)

    def parts(self, query: Query, since: str | None, limit: int | None, part: int | None) -> Iterator[Changes]:
        """The answers of `pages`, each in parts of *part* documents with a token of their own; raises as `changes`."""
        return read_pages(self._store, self.snapshot(), query, since, limit, self._on_corrupt, part=part)

    def token_at(self, channels: Iterable[str], time_s: float, *, doc_ids: Iterable[str] | None = None) -> str:
        """The `since` after which is all that was not yet stable at *time_s* (Unix time), for *channels* and *doc_ids*.

        As exact as the timeline of the index: nothing that came later is left out, but what came up to a third of the
        time's age before it may be returned again. The beginning, where nothing is known of a time so long ago.

        Raises:
            See `changes`.
        """
        return self.position_at(Query.of(channels, doc_ids, active_only=False), time_s)

    def position_at(self, query: Query, time_s: float) -> str:
        """`token_at` for *query*."""
        snapshot = self.snapshot()
        timelines = self._store.timelines(range(snapshot.meta.n_partitions))
        seqnos = tuple(snapshot.stable_before(timelines, time_s))
        return since_token.encode(Token(0, 0, snapshot.epochs, seqnos, seqnos), snapshot.meta, query.asked)

    def snapshot(self) -> IndexSnapshot:
        """The index as of now; raises as `changes`."""
        if self._is_closed:
            raise ReaderClosed
        return self._snapshots.take()

    def follow(
        self,
        channels: Iterable[str],
        since: str | None = None,
        limit: int | None = None,
        *,
        active_only: bool = False,
        doc_ids: Iterable[str] | None = None,
        stop: Callable[[], bool] = lambda: False,
        wait_s: float = 1.0,
        behind_s: float = BEHIND_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[Changes]:
        """The answers of `changes` that have an entry, as the stable clock moves on, until *stop* returns true.

        It ends within *wait_s*, too, once another thread has closed the reader. *stop* is called at least every
        *wait_s* seconds, or 5 while the store cannot be reached. A store that is away is retried with jittered pauses
        (`Patience`); so is, for *behind_s* seconds, one that lost its newest writes and is behind *since*. Every other
        error is raised.

        Raises:
            TokenAhead: the index has been behind *since* for longer than *behind_s*.
            TypeError, ValueError: at once, see `changes`; every other error comes with the first page.
        """
        check_limit(limit)
        query = Query.of(channels, doc_ids, active_only=active_only)
        return self._follow(query, since, limit, stop, wait_s, behind_s, sleep)

    def _follow(
        self,
        query: Query,
        since: str | None,
        limit: int | None,
        stop: Callable[[], bool],
        wait_s: float,
        behind_s: float,
        sleep: Callable[[float], None],
    ) -> Iterator[Changes]:
        counter: int | None = None
        patience = Patience(behind_s)
        while not (stop() or self._is_closed):
            try:
                now = self._store.stable_counter() if counter is None else self._store.wait_stable(counter, wait_s)
                if now == counter:
                    continue
                pages = self._read(query, since, limit)
            except ReaderClosed:
                return
            except (Transient, TokenAhead) as error:
                counter = None  # what the counter promised has not been read
                sleep(patience.pause_after(error))
                continue
            counter = now
            patience.reset()
            for page in pages:
                since = page.since
                if page.entries:
                    yield page

    def consume(
        self,
        channels: Iterable[str],
        kept: TokenStore,
        since: str | None = None,
        limit: int | None = CONSUMED_AT_ONCE,
        *,
        active_only: bool = False,
        doc_ids: Iterable[str] | None = None,
        stop: Callable[[], bool] = lambda: False,
        wait_s: float = 1.0,
        behind_s: float = BEHIND_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Iterator[Changes]:
        """The pages of `follow` from the token in *kept*, or from *since* where there is none yet.

        The token of a page is saved when the next one is asked for. So what ends in the middle of a page, by an error,
        a crash or a `break`, gets that page again: a handler must tolerate to see a change twice. A *kept* that
        is away is tried again, as `follow` does, and the same page is kept.

        Raises:
            What *kept* raises but `Transient`; and see `follow`.
        """
        query = Query.of(channels, doc_ids, active_only=active_only)
        check_limit(limit)
        return self._consume(query, kept, since, limit, stop, wait_s, behind_s, sleep)

    def _consume(
        self,
        query: Query,
        kept: TokenStore,
        since: str | None,
        limit: int | None,
        stop: Callable[[], bool],
        wait_s: float,
        behind_s: float,
        sleep: Callable[[float], None],
    ) -> Iterator[Changes]:
        begin = kept.load() or since
        if begin == NOW:  # it stays the same now if we end before there is anything
            begin = next(self._read(query, NOW, None)).since
            kept.save(begin)
        for page in self._follow(query, begin, limit, stop, wait_s, behind_s, sleep):
            yield page
            _save(kept, page.since, stop, sleep)

    def close(self) -> None:
        """Close the store; who follows in another thread ends. May be called twice."""
        self._is_closed = True
        self._kept_pages.clear()
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def principal_counter(self, key: str) -> int:
        """Number of changes of the user or role document *key*; "" for the sum over all of them."""
        return self._store.principal_counter(key)


def _save(kept: TokenStore, token: str, stop: Callable[[], bool], sleep: Callable[[float], None]) -> None:
    """Save *token* in *kept*; while that is away, try again until *stop*."""
    patience = Patience()
    while True:
        try:
            return kept.save(token)
        except Transient as error:
            if stop():
                raise
            sleep(patience.pause_after(error))


def read_pages(
    store: IndexReader,
    snapshot: IndexSnapshot,
    query: Query,
    since: str | None,
    limit: int | None,
    on_corrupt: OnCorrupt = refuse,
    most: int | None = None,
    part: int | None = None,
) -> Iterator[Changes]:
    """The pages of what *query* asks for after *since*, as of *snapshot*. All is read before this returns.

    *most*, *part*: see `Pager.pages`.

    Raises:
        See `ChangesReader.changes`.
    """
    is_new = since == NOW
    begin = snapshot.position if is_new else since_token.decode(since, snapshot.meta, query.asked)
    read, taken_back = snapshot.resume(begin), snapshot.taken_back(begin)
    if not taken_back:
        scan = Scan(snapshot, read.seqnos, begin)
        stats = NOTHING_READ if is_new else walk(store, query.channels, scan, on_corrupt)
        return Pager(query, scan, stats).pages(read, limit, most, part)
    returning = ReturningScan(snapshot, read.seqnos, begin, taken_back)
    stats = walk(store, query.channels, returning, on_corrupt)
    withdrawn = Withdrawn(begin, returning.withdrawn(query))
    return Pager(query, returning, stats).pages(read, limit, most, part, withdrawn)


def check_limit(limit: int | None) -> None:
    """Refuse a *limit* that no answer can have.

    Raises:
        ValueError: it is less than 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, must be at least 1")
