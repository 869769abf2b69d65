"""Every implementation of a contract, by name."""

from collections.abc import Iterator

import pytest

from tests.support.stores import Backend


@pytest.fixture(params=["memory", "redis"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """An index store that holds nothing yet; each test runs once with every store."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_url")
    opened = Backend(url)
    yield opened
    opened.close()
