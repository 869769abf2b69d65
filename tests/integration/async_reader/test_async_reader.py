"""Followers in asyncio: what each is told, what all of them cost, and how they end."""

import asyncio
import threading
from contextlib import aclosing, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from channelindex import AsyncChangesReader, ChangesReader, IndexMissing, TokenFile, open_async_index, open_index
from channelindex.errors import IndexCorrupt, ReaderClosed, TokenAhead, TokenInvalid
from channelindex.model import DELETED, REMOVED
from channelindex.reading import following, hub
from channelindex.stores.redis.keys import Keys
from tests.support.async_followers import Told, Writer, all_have, cancel, run, until
from tests.support.indexing import SmallIndex
from tests.support.profiles import examples


def test_followers_receive_what_is_there_and_what_comes(redis_url: str, index: SmallIndex, writer: Writer) -> None:
    async def test() -> None:
        async with open_async_index(redis_url, index.name) as reader:
            everything, limited = Told(reader, ["a", "b"]), Told(reader, ["b"], limit=3)
            await until(lambda: len(everything.documents) == 24 and len(limited.pages) == 2)
            writer.write(("b", "doc50", 0), ("b", "doc51", 0))
            writer.write(("b", "doc20", DELETED), ("a", "doc1", REMOVED))
            await until(
                lambda: {"doc50", "doc51"} <= everything.documents.keys() and "doc1" not in everything.documents
            )
            await until(lambda: "doc20" not in limited.documents and len(limited.documents) == 5)
            assert len(everything.documents) == 24
            assert everything.documents == await documents(reader, ["a", "b"])
            await cancel(everything, limited)

    run(test)


async def documents(reader: AsyncChangesReader, channels: list[str]) -> dict[str, str]:
    page = await reader.changes(channels, active_only=True)
    return {entry.id: entry.rev for entry in page.entries}


def test_pages_filters_and_tokens_are_those_of_the_blocking_reader(
    redis_url: str, index: SmallIndex, writer: Writer
) -> None:
    async def test() -> None:
        with open_index(redis_url, index.name) as blocking:
            async with open_async_index(redis_url, index.name) as reader:
                pages = [page async for page in reader.pages(["a"], limit=7)]
                assert pages == list(blocking.pages(["a"], limit=7))
                only = await reader.changes(["a"], None, doc_ids=["doc3", "doc20"])
                assert [entry.id for entry in only.entries] == ["doc3"]
                follower = Told(reader, ["a"], blocking.changes(["a"], limit=15).since, doc_ids=None)
                await until(lambda: bool(follower.pages))
                assert len(follower.documents) == 5
                writer.write(("a", "doc99", 0))
                await until(lambda: len(follower.pages) == 2)
                assert blocking.changes(["a"], follower.since).entries == ()
                with pytest.raises(TokenInvalid, match="other channels"):
                    await anext(reader.follow(["b"], follower.since))
                with pytest.raises(TypeError, match=r"write \['a'\]"):
                    reader.follow("a")
                await cancel(follower)

    run(test)


def _n_commands(client: redis.Redis) -> int:
    return int(client.info("stats")["total_commands_processed"])


@pytest.mark.parametrize("n_followers", [3, 300])
def test_any_number_of_followers_costs_one_look_per_wake_and_shares_one_token(
    redis_url: str, index: SmallIndex, writer: Writer, n_followers: int
) -> None:
    n_wakes = 20

    async def test() -> None:
        with redis.Redis.from_url(redis_url) as client:
            n_clients = len(client.client_list())
            async with open_async_index(redis_url, index.name) as reader:
                followers = [Told(reader, ["a"], "now") for _ in range(n_followers)]
                idle = [Told(reader, ["b"], "now") for _ in range(n_followers)]
                await until(lambda: reader._hub is not None and reader._hub.view is not None)
                begun: set[int] = set()
                while len(begun) < n_followers:  # a first change that all see: they are where the hub is
                    writer.write(("a", "doc1", 0))
                    await asyncio.sleep(0.02)
                    begun = {number for number, each in enumerate(followers) if each.pages}
                before = _n_commands(client)
                for number in range(n_wakes):
                    n_pages = min(len(each.pages) for each in followers)
                    writer.write(("a", f"doc{100 + number}", 0))
                    await until(partial(all_have, followers, n_pages + 1))
                cost = (_n_commands(client) - before) / n_wakes
                assert cost < 60, "the writer's are among them; a look of 300 followers each would be 3,000"
                assert len(client.client_list()) - n_clients <= 8 + 3
                assert len({each.since for each in followers}) == 1
                assert all(not each.pages for each in idle)
                await cancel(*followers, *idle)

    run(test)


def test_who_is_a_few_wakes_behind_is_answered_from_memory_with_the_newest_of_all(
    redis_url: str, index: SmallIndex, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        with open_index(redis_url, index.name) as blocking:
            async with open_async_index(redis_url, index.name) as reader:
                quick = Told(reader, ["b", "a"])
                async with aclosing(reader.follow(["b", "a"])) as slow:
                    since = (await anext(slow)).since
                    await until(partial(all_have, [quick], 1))
                    monkeypatch.setattr(following, "read_pages", None)  # from here on, all is in memory
                    wakes = [("b", "doc20", 0), ("a", "doc1", DELETED), ("b", "doc21", 0), ("b", "doc20", REMOVED)]
                    for n_before, row in enumerate(wakes, start=1):
                        writer.write(row)
                        await until(partial(all_have, [quick], n_before + 1))
                    assert quick.pages[1:] == [["doc20"], ["doc1"], ["doc21"], ["doc20"]]
                    page, asked = await anext(slow), blocking.changes(["b", "a"], since)
                    assert page._replace(stats=asked.stats) == asked, "what the blocking reader says of all of it"
                    assert len(page.entries) == 3
                await cancel(quick)

    run(test)


def test_a_consumer_goes_on_after_the_page_that_it_has_dealt_with(
    redis_url: str, index: SmallIndex, writer: Writer, tmp_path: Path
) -> None:
    kept = TokenFile(tmp_path / "orders.since")

    async def take(n_pages: int, since: str | None = None, **asked: Any) -> list[list[str]]:
        """So many pages; the last one is not dealt with."""
        told: list[list[str]] = []
        async with (
            open_async_index(redis_url, index.name) as reader,
            aclosing(reader.consume(["a"], kept, since, **asked)) as pages,
        ):
            async for page in pages:
                told.append([entry.id for entry in page.entries])
                if len(told) == n_pages:
                    break
        return told

    async def test() -> None:
        first = await take(2, limit=8)
        assert [len(page) for page in first] == [8, 8]
        again = await take(2, limit=8)
        assert (again[0], len(again[1])) == (first[1], 4)
        writer.write(("a", "doc40", 0))
        assert sorted((await take(1))[0]) == sorted([*again[1], "doc40"])

    run(test)


def test_now_stays_the_same_now_for_a_consumer_that_starts_again(
    redis_url: str, index: SmallIndex, writer: Writer, tmp_path: Path
) -> None:
    kept = TokenFile(tmp_path / "orders.since")

    async def test() -> None:
        async with open_async_index(redis_url, index.name) as reader:
            waiting = asyncio.ensure_future(anext(reader.consume(["a"], kept, "now")))
            await until(lambda: kept.load() is not None)
            waiting.cancel()
            with suppress(asyncio.CancelledError):
                await waiting
            writer.write(("a", "doc3", 0))
            page = await anext(reader.consume(["a"], kept, "now"))
            assert [entry.id for entry in page.entries] == ["doc3"]

    run(test)


def test_a_slow_reader_holds_up_nobody_and_receives_the_newest(
    redis_url: str, index: SmallIndex, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MOST_LOOKS", 3)

    async def test() -> None:
        async with open_async_index(redis_url, index.name) as reader:
            slow, quick = Told(reader, ["b"]), Told(reader, ["b"])
            slow.pause_s = 3600
            await until(lambda: len(slow.documents) == len(quick.documents) == 4)
            for _ in range(10):
                n_pages = len(quick.pages)
                writer.write(("b", "doc20", 0))
                await until(partial(all_have, [quick], n_pages + 1))
            assert len(slow.pages) == 1
            again = Told(reader, ["b"], slow.since)  # what it does once it is awake: its place is its token
            await until(lambda: bool(again.pages))
            assert again.pages == [["doc20"]]
            assert again.documents.items() <= quick.documents.items()
            await cancel(slow, quick, again)

    run(test)


def test_a_cancelled_follower_leaves_nothing_behind_and_others_go_on(
    redis_url: str, index: SmallIndex, writer: Writer
) -> None:
    async def test() -> None:
        async with open_async_index(redis_url, index.name) as reader:
            stays = Told(reader, ["b"])
            for turn in range(40):  # at each step of what it does
                follower = Told(reader, ["a", "b"], limit=5)
                for _ in range(turn):
                    await asyncio.sleep(0)
                await cancel(follower)
            await until(lambda: len(stays.documents) == 4)
            assert reader._hub is not None
            assert set(reader._hub._followers_by_channel) == {"b"}
            writer.write(("b", "doc60", 0))
            await until(lambda: "doc60" in stays.documents)
            assert len((await reader.changes(["a"])).entries) == 20
            await cancel(stays)
            assert not reader._hub._followers_by_channel
            assert not reader._hub._late

    run(test)


def test_nobody_looks_at_an_index_that_nobody_follows(redis_url: str, index: SmallIndex, writer: Writer) -> None:
    async def test() -> None:
        async with open_async_index(redis_url, index.name) as reader:
            first = Told(reader, ["b"])
            await until(lambda: bool(first.pages))
            await cancel(first)
            assert reader._hub is not None
            is_followed: Any = reader._hub._is_followed
            writer.write(("b", "doc70", 0))  # a wait that was under way may see it
            await until(lambda: bool(is_followed._waiters))
            seen = reader._hub.view
            writer.write(("b", "doc71", 0))
            await asyncio.sleep(0.1)
            assert reader._hub.view is seen
            assert is_followed._waiters
            again = Told(reader, ["b"], first.since)
            await until(lambda: {"doc70", "doc71"} <= again.documents.keys())
            writer.write(("b", "doc72", 0))
            await until(lambda: "doc72" in again.documents)
            await cancel(again)

    run(test)


def test_closing_ends_all_followers_and_their_connections(redis_url: str, index: SmallIndex, writer: Writer) -> None:
    async def test() -> None:
        with redis.Redis.from_url(redis_url) as client:
            n_clients = len(client.client_list())
            reader = open_async_index(redis_url, index.name)
            followers = [Told(reader, ["a"]) for _ in range(5)]
            await until(lambda: all(each.pages for each in followers))
            await reader.close()
            await reader.close()
            await asyncio.gather(*[each.task for each in followers])
            with pytest.raises(ReaderClosed):
                await reader.changes(["a"])
            with pytest.raises(ReaderClosed):
                await anext(reader.follow(["a"]))
            await until(lambda: len(client.client_list()) == n_clients)
            assert not [thread for thread in threading.enumerate() if thread.name.startswith("channelindex-")]

    run(test)


def test_followers_outlive_connections_that_break_and_miss_nothing(
    redis_url: str, index: SmallIndex, writer: Writer
) -> None:
    async def test() -> None:
        with redis.Redis.from_url(redis_url) as client:
            writers = {each["id"] for each in client.client_list()}  # one who writes gives up when it is cut off
            async with open_async_index(redis_url, index.name) as reader:
                followers = [Told(reader, ["a", "b"]) for _ in range(10)]
                await until(lambda: all(len(each.documents) == 24 for each in followers))
                for number in range(5):
                    for each in client.client_list():
                        if each["id"] not in writers:
                            client.client_kill_filter(_id=each["id"])
                    writer.write(("a", f"doc{200 + number}", 0))
                await until(lambda: all(len(each.documents) == 29 for each in followers))
                await cancel(*followers)

    run(test)


def test_an_index_that_is_missing_or_behind_is_an_error_to_each(
    redis_url: str, index: SmallIndex, writer: Writer
) -> None:
    async def test() -> None:
        async with open_async_index(redis_url, "absent") as reader:
            for _ in range(2):
                with pytest.raises(IndexMissing):
                    await anext(reader.follow(["a"]))
        async with open_async_index(redis_url, index.name) as reader:
            ahead = (await reader.changes(["a"])).since
            with redis.Redis.from_url(redis_url) as client:
                before = client.dump(Keys(index.name).partition(0))
                writer.write(("a", "doc0", 0), ("a", "doc1", 0))
                ahead = (await reader.changes(["a"])).since
                client.restore(Keys(index.name).partition(0), 0, before, replace=True)
            with pytest.raises(TokenAhead):
                await anext(reader.follow(["a"], ahead, behind_s=0.05))

    run(test)


def test_who_read_after_the_hub_looked_follows_at_once(redis_url: str, index: SmallIndex, writer: Writer) -> None:
    async def test() -> None:
        async with open_async_index(redis_url, index.name) as reader:
            first = Told(reader, ["b"])
            await until(lambda: bool(first.pages))
            writer.epoch = index.begin()  # which wakes nobody
            since = (await reader.changes(["a"])).since
            later = Told(reader, ["a"], since, behind_s=0)
            await until(lambda: reader._hub is not None and reader._hub._n_followers == 2)
            await asyncio.sleep(0.05)
            assert not later.task.done()
            writer.write(("a", "doc7", 0))
            await until(lambda: later.documents.keys() == {"doc7"})
            await cancel(first, later)

    run(test)


def test_a_damaged_channel_fails_its_own_followers_alone(redis_url: str, index: SmallIndex, writer: Writer) -> None:
    async def test() -> None:
        async with open_async_index(redis_url, index.name) as reader:
            whole, damaged = Told(reader, ["a"]), Told(reader, ["b"])
            await until(lambda: bool(whole.pages and damaged.pages))
            with redis.Redis.from_url(redis_url) as client:
                for key in client.scan_iter("*:b:*b"):  # the blocks of the channel b
                    client.append(key, b"garbage")
            while not damaged.task.done():
                writer.write(("a", "doc300", 0))
                await asyncio.sleep(0.02)
            with pytest.raises(IndexCorrupt):
                await damaged.task
            writer.write(("a", "doc301", 0))
            await until(lambda: "doc301" in whole.documents)
            await cancel(whole)

    run(test)


ROW = st.tuples(st.sampled_from("ab"), st.sampled_from([f"doc{n}" for n in range(6)]), st.sampled_from([0, 0, 1, 2]))
STEP = st.one_of(
    st.lists(ROW, min_size=1, max_size=4),
    st.tuples(st.integers(0, 3), st.integers(1, 3)),  # a rollback
    st.sampled_from(["join", "leave", "settle"]),
)


@pytest.mark.hypothesis
@given(st.lists(STEP, max_size=20), st.sampled_from([0, 3, 1000]))
@settings(max_examples=examples(2))
def test_all_followers_end_with_what_the_index_says(steps, kept_entries: int) -> None:
    """Through changes and rollbacks, from memory and by token; whether they keep up or not."""

    async def test() -> None:
        with closing(SmallIndex()) as index:
            writer, plain = Writer(index), ChangesReader(index.reader)
            asked: list[tuple[list[str], dict[str, Any]]] = [
                (["a"], {}),
                (["a", "b"], {"limit": 2}),
                (["b"], {"active_only": True}),
                (["b", "a"], {}),
            ]

            def settled(follower: Told) -> bool:
                if follower.task.done():
                    follower.task.result()
                entries = plain.changes(follower.channels).entries
                gone = {entry.id for entry in entries if entry.deleted or entry.removed}
                live = {entry.id: entry.rev for entry in entries if entry.id not in gone}
                return live.items() <= follower.documents.items() and not gone & follower.documents.keys()

            async with AsyncChangesReader(index.reader, 4, kept_entries) as reader:
                followers: list[Told] = []

                def join() -> None:
                    channels, more = asked[len(followers) % len(asked)]
                    followers.append(Told(reader, channels, **more))

                join()
                for step in steps:
                    if step == "join" and len(followers) < 8:
                        join()
                    elif step == "leave" and len(followers) > 1:
                        await cancel(followers.pop())
                    elif isinstance(step, list):
                        writer.write(*step)
                        await asyncio.sleep(0)
                    elif isinstance(step, tuple):
                        writer.roll_back(*step)
                    else:
                        await until(lambda: all(map(settled, followers)))
                await until(lambda: all(map(settled, followers)))
                await cancel(*followers)

    with mock.patch.object(hub, "WAIT_S", 0.02):  # closing takes that long, in each example
        run(test)
