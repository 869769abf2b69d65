"""A writer that goes on whatever happens to the bucket, and knows at the end what the bucket has of what it wrote."""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Self
from zlib import crc32

import msgspec

from channelindex.errors import ChannelIndexError
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import Layout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.metadata import current_rev
from devbucket.sync_gateway.resync import resync
from devbucket.sync_gateway.revisions import Revision, generation
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.chaos.record import Record
from tests.support.history import Line, expected_channels

SLICE_S = 0.1
"""What is written at once: so much of the time. Whoever wants to pause the writer waits for one slice."""
RETRY_S = 0.1
TIMEOUT_S = 3.0
"""For one round trip to the bucket: a pause waits for it, where a connection stands without a word."""
GIVE_UP_S = 180.0
"""A bucket that takes no slice for so long does not come back: no fault of a run lasts a third of it."""
RESYNC_CHANNELS = [f"ch-{number:03}" for number in range(20)]
"""Those that the synthetic revisions are in."""
READS = 256
"""Documents read at once."""


class KnownWriter:
    """Writes documents whose names begin with *name*, in a thread of its own, until it is healed or finished.

    Nobody else writes them. A slice that broke off is written again until the bucket has it; what it has already is
    left out. Where the bucket is to lose changes, that has to happen while the writer is `paused`.
    """

    def __init__(
        self, bucket: DevBucket, name: str, layout: Layout, n_documents: int = 200, per_second: float = 100.0
    ) -> None:
        self.name = name
        self._bucket = bucket
        self._layout = layout
        self._slice = max(1, round(per_second * SLICE_S))
        self._period_s = self._slice / per_second
        self._source = synthetic_revisions(crc32(name.encode()), n_documents)
        self._history = _History()
        self._resyncs: list[tuple[int, int]] = []
        self._doubtful: set[int] = set()
        self._client: KvClient | None = None
        self._loader: Loader | None = None
        self._between = threading.Lock()
        self._stop_asked = threading.Event()
        self._problem: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"writer {name}", daemon=True)

    @property
    def n_written(self) -> int:
        """Revisions that the bucket took so far."""
        return len(self._history.taken)

    def start(self) -> Self:
        """Begin to write."""
        self._thread.start()
        return self

    def more(self, n: int) -> None:
        """Write *n* more revisions now. Only while the writer is not started."""
        self._write(self._next(n))

    def resync_soon(self, seed: int, n: int) -> None:
        """Have the writer put *n* of its documents into other channels, as a resync does: with no new revision."""
        self._resyncs.append((seed, n))

    def last(self, n: int) -> set[str]:
        """The documents of the last *n* revisions."""
        return {each.id for each in self._history.taken[-n:]}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is written meanwhile. A slice that broke off may be in the bucket in part; it is written again."""
        with self._between:
            yield

    def find_what_was_taken_back(self, vbs: Iterable[int]) -> None:
        """Before anything else is written, as soon as they can be read, see what the bucket lost of *vbs*.

        Only while the writer is paused, in the pause in which it happens; returns at once.
        """
        self._doubtful.update(vbs)
        self._disconnect()  # what the loader remembers of documents may be of a history that is no more

    def heal(self) -> None:
        """Stop; then have the bucket replace what it lost and nothing replaced since, so that readers may converge.

        The index cannot tell a reader of a channel that a document is not in it, if no revision that is left ever
        touched the channel. Such documents get a revision that is in it. Who wants to judge the index as it was
        without, does so before.
        """
        self._end()
        if cures := self._history.cures():
            self._write(cures)

    def finish(self, record: Record) -> None:
        """Stop; put into *record* what was written and what was taken back, also if this raises.

        Raises:
            Exception: the writer could not go on; why.
        """
        try:
            self._end()
        finally:
            self._disconnect()
            record.written += self._history.kept()
            record.taken_back += self._history.lost()

    def _end(self) -> None:
        self._stop_asked.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._problem:
            raise self._problem
        if self._doubtful:
            self._write([])

    def _run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                begun = time.monotonic()
                self._write(self._next(self._slice))
                while self._resyncs:
                    self._write_resync(*self._resyncs.pop())
                self._stop_asked.wait(max(0.0, begun + self._period_s - time.monotonic()))
        except Exception as error:  # whoever finishes us must see it
            self._problem = error

    def _next(self, n: int) -> list[Revision]:
        part = islice(self._source, n)
        return [msgspec.structs.replace(each, id=f"{self.name}:{each.id}") for each in part]

    def _write(self, part: Sequence[Revision]) -> None:
        def write(_: KvClient, loader: Loader) -> Sequence[Revision]:
            loader.load(part)
            return part

        self._repeat(write)

    def _write_resync(self, seed: int, n: int) -> None:
        """Move some documents. An attempt that broke off may have moved some: the next one moves the same."""
        channels_by_id: dict[str, tuple[str, ...]] = {}

        def write(client: KvClient, _: Loader) -> Sequence[Revision]:
            channels_by_id.update(channels_by_id or self._history.draw_moves(random.Random(seed), n))
            moved = self._history.moved(channels_by_id)
            resync(client, self._layout, {each.id: each.channels for each in moved})
            return moved

        self._repeat(write)

    def _repeat(self, write: Callable[[KvClient, Loader], Sequence[Revision]]) -> None:
        deadline = time.monotonic() + GIVE_UP_S
        while (problem := self._attempt(write)) is not None:
            if time.monotonic() > deadline:
                raise problem
            time.sleep(RETRY_S)

    def _attempt(self, write: Callable[[KvClient, Loader], Sequence[Revision]]) -> ChannelIndexError | None:
        """Carry out *write*, which returns what the bucket has then; what was in the way."""
        with self._between:
            try:
                client, loader = self._connected()
                self._settle_doubts(client)
                written = write(client, loader)
            except ChannelIndexError as error:
                self._disconnect()
                return error
            self._history.take(written)
            return None

    def _connected(self) -> tuple[KvClient, Loader]:
        if self._client is None or self._loader is None:
            credentials = Credentials(self._bucket.user, self._bucket.password)
            self._client = KvClient(parse_source_url(self._bucket.url), credentials, TIMEOUT_S)
            self._loader = Loader(self._client, self._layout)
        return self._client, self._loader

    def _settle_doubts(self, client: KvClient) -> None:
        """Compare all documents of the vbuckets in doubt with what the bucket has of them."""
        if not self._doubtful:
            return
        ids = [id_ for id_ in self._history.ids() if client.vbucket_of(id_.encode()) in self._doubtful]
        for start in range(0, len(ids), READS):
            chunk = ids[start : start + READS]
            answers = client.pipeline([self._layout.read(id_.encode()) for id_ in chunk])
            for id_, answer in zip(chunk, answers, strict=True):
                sync = self._layout.found(answer).sync or {}
                channels = {name for name, removal in (sync.get("channels") or {}).items() if removal is None}
                self._history.lose_beyond(id_, generation(current_rev(sync)), channels)
        self._doubtful.clear()

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = self._loader = None


class _History:
    """What the bucket took, in its order (`taken`), and what of that it lost. No I/O."""

    def __init__(self) -> None:
        self.taken: list[Revision] = []
        self._kept_by_id: defaultdict[str, list[int]] = defaultdict(list)  # places in `taken`, ascending
        self._lost: set[int] = set()

    def take(self, revisions: Iterable[Revision]) -> None:
        """The bucket has *revisions*."""
        for revision in revisions:
            self._kept_by_id[revision.id].append(len(self.taken))
            self.taken.append(revision)

    def ids(self) -> list[str]:
        """All documents that ever were."""
        return list(self._kept_by_id)

    def draw_moves(self, rnd: random.Random, n: int) -> dict[str, tuple[str, ...]]:
        """Up to *n* documents that live, and channels for each."""
        alive = [id_ for id_ in self._kept_by_id if self._lives(id_)]
        chosen = rnd.sample(alive, min(n, len(alive)))
        return {id_: tuple(sorted(rnd.sample(RESYNC_CHANNELS, rnd.randrange(3)))) for id_ in chosen}

    def moved(self, channels_by_id: Mapping[str, tuple[str, ...]]) -> list[Revision]:
        """The documents that live, in other channels under the revision that they have."""
        return [
            msgspec.structs.replace(self.taken[self._kept_by_id[id_][-1]], channels=channels)
            for id_, channels in channels_by_id.items()
            if self._lives(id_)
        ]

    def _lives(self, id_: str) -> bool:
        kept = self._kept_by_id[id_]
        return bool(kept) and not self.taken[kept[-1]].deleted

    def lose_beyond(self, id_: str, newest: int, channels: set[str]) -> None:
        """The bucket has a document at generation *newest*, in *channels*; generation 0: not at all."""
        kept = self._kept_by_id[id_]
        while kept and (generation(self.taken[kept[-1]].rev) > newest or self._is_undone(kept, channels)):
            self._lost.add(kept.pop())

    def _is_undone(self, kept: list[int], channels: set[str]) -> bool:
        """Whether the last of *kept* is a resync that is not there: the document is in other channels."""
        before, last = (self.taken[place] for place in (kept[-2:] if len(kept) > 1 else (kept[-1], kept[-1])))
        return last is not before and last.rev == before.rev and set(last.channels) != channels

    def kept(self) -> list[Line]:
        """What was not lost."""
        return [_line(each) for place, each in enumerate(self.taken) if place not in self._lost]

    def lost(self) -> list[Line]:
        """What was lost."""
        return [_line(each) for place, each in enumerate(self.taken) if place in self._lost]

    def cures(self) -> list[Revision]:
        """A revision of each document that has no trace left in some channel that a lost revision of it was in."""
        traces = {(doc, channel) for channel, states in expected_channels(self.kept()).items() for doc, *_ in states}
        blank_by_id: defaultdict[str, set[str]] = defaultdict(set)
        newest_by_id: dict[str, int] = {}
        for place, each in enumerate(self.taken):
            newest_by_id[each.id] = generation(each.rev)
            if place in self._lost:
                blank_by_id[each.id].update(c for c in ("*", *each.channels) if (each.id, c) not in traces)
        return [
            Revision(id_, f"{newest_by_id[id_] + 1}-{'f' * 32}", self._channels_with(id_, blank - {"*"}))
            for id_, blank in blank_by_id.items()
            if blank
        ]

    def _channels_with(self, id_: str, more: set[str]) -> tuple[str, ...]:
        kept = self._kept_by_id[id_]
        return tuple(sorted(more.union(self.taken[kept[-1]].channels if kept else ())))


def _line(revision: Revision) -> Line:
    return {
        "id": revision.id,
        "rev": revision.rev,
        "channels": list(revision.channels),
        "deleted": revision.deleted,
    }
