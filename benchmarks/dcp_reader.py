"""The feed against a reader that only counts bytes: what parsing costs beyond what the kernel's sockets do.

    python -m benchmarks.dcp_reader [--documents 200000] [--case c100 …]

Both read the same documents from the same dev bucket, which is what is slow: so CPU per document is what to look at.
The counting reader opens its streams with a feed, then takes over that feed's socket; it acknowledges nothing, because
the source may send it all at once. What both spend until the first documents come is not counted.
"""

import argparse
import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES, Case
from benchmarks.throughput import loaded
from channelindex import kernel
from channelindex.feeds.base import EXPIRATION
from channelindex.feeds.bounded import read_to_end
from channelindex.feeds.dcp.client import DcpFeed, FeedOptions
from channelindex.feeds.dcp.connection import Connection
from channelindex.model import ORIGIN
from channelindex.settings import SourceSettings
from devbucket.process import DevBucket
from workers.pipeline.source import address_of

READ_BYTES = 256 * 1024
"""As the feed reads."""
UNBOUNDED = (1 << 31) - 1
QUIET_S = 1.0
"""All has come when nothing comes for so long."""


class Costs(NamedTuple):
    """Who read the documents of which case, and its CPU in µs and rate of documents from the first ones on."""

    case: str
    who: str
    documents_per_s: float
    cpu_us: float
    n_bytes: int


def measure(case: Case, count: int) -> list[Costs]:
    """Read *count* documents of *case*: counting bytes, with the feed, and with the feed without the kernel."""
    with loaded(case, count) as bucket:
        found = [_count_bytes(bucket, case, count)]
        for mode in (kernel.AUTO, kernel.OFF):
            kernel.choose(mode)
            found.append(_read_events(bucket, case, count))
    kernel.choose(kernel.AUTO)
    return found


def _opened(bucket: DevBucket, options: FeedOptions = FeedOptions()) -> DcpFeed:  # noqa: B008 it is immutable
    highs = dict(enumerate(bucket.high_seqnos()))
    address, credentials = address_of(SourceSettings(bucket.url, bucket.user, bucket.password))
    feed = DcpFeed(address, credentials, name="bench", end_seqnos=highs, options=options)
    feed.start(dict.fromkeys(highs, ORIGIN))
    return feed


def _read_events(bucket: DevBucket, case: Case, count: int) -> Costs:
    with closing(_opened(bucket)) as feed:
        portions = read_to_end(feed)
        n_first = len(next(filter(None, portions)))
        n_documents, began, began_wall = 0, time.thread_time(), time.perf_counter()
        for events in portions:
            n_documents += sum(event[0] <= EXPIRATION for event in events)
        assert count - n_first <= n_documents <= count
        who = f"feed, kernel: {kernel.description()}"
        return _costs(case, who, n_documents, time.thread_time() - began, time.perf_counter() - began_wall)


def _count_bytes(bucket: DevBucket, case: Case, count: int) -> Costs:
    with closing(_opened(bucket, FeedOptions(buffer_bytes=UNBOUNDED))) as feed:
        n_first = 0
        while not (n_first and feed.connected() and not _connection_of(feed).session.outgoing):
            feed.tick(time.monotonic())
            n_first += sum(event[0] <= EXPIRATION for event in feed.read(1))
            select.select([feed], [], [], QUIET_S)
        with socket.socket(fileno=os.dup(_connection_of(feed).fileno())) as taken:
            n_bytes, began, began_wall = 0, time.thread_time(), time.perf_counter()
            at, spent = began_wall, began
            while select.select([taken], [], [], QUIET_S)[0]:
                n_bytes += len(taken.recv(READ_BYTES))
                at, spent = time.perf_counter(), time.thread_time()
        assert n_bytes > (count - n_first) * case.document_bytes
        return _costs(case, "counts bytes", count - n_first, spent - began, at - began_wall, n_bytes)


def _connection_of(feed: DcpFeed) -> Connection:
    """The only connection of *feed*."""
    (node,) = feed._connected  # noqa: SLF001 the feed gives its socket to nobody else
    assert node.connection is not None
    return node.connection


def _costs(case: Case, who: str, n_documents: int, cpu_s: float, seconds: float, n_bytes: int = 0) -> Costs:
    assert n_documents > 0
    return Costs(case.name, who, n_documents / seconds, cpu_s / n_documents * 1e6, n_bytes)


def table_of(found: Sequence[Costs]) -> Table:
    """A row for each."""
    table = Table("case", "reader", "documents/s", "CPU µs", title="reading a bucket's feed, per document")
    for costs in found:
        table.add_row(costs.case, costs.who, f"{costs.documents_per_s:,.0f}", f"{costs.cpu_us:.2f}")
    return table


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dcp_reader", description=__doc__)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    args = parser.parse_args()
    cases = [case for case in CASES if case.name in (args.case or ["c100"])]
    found = [costs for case in cases for costs in measure(case, args.documents)]
    Console(width=None if sys.stdout.isatty() else 120).print(table_of(found))


if __name__ == "__main__":
    main()
