"""Fixtures of tests without a process: a small index in memory, and a reader of it."""

from collections.abc import Iterator

import pytest

from channelindex.reading.changes_reader import ChangesReader
from tests.support.indexing import SmallIndex


@pytest.fixture
def index() -> Iterator[SmallIndex]:
    """An index without entries."""
    small = SmallIndex()
    yield small
    small.close()


@pytest.fixture
def reader(index: SmallIndex) -> ChangesReader:
    """A reader that remembers nothing yet."""
    return ChangesReader(index.reader)
