"""Followers in asyncio of an index that a real node writes, whose workers are killed meanwhile."""

import asyncio
from pathlib import Path

from channelindex import AsyncChangesReader, open_async_index
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.node import DEADLINE_S, Node
from tests.support.running import await_stable, connect, indexed_channels

SLICE = 200

Seen = dict[str, tuple[str, bool, bool]]
"""By document the last that was told of it: revision, removed, deleted."""


async def _follow(reader: AsyncChangesReader, channel: str, limit: int | None, seen: Seen) -> None:
    async for page in reader.follow([channel], limit=limit):
        seen.update({entry.id: (entry.rev, entry.removed, entry.deleted) for entry in page.entries})


def test_followers_end_with_the_newest_of_their_channels_though_workers_are_killed(
    tmp_path: Path, redis_url: str
) -> None:
    source = synthetic_revisions(seed=11, n_documents=300)

    async def watch(bucket: DevBucket, loader: Loader, node: Node) -> None:
        def write() -> None:
            loader.load([next(source) for _ in range(SLICE)])

        await asyncio.to_thread(write)
        await asyncio.to_thread(await_stable, redis_url, bucket)
        channels = sorted(indexed_channels(redis_url))
        async with open_async_index(redis_url) as reader, asyncio.TaskGroup() as tasks:
            seen: list[tuple[str, Seen]] = [(channel, {}) for channel in channels for _ in range(3)]
            followers = [
                tasks.create_task(_follow(reader, channel, (None, 7, 100)[number % 3], told))
                for number, (channel, told) in enumerate(seen)
            ]
            for role in ("feed_worker", "batch_writer"):
                await asyncio.to_thread(write)
                for child in node.children(role):
                    child.kill()
                await asyncio.to_thread(write)
            await asyncio.to_thread(await_stable, redis_url, bucket)
            expected = await asyncio.to_thread(indexed_channels, redis_url)
            for channel, told in seen:
                while {(document, *what) for document, what in told.items()} != expected[channel]:  # noqa: ASYNC110 no event tells it
                    await asyncio.sleep(0.02)
            for follower in followers:
                follower.cancel()

    with (
        DevBucket(DevBucketConfig(n_vbuckets=64)) as bucket,
        connect(bucket) as client,
        Node("n1", tmp_path, redis_url, bucket) as node,
    ):
        node.start()
        asyncio.run(asyncio.wait_for(watch(bucket, Loader(client, InlineLayout()), node), DEADLINE_S))
