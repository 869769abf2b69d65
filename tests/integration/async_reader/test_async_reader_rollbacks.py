"""What followers in asyncio are told, and read, when the source or the store goes back."""

from functools import partial

import pytest
import redis

from channelindex import open_async_index
from channelindex.model import DELETED, Checkpoint
from channelindex.reading import following, hub
from tests.support.async_followers import Told, Writer, all_have, cancel, run, until
from tests.support.indexing import Row, SmallIndex


def test_after_a_rollback_followers_receive_what_is_true_again(
    redis_url: str, index: SmallIndex, writer: Writer
) -> None:
    async def test() -> None:
        async with open_async_index(redis_url, index.name) as reader:
            followers = [Told(reader, ["b"]), Told(reader, ["b"], limit=1)]
            await until(lambda: all(len(each.documents) == 4 for each in followers))
            told = followers[0].documents["doc20"]
            writer.write(("b", "doc20", 0))
            await until(lambda: all(each.documents["doc20"] != told for each in followers))
            writer.roll_back(0, 1)
            await until(lambda: all(each.documents["doc20"] == told for each in followers))
            writer.write(("b", "doc24", 0))
            await until(lambda: all("doc24" in each.documents for each in followers))
            await cancel(*followers)

    run(test)


@pytest.mark.parametrize("rolls_back", [False, True])
def test_who_comes_back_to_where_the_hub_is_need_not_read(
    redis_url: str, index: SmallIndex, writer: Writer, monkeypatch: pytest.MonkeyPatch, rolls_back: bool
) -> None:
    async def test() -> None:
        async with open_async_index(redis_url, index.name) as reader:
            stays, leaves = Told(reader, ["b"]), Told(reader, ["a"])
            await until(partial(all_have, [stays, leaves], 1))
            if rolls_back:
                writer.roll_back(0, 1)
                await until(partial(all_have, [stays, leaves], 2))
            await cancel(leaves)
            n_pages = len(stays.pages)
            monkeypatch.setattr(following, "read_pages", None)  # from here on, all is in memory
            writer.write(("b", "doc20", 0), ("a", "doc1", 0))
            await until(partial(all_have, [stays], n_pages + 1))
            writer.write(("b", "doc21", 0))
            await until(partial(all_have, [stays], n_pages + 2))
            again, idle = Told(reader, ["a"], leaves.since), Told(reader, ["b"], stays.since)
            await until(lambda: again.pages == [["doc1"]])
            assert not idle.task.done()
            assert not idle.pages
            await cancel(stays, again, idle)

    run(test)


def test_who_leaves_deletions_out_receives_those_of_documents_that_are_streamed_again(
    redis_url: str, index: SmallIndex, writer: Writer
) -> None:
    """The vbucket stands at 0, as at the beginning, where a deletion is of nothing that the follower has."""

    def write(number: int, flags: int = 0) -> None:
        vb = number % 4
        writer.high[vb] += 1
        index.write(writer.epoch, [Row("a", vb, writer.high[vb], f"doc{number}", "9-aa", flags)])
        index.advance(writer.epoch, {vb: writer.high[vb]})

    async def test() -> None:
        async with open_async_index(redis_url, index.name) as reader:
            follower = Told(reader, ["a"], active_only=True)
            await until(lambda: len(follower.documents) == 20)
            index.owner.begin(0, index.owner.next_epoch(), "test", rollback={0: Checkpoint(snap_end=writer.high[0])})
            writer.epoch, writer.high[0] = index.begin(), 0
            for number in (102, 106):  # it reads by its token, then is told from memory
                write(number)
                await until(partial(follower.documents.__contains__, f"doc{number}"))
            write(4, DELETED)
            write(110)
            await until(lambda: "doc110" in follower.documents)
            assert "doc4" not in follower.documents
            await cancel(follower)

    run(test)


def test_what_a_store_has_to_make_stable_again_is_sent_then(
    redis_url: str, index: SmallIndex, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover has lost the newest stable clock, and nothing of the channel, which stays as the hub has noted it."""
    monkeypatch.setattr(hub, "WAIT_S", 0.02)  # the failover tells nobody

    async def test() -> None:
        async with open_async_index(redis_url, index.name) as reader:
            first = Told(reader, ["a"])
            await until(partial(all_have, [first], 1))
            index.write(writer.epoch, [Row("a", 1, writer.high[1] + 1, "doc101")])
            with redis.Redis.from_url(redis_url) as client:
                kept = {key: client.dump(key) for key in client.scan_iter(f"*{index.name}*")}
                index.advance(writer.epoch, {1: writer.high[1] + 1})
                await until(lambda: "doc101" in first.documents)
                with client.pipeline() as pipeline:
                    for key, value in kept.items():
                        pipeline.restore(key, 0, value, replace=True)
                    pipeline.execute()
            looked = reader._hub
            assert looked is not None
            await until(lambda: looked.view is not None and looked.view.snapshot.stable[1] == writer.high[1])
            second = Told(reader, ["a"])
            await until(partial(all_have, [second], 1))
            assert "doc101" not in second.documents
            index.advance(writer.epoch, {1: writer.high[1] + 1})
            await until(lambda: "doc101" in second.documents)
            await cancel(first, second)

    run(test)
