"""Fixtures of tests of the store in a bucket: an index, its keys and its connection."""

import uuid
from collections.abc import Iterator

import pytest

from channelindex.stores.couchbase.keys import Keys
from channelindex.stores.couchbase.link import Link
from tests.support.stores import Backend


@pytest.fixture
def backend(couchbase_url: str) -> Iterator[Backend]:
    """An index that nobody has created, under a name of its own."""
    opened = Backend(couchbase_url, f"test-{uuid.uuid4().hex}")
    yield opened
    opened.close()


@pytest.fixture
def keys(backend: Backend) -> Keys:
    """The keys of its documents."""
    return Keys(backend.index_name)


@pytest.fixture
def link(backend: Backend) -> Link:
    """A connection to look at its documents and to change them."""
    return backend.link()
