"""One reader of a real Redis, shared by the threads of a service as a web framework runs them."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import redis

from channelindex import ChangesReader, ReaderClosed, open_index
from channelindex.stores.pool import MAX_STORES
from tests.support.indexing import Row, SmallIndex

N_THREADS = 40
"""Those of Starlette's pool, in which FastAPI runs the functions of a service that are not async."""
N_CHANNELS = 10


@pytest.fixture
def index(redis_url: str) -> Iterator[SmallIndex]:
    with closing(SmallIndex(redis_url)) as made:
        epoch = made.begin()
        made.write(epoch, [Row(f"c{n % N_CHANNELS}", n % 4, n + 1, f"doc{n}") for n in range(200)])
        made.advance(epoch, {0: 197, 1: 198, 2: 199, 3: 200})
        yield made


def _page_through(reader: ChangesReader, channel: str) -> set[str]:
    seen: set[str] = set()
    since = None
    while True:
        page = reader.changes([channel], since, 3)
        seen |= {entry.id for entry in page.entries}
        since = page.since
        if not page.pending:
            return seen


def _n_clients(redis_url: str) -> int:
    with redis.Redis.from_url(redis_url) as client:
        return len(client.client_list())


def test_forty_threads_share_one_reader_and_each_gets_its_own_answers(redis_url: str, index: SmallIndex) -> None:
    n_before = _n_clients(redis_url)
    begun = threading.Barrier(N_THREADS)

    def serve(thread: int) -> None:
        begun.wait(30)
        for turn in range(5):
            number = (thread + turn) % N_CHANNELS
            assert _page_through(reader, f"c{number}") == {f"doc{n}" for n in range(number, 200, N_CHANNELS)}

    with open_index(redis_url, index.name) as reader, ThreadPoolExecutor(N_THREADS) as threads:
        for served in [threads.submit(serve, thread) for thread in range(N_THREADS)]:
            served.result(60)
        assert _n_clients(redis_url) - n_before <= MAX_STORES


def test_followers_in_forty_threads_wait_on_one_connection_and_all_are_woken(redis_url: str, index: SmallIndex) -> None:
    n_before = _n_clients(redis_url)
    begun = threading.Barrier(N_THREADS + 1)
    told = [threading.Event() for _ in range(N_THREADS)]

    def follow(thread: int) -> None:
        followed = reader.follow(["c0"], "now", stop=told[thread].is_set)
        begun.wait(30)
        for page in followed:
            assert [entry.id for entry in page.entries] == ["news"]
            told[thread].set()

    with open_index(redis_url, index.name) as reader, ThreadPoolExecutor(N_THREADS) as threads:
        followers = [threads.submit(follow, thread) for thread in range(N_THREADS)]
        begun.wait(30)
        seqno, deadline = 201, time.monotonic() + 60
        while not all(event.is_set() for event in told):  # some begin after the first
            assert time.monotonic() < deadline
            epoch = index.begin()
            index.write(epoch, [Row("c0", 0, seqno, "news")])
            index.advance(epoch, {0: seqno})
            seqno += 1
            assert _n_clients(redis_url) - n_before <= MAX_STORES + 2  # who waits has a subscription and a request
            time.sleep(0.05)
        for follower in followers:
            follower.result(60)


def test_a_reader_that_is_closed_ends_the_followers_of_all_threads(redis_url: str, index: SmallIndex) -> None:
    n_before = _n_clients(redis_url)
    with ThreadPoolExecutor(N_THREADS) as threads:
        reader = open_index(redis_url, index.name)
        begun = [threading.Event() for _ in range(8)]

        def follow(event: threading.Event) -> int:
            n_told = 0
            for page in reader.follow(["c0"]):
                n_told += len(page.entries)
                event.set()
            return n_told

        followers = [threads.submit(follow, event) for event in begun]
        assert all(event.wait(30) for event in begun)
        reader.close()
        assert [follower.result(30) for follower in followers] == [20] * len(begun)
    with pytest.raises(ReaderClosed):
        reader.changes(["c0"])
    deadline = time.monotonic() + 60
    while _n_clients(redis_url) > n_before:  # the server notices a moment after it
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_connections_that_broke_are_made_anew_for_all_threads(redis_url: str, index: SmallIndex) -> None:
    with open_index(redis_url, index.name, max_connections=2) as reader, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda _: reader.changes(["c0"]).entries, range(8)))
        with redis.Redis.from_url(redis_url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        assert all(threads.map(lambda _: reader.changes(["c0"]).entries, range(8)))
