"""What a service remembers of the answers that it has written: the newest, so many and of so many bytes."""

import pytest

from channelindex.reading.block_walk import NOTHING_READ
from channelindex.reading.hub import Kept
from channelindex.reading.paging import Change, Changes
from workers.serving.request import FeedKind
from workers.serving.rows import MAX_RENDERED, MAX_RENDERED_BYTES, ChunkCache

FEED = FeedKind.CONTINUOUS
MIB = 1 << 20


def news(size: int) -> Kept:
    """One document whose row has a little more than *size* bytes."""
    change = Change("x" * size, "1-aa", 1, 0, deleted=False, removed=False, flags=0, channels=("a",))
    return Kept("before", [Changes((change,), "after", 0, NOTHING_READ)], 0.0)


@pytest.mark.parametrize(
    ("size", "n_remembered"),
    [(10, MAX_RENDERED), (MIB, MAX_RENDERED_BYTES // MIB - 1), (MAX_RENDERED_BYTES, 1)],
    ids=["small", "large", "larger than all may be"],
)
def test_the_newest_are_remembered_until_they_are_too_many_or_too_large(size: int, n_remembered: int) -> None:
    cache, told = ChunkCache(), [news(size) for _ in range(n_remembered + 1)]
    made = [cache.chunk_of(each, FEED) for each in told]
    newest = list(zip(told, made, strict=True))[1:]
    assert all(cache.chunk_of(kept, FEED) is chunk for kept, chunk in newest)
    assert cache.chunk_of(told[0], FEED) is not made[0], "it was forgotten"
