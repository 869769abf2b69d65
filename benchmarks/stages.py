"""CPU of each stage of a change's way, in µs per document: in one process, one stage after the other.

    python -m benchmarks.stages [--documents 50000] [--case c100 …] [--without-kernel] [--vbuckets 1024]

The feed is a real one, from a dev bucket; the ring is real, and so is Redis. "bytes" is the time of receiving what the
source sends: what a reader would take that only counts bytes. Rounds have the size that they have in a busy node. What
a node spends on waking up, heartbeats and the stable clock comes on top (`benchmarks.throughput` has all of it).
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

import redis
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES, N_VBUCKETS, Case, load
from benchmarks.node import redis_cpu_s
from channelindex import kernel
from channelindex.blocks import FORMAT_VERSION
from channelindex.decode.registry import make_decoder
from channelindex.feeds.dcp.connection import Connection
from channelindex.model import IndexMeta
from channelindex.settings import IndexSettings, SourceSettings
from channelindex.stores import open_owner, open_writer
from devbucket.bucket_config import DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket
from workers.pipeline.source import describe, open_feed
from workers.pipeline.stage_trial import run_trial

STAGES = ("bytes", "parse", "decode, route, pack", "frames, ring, merge", "write", "Redis")


class Stages(NamedTuple):
    """µs per document by stage, and the channel updates per document that the writers made."""

    case: str
    us_by_stage: dict[str, float]
    updates_per_document: float

    @property
    def total_us(self) -> float:
        """All stages."""
        return sum(self.us_by_stage.values())


def measure(case: Case, count: int, n_vbuckets: int = N_VBUCKETS) -> Stages:
    """Bring *count* documents of *case* into an index of their own, stage by stage."""
    with ExitStack() as stack:
        store = stack.enter_context(EmbeddedRedis())
        config = DevBucketConfig(n_vbuckets=n_vbuckets)
        bucket = stack.enter_context(DevBucket(config, lambda bucket: load(bucket, case, count, n_vbuckets)))
        client = stack.enter_context(redis.Redis.from_url(store.url))
        settings = IndexSettings("stages", store.url)
        owner = stack.enter_context(closing(open_owner(settings)))
        writer = stack.enter_context(closing(open_writer(settings)))
        decoder = make_decoder("sync_gateway", star_channel=False)
        source = SourceSettings(bucket.url, bucket.user, bucket.password)
        highs = dict(enumerate(bucket.high_seqnos()))
        feed = stack.enter_context(closing(open_feed(source, "stages", describe(source).uuid, highs, decoder)))
        received = stack.enter_context(_timed_receiving())
        meta = IndexMeta(FORMAT_VERSION, n_vbuckets, min(64, n_vbuckets), "s", "i")
        before_s = redis_cpu_s(client)
        found = run_trial(feed, decoder, meta, owner, writer, count)
        redis_s = redis_cpu_s(client) - before_s
    spent = (received[0], found.read_s - received[0], found.build_s, found.frames_s, found.write_s, redis_s)
    us_by_stage = {stage: seconds / count * 1e6 for stage, seconds in zip(STAGES, spent, strict=True)}
    return Stages(case.name, us_by_stage, found.n_updates / count)


@contextmanager
def _timed_receiving() -> Iterator[list[float]]:
    """Yield a list whose only number is the CPU that this thread spends on receiving from a source, in seconds."""
    spent, receive = [0.0], Connection._recv  # noqa: SLF001 there is no other place at which bytes come in

    def timed(connection: Connection, max_bytes: int) -> bytes | None:
        began = time.thread_time()
        try:
            return receive(connection, max_bytes)
        finally:
            spent[0] += time.thread_time() - began

    setattr(Connection, "_recv", timed)  # noqa: B010 see above
    try:
        yield spent
    finally:
        setattr(Connection, "_recv", receive)  # noqa: B010 see above


def table_of(found: list[Stages], title: str) -> Table:
    """A row for each case."""
    table = Table("case", *STAGES, "together", "updates/document", title=title)
    for stages in found:
        cells = [f"{stages.us_by_stage[stage]:.1f}" for stage in STAGES]
        table.add_row(stages.case, *cells, f"{stages.total_us:.1f}", f"{stages.updates_per_document:.3f}")
    return table


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--vbuckets", type=int, default=N_VBUCKETS)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--without-kernel", action="store_true")
    args = parser.parse_args()
    kernel.choose(kernel.OFF if args.without_kernel else kernel.AUTO)
    cases = [case for case in CASES if not args.case or case.name in args.case]
    found = [measure(case, args.documents, args.vbuckets) for case in cases]
    title = f"{args.documents:,} documents, kernel: {kernel.description()}; CPU in µs per document"
    Console(width=None if sys.stdout.isatty() else 160).print(table_of(found, title))


if __name__ == "__main__":
    main()
