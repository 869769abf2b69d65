"""Followers in asyncio for tests, what they were told, and who writes what they are told."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress

from channelindex import AsyncChangesReader
from tests.support.indexing import Row, SmallIndex

DEADLINE_S = 60


class Writer:
    """Writes one document after the other, each stable at once."""

    def __init__(self, index: SmallIndex) -> None:
        self.index = index
        self.high = [0] * 4
        self.epoch = index.begin()

    def write(self, *rows: tuple[str, str, int]) -> None:
        """Each row: channel, document, flags. A document has its vbucket."""
        written: dict[int, int] = {}
        packed = []
        for channel, document, flags in rows:
            vb = int(document[3:]) % 4
            self.high[vb] += 1
            written[vb] = self.high[vb]
            packed.append(Row(channel, vb, self.high[vb], document, f"{self.high[vb]}-aa", flags))
        self.index.write(self.epoch, packed)
        self.index.advance(self.epoch, written)

    def roll_back(self, vb: int, n: int) -> None:
        self.high[vb] = max(0, self.high[vb] - n)
        self.epoch = self.index.begin(rollback={vb: self.high[vb]})
        self.index.advance(self.epoch, {vb: self.high[vb]})  # nobody is woken before the owner goes on


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run *test* in a loop of its own; nothing of it may be left."""

    async def main() -> None:
        await asyncio.wait_for(test(), DEADLINE_S)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main(), debug=False)


async def until(reached: Callable[[], bool]) -> None:
    while not reached():  # noqa: ASYNC110 what is waited for has no event; `run` has the deadline
        await asyncio.sleep(0.005)


class Told:
    """A follower's task, what it was told, page by page, and the documents that it has."""

    def __init__(self, reader: AsyncChangesReader, channels: list[str], since: str | None = None, **asked) -> None:
        self.channels = channels
        self.pages: list[list[str]] = []
        self.since = since
        self.documents: dict[str, str] = {}
        self.pause_s = 0.0
        self.task = asyncio.create_task(self._follow(reader, channels, asked))

    async def _follow(self, reader: AsyncChangesReader, channels: list[str], asked) -> None:
        async with aclosing(reader.follow(channels, self.since, **asked)) as followed:
            async for page in followed:
                self.pages.append([entry.id for entry in page.entries])
                for entry in page.entries:
                    self.documents.pop(entry.id, None)
                    if not (entry.deleted or entry.removed):
                        self.documents[entry.id] = entry.rev
                self.since = page.since
                await asyncio.sleep(self.pause_s)


def all_have(followers: list[Told], n_pages: int) -> bool:
    return all(len(follower.pages) >= n_pages for follower in followers)


async def cancel(*followers: Told) -> None:
    for follower in followers:
        follower.task.cancel()
    for follower in followers:
        with suppress(asyncio.CancelledError):
            await follower.task
