"""Shares the read half of an index among the threads of a process."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from channelindex.epochs import EpochStart, PartitionRecord
from channelindex.errors import ReaderClosed
from channelindex.model import IndexMeta
from channelindex.stores.base import BlockRef, ChannelState, ChannelWatch, IndexReader, Quarantined, StableView
from channelindex.timeline import Moment

MAX_STORES = 8
"""Requests at once, each on a connection of its own. More bring nothing: one interpreter decodes what they fetch."""


class ReaderPool:
    """`IndexReader` for any number of threads, made of ones that each serve one thread at a time.

    *open_store* makes one more than *first*; it is called when all that are there are in use, until there are
    *max_stores*. A request that finds them all in use waits for one. All who wait for the stable clock share one store
    more. None of this outlives a fork: a process opens its own.

    Raises:
        ValueError: *max_stores* is less than 1.
    """

    def __init__(self, open_store: Callable[[], IndexReader], max_stores: int, first: IndexReader) -> None:
        if max_stores < 1:
            raise ValueError(f"{max_stores} connections, must be at least 1")
        self._open_store = open_store
        self._changed = threading.Condition()
        self._idle = [first]
        self._n_free = max_stores
        self._is_closed = False
        self._wait = _SharedWait(open_store)

    def meta(self) -> IndexMeta:
        """See `IndexReader.meta`."""
        with self._lent() as store:
            return store.meta()

    def stable_view(self) -> StableView:
        """See `IndexReader.stable_view`."""
        with self._lent() as store:
            return store.stable_view()

    def partition_records(self, partitions: Sequence[int] | None = None) -> Sequence[PartitionRecord]:
        """See `IndexReader.partition_records`."""
        with self._lent() as store:
            return store.partition_records(partitions)

    def archived_starts(self, partitions: Sequence[int]) -> Sequence[Sequence[EpochStart]]:
        """See `IndexReader.archived_starts`."""
        with self._lent() as store:
            return store.archived_starts(partitions)

    def timelines(self, partitions: Sequence[int]) -> Sequence[Sequence[Moment]]:
        """See `IndexReader.timelines`."""
        with self._lent() as store:
            return store.timelines(partitions)

    def channels(self) -> Iterator[str]:
        """See `IndexReader.channels`. All are read before the first is returned, so that no caller keeps a store."""
        with self._lent() as store:
            return iter(list(store.channels()))

    def channel_states(self, channels: Sequence[str]) -> Sequence[ChannelState | None]:
        """See `IndexReader.channel_states`."""
        with self._lent() as store:
            return store.channel_states(channels)

    def mark(self, channel: str, state: ChannelState | None) -> bytes | None:
        """See `IndexReader.mark`."""
        with self._lent() as store:
            return store.mark(channel, state)

    def changed(self, marks: Sequence[bytes]) -> Sequence[bool]:
        """See `IndexReader.changed`."""
        with self._lent() as store:
            return store.changed(marks)

    def watch(self) -> ChannelWatch | None:
        """See `IndexReader.watch`. Its connection is none of the pool."""
        with self._lent() as store:
            return store.watch()

    def blocks(self, refs: Sequence[BlockRef]) -> Sequence[bytes | None]:
        """See `IndexReader.blocks`."""
        with self._lent() as store:
            return store.blocks(refs)

    def principal_counter(self, key: str) -> int:
        """See `IndexReader.principal_counter`."""
        with self._lent() as store:
            return store.principal_counter(key)

    def stable_counter(self) -> int:
        """See `IndexReader.stable_counter`."""
        with self._lent() as store:
            return store.stable_counter()

    def wait_stable(self, counter: int, timeout_s: float) -> int:
        """See `IndexReader.wait_stable`."""
        return self._wait.until_differs(counter, timeout_s)

    def quarantined(self, limit: int = 100) -> tuple[int, Sequence[Quarantined]]:
        """See `IndexReader.quarantined`."""
        with self._lent() as store:
            return store.quarantined(limit)

    def close(self) -> None:
        """Close what is idle now, and the rest as it is given back. May be called twice; who asks then is refused."""
        with self._changed:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for store in idle:
            store.close()
        self._wait.close()

    @contextmanager
    def _lent(self) -> Iterator[IndexReader]:
        store = self._take()
        try:
            yield store
        finally:
            self._give_back(store)

    def _take(self) -> IndexReader:
        with self._changed:
            self._changed.wait_for(lambda: self._n_free or self._is_closed)
            if self._is_closed:
                raise ReaderClosed
            self._n_free -= 1
            assert self._n_free >= len(self._idle) - 1, "an idle store is a free one"
            if self._idle:
                return self._idle.pop()
        try:
            return self._open_store()
        except BaseException:
            self._give_back(None)
            raise

    def _give_back(self, store: IndexReader | None) -> None:
        with self._changed:
            assert self._n_free >= 0
            self._n_free += 1
            is_closed = self._is_closed
            if store is not None and not is_closed:
                self._idle.append(store)
            self._changed.notify()
        if store is not None and is_closed:
            store.close()


class _SharedWait:
    """Waits for the stable clock on one store, however many threads want to know.

    One of them leads: it waits on the store, for as long as it wants to wait itself. The others wait for what it finds;
    when it has gone without news, one of them leads.
    """

    def __init__(self, open_store: Callable[[], IndexReader]) -> None:
        self._open_store = open_store
        self._changed = threading.Condition()
        self._store: IndexReader | None = None
        self._led_from: int | None = None  # the counter from which the leader waits; None: nobody leads
        self._found = 0
        self._n_found = 0
        self._is_closed = False

    def until_differs(self, counter: int, timeout_s: float) -> int:
        """See `IndexReader.wait_stable`; *counter* where nothing else is known in time."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            n_found = self._n_found
            while self._led_from is not None and not self._is_closed:
                if self._led_from != counter:
                    return self._led_from
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    return counter
                if self._n_found != n_found and self._found != counter:
                    return self._found
            if self._is_closed:
                raise ReaderClosed
            self._led_from = counter
        return self._lead(counter, max(0.0, deadline - time.monotonic()))

    def _lead(self, counter: int, timeout_s: float) -> int:
        assert self._led_from == counter, "one leads, and it is us"
        found = counter
        try:
            if self._store is None:
                self._store = self._open_store()
            found = self._store.wait_stable(counter, timeout_s)
        finally:
            with self._changed:
                self._led_from = None
                if found != counter:
                    self._found = found
                    self._n_found += 1
                if self._is_closed and self._store is not None:
                    self._store.close()
                self._changed.notify_all()
        return found

    def close(self) -> None:
        """Send all away who wait; who leads closes the store when it is done."""
        with self._changed:
            self._is_closed = True
            if self._led_from is None and self._store is not None:
                self._store.close()
            self._changed.notify_all()
