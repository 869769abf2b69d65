"""Every implementation of a contract, by name."""

from collections.abc import Iterator

import pytest

from tests.support.stores import Backend

_URL_FIXTURES = {"redis": "redis_url", "cluster": "cluster_url"}


@pytest.fixture(params=["memory", *_URL_FIXTURES])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """An index store that holds nothing yet; each test runs once with every store."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue(_URL_FIXTURES[request.param])
    opened = Backend(url)
    yield opened
    opened.close()
