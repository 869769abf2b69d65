"""Measures what each stage of a change's way costs with given documents and a given store, in one process."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from channelindex import kernel
from channelindex.decode.base import Decoder
from channelindex.feeds.base import EXPIRATION
from channelindex.feeds.bounded import BoundedFeed, read_to_end
from channelindex.hashing import group_of
from channelindex.model import ORIGIN, IndexMeta
from channelindex.stores.base import ChannelAppend, IndexWriter, OwnerStore
from workers.pipeline.feed_worker import ROUND_EVENTS
from workers.pipeline.frames import merge_payloads, pack_frames
from workers.pipeline.ring import Ring
from workers.pipeline.round import Round, RoundBuilder

N_WRITERS = 2
_RING_BYTES = 64 << 20

_Result = TypeVar("_Result")


class StageCosts(NamedTuple):
    """Seconds of one thread's CPU by stage, for `n_documents`; `write_wall_s` is how long the store let us wait, too.

    Not counted is what comes before the first documents: connections, logins, the opening of streams.

    `n_updates`: how many channels were appended to, each once per round.
    """

    n_documents: int
    n_updates: int
    read_s: float
    build_s: float
    frames_s: float
    write_s: float
    write_wall_s: float


def run_trial(
    feed: BoundedFeed,
    decoder: Decoder,
    meta: IndexMeta,
    owner: OwnerStore,
    writer: IndexWriter,
    n_documents: int,
) -> StageCosts:
    """Bring the first *n_documents* of *feed*, or all, into a new index of *meta*, stage by stage.

    Rounds have the size that they have in a busy node. The caller closes what it opened, and removes the index.

    Raises:
        ChannelIndexError: source or store failed.
    """
    owner.create_or_check(meta)
    epoch, group = owner.next_epoch(), group_of(range(meta.n_partitions), meta.n_partitions)
    rings = [Ring(_RING_BYTES) for _ in range(N_WRITERS)]
    clock = _Clock()
    n_updates = 0
    for taken in _rounds(feed, decoder, meta, clock, n_documents):
        for number, ring in enumerate(rings):
            ring.epoch = epoch
            appends = clock.run("frames", _through_ring, ring, taken, number, group)
            clock.run("write", writer.write, appends)
            n_updates += len(appends)
    cpu = clock.cpu_s
    return StageCosts(
        clock.n_documents, n_updates, cpu["read"], cpu["build"], cpu["frames"], cpu["write"], clock.wall_s["write"]
    )


class _Clock:
    """Adds up CPU and wall time of this thread by stage, in seconds."""

    def __init__(self) -> None:
        self.cpu_s: defaultdict[str, float] = defaultdict(float)
        self.wall_s: defaultdict[str, float] = defaultdict(float)
        self.n_documents = 0

    def run(self, stage: str, function: Callable[..., _Result], *arguments: Any) -> _Result:
        began, began_wall = time.thread_time(), time.perf_counter()
        try:
            return function(*arguments)
        finally:
            self.cpu_s[stage] += time.thread_time() - began
            self.wall_s[stage] += time.perf_counter() - began_wall


def _rounds(feed: BoundedFeed, decoder: Decoder, meta: IndexMeta, clock: _Clock, n_documents: int) -> Iterator[Round]:
    origins = dict.fromkeys(range(meta.n_vbuckets), ORIGIN)
    builder = RoundBuilder(decoder, N_WRITERS, origins)
    feed.start(origins)
    portions = read_to_end(feed)
    is_more = True
    while is_more:
        events = clock.run("read", next, portions, None)
        if events:
            clock.n_documents += sum(event[0] <= EXPIRATION for event in events)
            clock.run("build", builder.add, events)
        if not clock.n_documents:  # until now it connected, logged in and began to open streams
            clock.cpu_s.clear()
        is_more = events is not None and clock.n_documents < n_documents
        if builder.n_events >= ROUND_EVENTS or not is_more:
            taken = clock.run("build", builder.take)
            if taken is not None:
                yield taken


def _through_ring(ring: Ring, taken: Round, writer: int, group: str) -> Sequence[ChannelAppend]:
    appends: list[ChannelAppend] = []
    for frame in pack_frames(ring.epoch, group, taken.sections[writer], taken.principals[writer], ring.max_payload):
        while ring.try_publish(frame) is None:  # documents with very many channels make a round that is larger
            appends += _merged(ring)
    appends += _merged(ring)
    assert ring.committed == ring.written, "all of the round went through"
    return appends


def _merged(ring: Ring) -> Sequence[ChannelAppend]:
    merged = merge_payloads([(ring.epoch, ring.take(_RING_BYTES))], set(), kernel.chosen())
    ring.commit()
    return merged.appends
