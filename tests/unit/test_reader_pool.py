"""The stores that threads share: what fails gives its place back, and what is closed lets nobody wait."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from channelindex.errors import ReaderClosed, StoreUnavailable
from channelindex.stores.pool import ReaderPool

DEADLINE_S = 60.0


class Store:
    """The two calls of a store that the tests make. Each stays in it until `let_go`, with `is_slow`."""

    def __init__(self, *, is_slow: bool = False) -> None:
        self.n_closed = 0
        self.entered = threading.Semaphore(0)
        self._let_go = threading.Event()
        self._is_slow = is_slow

    def stable_counter(self) -> int:
        self._stay()
        return 7

    def wait_stable(self, counter: int, timeout_s: float) -> int:
        self._stay()
        return counter + 1

    def let_go(self) -> None:
        self._let_go.set()

    def close(self) -> None:
        self.n_closed += 1

    def _stay(self) -> None:
        assert not self.n_closed
        self.entered.release()
        assert not self._is_slow or self._let_go.wait(DEADLINE_S)


def _pool(first: Any, *more: Any, max_stores: int = 2) -> ReaderPool:
    opened = iter(more)

    def open_store() -> Any:
        store = next(opened)
        if isinstance(store, Exception):
            raise store
        return store

    return ReaderPool(open_store, max_stores, first)


def _begin(threads: ThreadPoolExecutor, call: Callable[[], int], store: Store) -> Future[int]:
    """Start *call* in a thread, and wait until it is in *store*."""
    begun = threads.submit(call)
    assert store.entered.acquire(timeout=DEADLINE_S)
    return begun


def test_a_store_that_cannot_be_opened_leaves_its_place_to_the_next_request() -> None:
    first, second = Store(is_slow=True), Store()
    pool = _pool(first, StoreUnavailable("away"), second)
    with ThreadPoolExecutor(1) as threads:
        slow = _begin(threads, pool.stable_counter, first)
        try:
            with pytest.raises(StoreUnavailable):
                pool.stable_counter()
            assert pool.stable_counter() == 7
            assert second.entered.acquire(blocking=False)
        finally:
            first.let_go()
        assert slow.result(DEADLINE_S) == 7


def test_a_store_that_is_in_use_while_the_pool_closes_is_closed_when_it_is_given_back() -> None:
    first = Store(is_slow=True)
    pool = _pool(first)
    with ThreadPoolExecutor(1) as threads:
        slow = _begin(threads, pool.stable_counter, first)
        try:
            pool.close()
            assert first.n_closed == 0
        finally:
            first.let_go()
        assert slow.result(DEADLINE_S) == 7
    assert first.n_closed == 1
    with pytest.raises(ReaderClosed):
        pool.stable_counter()
    pool.close()
    assert first.n_closed == 1


def test_a_request_that_waits_for_a_store_is_refused_when_the_pool_closes() -> None:
    first = Store(is_slow=True)
    pool = _pool(first, max_stores=1)
    with ThreadPoolExecutor(2) as threads:
        slow = _begin(threads, pool.stable_counter, first)
        try:
            waiting = threads.submit(pool.stable_counter)
            pool.close()
            with pytest.raises(ReaderClosed):
                waiting.result(DEADLINE_S)
        finally:
            first.let_go()
        assert slow.result(DEADLINE_S) == 7


def test_who_leads_a_wait_closes_its_store_after_the_pool_and_those_who_wait_with_it_are_refused() -> None:
    first, leading = Store(), Store(is_slow=True)
    pool = _pool(first, leading)
    with ThreadPoolExecutor(2) as threads:
        leader = _begin(threads, lambda: pool.wait_stable(3, DEADLINE_S), leading)
        try:
            other = threads.submit(pool.wait_stable, 3, DEADLINE_S)
            pool.close()
            with pytest.raises(ReaderClosed):
                other.result(DEADLINE_S)
            assert (first.n_closed, leading.n_closed) == (1, 0)
        finally:
            leading.let_go()
        assert leader.result(DEADLINE_S) == 4
    assert leading.n_closed == 1


def test_a_wait_whose_store_cannot_be_opened_lets_the_next_one_lead() -> None:
    store = Store()
    pool = _pool(Store(), StoreUnavailable("away"), store)
    with pytest.raises(StoreUnavailable):
        pool.wait_stable(3, DEADLINE_S)
    assert pool.wait_stable(3, DEADLINE_S) == 4


def test_who_waits_from_another_counter_than_the_one_that_leads_knows_at_once_that_it_has_moved() -> None:
    leading = Store(is_slow=True)
    pool = _pool(Store(), leading)
    with ThreadPoolExecutor(1) as threads:
        leader = _begin(threads, lambda: pool.wait_stable(4, DEADLINE_S), leading)
        try:
            assert pool.wait_stable(3, DEADLINE_S) == 4
            assert pool.wait_stable(4, 0.0) == 4, "nothing else is known in time"
        finally:
            leading.let_go()
        assert leader.result(DEADLINE_S) == 5


def test_a_pool_has_room_for_one_store_at_least() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        _pool(Store(), max_stores=0)
