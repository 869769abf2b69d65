"""`python -m benchmarks.serve`: what followers over HTTP cost one `channelindex serve`.

One service, one private Redis, one small index, and all clients in another process, which shares the machine's cores
with them. Prints a line a figure: the service's memory and CPU with idle followers, how long a write takes to the
first, the middle and the last follower of one hot channel, Redis' commands per write, and the pace of a first read.
"""

import argparse
import asyncio
import os
import resource
import tempfile
import time
from contextlib import closing
from pathlib import Path

import psutil
import redis

from devbucket.embedded_redis import EmbeddedRedis
from tests.support.served import Documents, Service

IDLE_S = 10.0
WRITES = 10
ROWS = 100_000
BATCH = 5_000
CONNECT_AT_ONCE = 200


class Client(asyncio.Protocol):
    """One follower: `rows_at` has when each row of a live feed came, monotonic."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.has_begun = asyncio.Event()
        self.rows_at: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count rows."""
        self.has_begun.set()
        now = time.monotonic()
        self.rows_at += [now] * data.count(b'"seq"')


async def connected(port: int, path: str, n: int) -> list[Client]:
    """*n* clients whose answers have begun."""
    loop = asyncio.get_running_loop()
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    clients: list[Client] = []
    while len(clients) < n:
        pairs = [loop.create_connection(lambda: Client(request), "127.0.0.1", port) for _ in range(CONNECT_AT_ONCE)]
        new = [client for _, client in await asyncio.gather(*pairs)]
        await asyncio.gather(*(client.has_begun.wait() for client in new))
        clients += new
    return clients


def cpu_s(service: psutil.Process) -> float:
    """CPU seconds of the service so far."""
    times = service.cpu_times()
    return times.user + times.system


async def measure_followers(service: Service, documents: Documents, url: str, n: int) -> None:
    """*n* followers each of a longpoll of a quiet channel and a continuous feed of a hot one."""
    process = psutil.Process(service.pid)
    began = time.monotonic()
    path = f"/{service.db}/_changes?since=now&heartbeat=60000"
    hot = await connected(service.port, f"{path}&feed=continuous&channels=hot", n)
    await connected(service.port, f"{path}&feed=longpoll&channels=quiet", n)
    print(f"connected {2 * n} followers in {time.monotonic() - began:.1f} s")
    before = cpu_s(process)
    await asyncio.sleep(IDLE_S)
    idle = 100 * (cpu_s(process) - before) / IDLE_S
    print(f"idle: {process.memory_info().rss / 1e6:.0f} MB resident, {idle:.1f} % of a core")
    with redis.Redis.from_url(url) as client:
        await write_hot(documents, hot)
        firsts, middles, lasts, commands = [], [], [], []
        for _ in range(WRITES):
            n_before = int(client.info("stats")["total_commands_processed"])
            firsts_, middle, last = await write_hot(documents, hot)
            firsts.append(firsts_)
            middles.append(middle)
            lasts.append(last)
            commands.append(int(client.info("stats")["total_commands_processed"]) - n_before)
    for name, seconds in (("first", firsts), ("p50", middles), ("last", lasts)):
        print(f"write to {name} follower of {n}: {1000 * sorted(seconds)[WRITES // 2]:.0f} ms")
    print(f"Redis commands per write, its own among them: {sorted(commands)[WRITES // 2]}")


async def write_hot(documents: Documents, hot: list[Client]) -> tuple[float, float, float]:
    """Write one document; seconds until the first, the middle and the last client had it."""
    n_rows = [len(client.rows_at) for client in hot]
    began = time.monotonic()
    await asyncio.to_thread(documents.write, ("hot", "doc1", 0))
    while any(len(client.rows_at) == before for client, before in zip(hot, n_rows, strict=True)):  # noqa: ASYNC110 each is looked at
        await asyncio.sleep(0.02)
    took = sorted(client.rows_at[before] - began for client, before in zip(hot, n_rows, strict=True))
    return took[0], took[len(took) // 2], took[-1]


def measure_first_read(service: Service, documents: Documents, n_rows: int) -> None:
    """A first read of a channel with *n_rows* documents."""
    for start in range(0, n_rows, BATCH):
        documents.write(*[("big", f"doc{number}", 0) for number in range(start, start + BATCH)])
    process = psutil.Process(service.pid)
    before = process.memory_info().rss
    began = time.monotonic()
    answer = service.changes(channels="big")
    took = time.monotonic() - began
    rows = answer.body.count(b"\n{")
    assert rows == n_rows
    grown = (process.memory_info().rss - before) / 1e6
    print(f"first read of {rows} rows: {took:.2f} s, {rows / took:,.0f} rows/s, {grown:.0f} MB more")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--followers", type=int, default=5_000, help="of each kind (default: 5000)")
    parser.add_argument("--rows", type=int, default=ROWS, help="of the first read (default: 100000)")
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(f"load of the machine before: {os.getloadavg()[0]:.1f}, descriptors {soft} → {hard}")
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedRedis() as store,
        closing(Documents(store.url)) as documents,
        Service(Path(folder), store.url, documents.index.name, serve_max_connections=1_000_000) as service,
    ):
        documents.write(("hot", "doc1", 0))
        service.start()
        measure_first_read(service, documents, args.rows)
        asyncio.run(measure_followers(service, documents, store.url, args.followers))


if __name__ == "__main__":
    main()
