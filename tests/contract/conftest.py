"""Every implementation of a contract, by name."""

import uuid
from collections.abc import Iterator

import pytest

from tests.support.stores import Backend

_URL_FIXTURES = {"redis": "redis_url", "cluster": "cluster_url", "couchbase": "couchbase_url"}


@pytest.fixture(params=["memory", *_URL_FIXTURES])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """An index of a new name, so that no store has to be emptied; each test runs once with every store."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue(_URL_FIXTURES[request.param])
    opened = Backend(url, f"test-{uuid.uuid4().hex}")
    yield opened
    opened.close()
