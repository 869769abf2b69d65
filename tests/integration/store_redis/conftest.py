"""Fixtures of tests of the Redis store: an index in the private Redis, and a client to look at its keys."""

from collections.abc import Iterator

import pytest
import redis

from tests.support.stores import META, Backend


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the private Redis."""
    with redis.Redis.from_url(redis_url) as opened:
        yield opened


@pytest.fixture
def backend(redis_url: str) -> Iterator[Backend]:
    """An index that has been created."""
    opened = Backend(redis_url)
    opened.owner().create_or_check(META)
    yield opened
    opened.close()
