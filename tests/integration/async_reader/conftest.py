"""A small index with some documents, and who writes more."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.async_followers import Writer
from tests.support.indexing import SmallIndex


@pytest.fixture
def index(redis_url: str) -> Iterator[SmallIndex]:
    with closing(SmallIndex(redis_url, block_bytes=400)) as made:
        yield made


@pytest.fixture
def writer(index: SmallIndex) -> Writer:
    made = Writer(index)
    made.write(*[("a", f"doc{n}", 0) for n in range(20)], *[("b", f"doc{n}", 0) for n in range(20, 24)])
    return made
