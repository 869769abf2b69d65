"""A program that opens feeds without end, all with one token: it is refused, and keeps nobody else out."""

import asyncio
import re
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

import psutil
import pytest

from tests.support.node import until
from tests.support.running import cli
from tests.support.served import Documents, Service
from workers.serving.descriptors import SPARE

pytestmark = pytest.mark.real_start

AT_ONCE = 100
KB_PER_CONNECTION = 50
BASE_MB = 60
"""What a service may take more than before: for each connection, and in any case."""
SPARE_DESCRIPTORS = 200


class Connection(asyncio.Protocol):
    """Asks one thing, and keeps what is answered."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.received = b""
        self.has_begun = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.WriteTransport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.has_begun.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.has_begun.set()

    @property
    def status(self) -> str:
        """The status of its answer; empty where it was hung up on."""
        return self.received[9:12].decode()


class Crowd:
    """Connections of one token, until the end of the context."""

    def __init__(self, service: Service, token: str) -> None:
        self._port = service.port
        path = f"/{service.db}/_changes?channels=a&feed=continuous&since=now&heartbeat=60000"
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        self._transports: list[asyncio.BaseTransport] = []
        self.connections: list[Connection] = []

    async def come(self, n: int) -> None:
        for start in range(0, n, AT_ONCE):
            await asyncio.gather(*[self._connect() for _ in range(min(AT_ONCE, n - start))])

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(lambda: Connection(self._request), "127.0.0.1", self._port)
        self._transports.append(transport)
        self.connections.append(connection)
        await connection.has_begun.wait()

    async def leave(self) -> None:
        for transport in self._transports:
            cast("asyncio.WriteTransport", transport).abort()
        await asyncio.sleep(0)


@contextmanager
def descriptors(n: int) -> Iterator[None]:
    """Let this process, and what it starts, have *n*."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(n, before[0]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def _come_true(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached():  # noqa: ASYNC110 it has no event
            await asyncio.sleep(0.02)


def test_a_service_with_few_descriptors_serves_as_many_as_it_has_and_refuses_the_others(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = tmp_path / "limited"
    limited.write_text(f'#!/bin/sh\nulimit -S -n 64\nulimit -H -n {SPARE + 40}\nexec "{sys.executable}" "$@"\n')
    limited.chmod(0o755)
    with closing(Documents(redis_url)) as documents, monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(limited))
        with Service(tmp_path, redis_url, documents.index.name).start() as service:
            assert re.search("event=serve.few_descriptors .* connections=40 ", service.log.read_text())

            async def test() -> None:
                crowd = Crowd(service, "none")
                await crowd.come(60)
                assert Counter(each.status for each in crowd.connections) == {"200": 40, "503": 20}
                await crowd.leave()

            asyncio.run(test())
            until(lambda: service.ask("GET", "/").status == 200, "connections to be free again")


@pytest.mark.parametrize("n", [200, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_a_crowd_with_one_token_is_refused_and_disturbs_nobody(tmp_path: Path, redis_url: str, n: int) -> None:
    tokens, most = tmp_path / "tokens", n // 10
    crowd_token, other_token = [
        cli("token", "new", name, "--file", tokens, "--channels", "a").stdout.strip() for name in ("crowd", "other")
    ]
    settings = {"serve_tokens_file": tokens, "serve_max_feeds_per_token": most}
    with (
        descriptors(n + SPARE_DESCRIPTORS),
        closing(Documents(redis_url)) as documents,
        Service(tmp_path, redis_url, documents.index.name, **settings).start() as service,
    ):
        documents.write(("a", "doc1", 0))

        def megabytes() -> float:
            return psutil.Process(service.pid).memory_info().rss / 1e6

        async def test() -> None:
            before = megabytes()
            crowd = Crowd(service, crowd_token)
            await crowd.come(n)
            try:
                assert Counter(each.status for each in crowd.connections) == {"200": most, "429": n - most}
                refused = [each for each in crowd.connections if each.status == "429"]
                await _come_true(lambda: all(b"too_many_requests" in each.received for each in refused))
                assert megabytes() - before < BASE_MB + n * KB_PER_CONNECTION / 1000
                other = Crowd(service, other_token)
                await other.come(1)
                answer = await asyncio.to_thread(service.changes, token=other_token, channels="a")
                assert [row["id"] for row in answer.json["results"]] == ["doc1"]
                await asyncio.to_thread(documents.write, ("a", "doc2", 0))
                told = [each for each in (*crowd.connections, *other.connections) if each.status == "200"]
                await _come_true(lambda: all(b'"doc2"' in each.received for each in told))
                await other.leave()
            finally:
                await crowd.leave()

        asyncio.run(test())
        until(
            lambda: service.changes(token=crowd_token, channels="a", feed="longpoll").status == 200,
            "its feeds to be free again",
        )
