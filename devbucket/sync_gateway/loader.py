"""Saves revisions in a bucket as Sync Gateway would, many at a time, and users and roles."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Protocol

import msgspec

from channelindex.decode.principals import principal_key
from channelindex.errors import InvariantBroken, SourceUnavailable
from channelindex.feeds.dcp import operations
from channelindex.feeds.dcp.exchange import Request
from channelindex.mcbp import Frame, Status
from devbucket.sync_gateway.layouts import Layout, StoredDocument
from devbucket.sync_gateway.metadata import apply_revision, is_known
from devbucket.sync_gateway.revisions import Revision

SEQUENCE_KEY = b"_sync:seq"
SEQUENCE_BATCH = 100
"""Sequences taken at a time. What is left of a batch at the end is never used, as when a Sync Gateway stops."""
WINDOW = 256
"""Documents on the way at once: enough to fill the connection, few enough to report progress smoothly."""
CACHED_DOCUMENTS = 10_000
"""Documents whose metadata is remembered, so that a document that changes often need not be read each time."""
MAX_ATTEMPTS = 10
_BACKOFF_S = 0.01

BUSY = frozenset((Status.ETMPFAIL, Status.ENOMEM, Status.EBUSY, Status.LOCKED))
"""Nothing was written, and soon it can be."""


class KeyValue(Protocol):
    """The part of `channelindex.feeds.dcp.kv.KvClient` that the loader needs."""

    def pipeline(self, requests: Sequence[Request]) -> Sequence[Frame]:
        """Return the responses to *requests*, in their order; the server carries them out in that order."""
        ...


class Loader:
    """Writes to one bucket. What it wrote it remembers by CAS; whatever else it needs it reads from the bucket.

    Others may write at the same time: a document that changed meanwhile is read again.
    """

    def __init__(
        self,
        kv: KeyValue,
        layout: Layout,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sequence_key: bytes = SEQUENCE_KEY,
    ) -> None:
        """Write by *kv*. Sequences come from the counter *sequence_key*: that of a Sync Gateway, unless it has one."""
        self._kv = kv
        self._layout = layout
        self._now = now
        self._sequence_key = sequence_key
        self._sequences = self._new_sequences()
        self._stored_by_id: dict[str, StoredDocument] = {}

    def load(self, revisions: Iterable[Revision], progress: Callable[[int], None] | None = None) -> int:
        """Save *revisions* in their order; how many were new to the bucket.

        A revision whose document is already at its generation or beyond is left out, so that a load that broke off
        can be repeated. *progress* gets the number done, saved or left out, after each window.

        Raises:
            InputInvalid: from *revisions*; all before it are saved.
            SourceUnavailable: the bucket refuses or does not answer; up to a window of revisions may be saved in part.
        """
        n_done = n_saved = 0
        for window in _windows(revisions):
            n_saved += self._save(window)
            n_done += len(window)
            if progress:
                progress(n_done)
        return n_saved

    def put_user(self, name: str, channels: Iterable[str] = (), roles: Iterable[str] = ()) -> None:
        """Create or replace a user who may read *channels* and has *roles*."""
        sequence = next(self._sequences)
        granted = dict.fromkeys(roles, sequence)
        self._put_principal("user", name, channels, sequence, {"explicit_roles": granted, "rolesSince": granted})

    def put_role(self, name: str, channels: Iterable[str] = ()) -> None:
        """Create or replace a role whose users may read *channels*."""
        self._put_principal("role", name, channels, next(self._sequences), {})

    def _put_principal(
        self, kind: str, name: str, channels: Iterable[str], sequence: int, more: dict[str, Any]
    ) -> None:
        granted = dict.fromkeys(channels, sequence)
        document = {
            "name": name,
            "admin_channels": granted,
            "all_channels": {"!": 1, **granted},  # everybody reads the public channel
            "sequence": sequence,
            **more,
        }
        request = operations.store(principal_key(kind, name).encode(), msgspec.json.encode(document))
        operations.stored(self._ask(request))

    def _save(self, window: list[Revision]) -> int:
        """Save revisions of different documents; how many were new."""
        n_saved = 0
        pending = window
        for attempt in range(MAX_ATTEMPTS):
            if attempt > 1:  # reading anew cures a document that somebody else changed; waiting cures a busy bucket
                time.sleep(_BACKOFF_S * 2**attempt)
            self._read([revision.id for revision in pending if revision.id not in self._stored_by_id])
            due = [revision for revision in pending if not is_known(self._stored_by_id[revision.id].sync, revision)]
            pending = self._write(due)
            assert len(pending) <= len(due), "what was not written was due"
            n_saved += len(due) - len(pending)
            if not pending:
                self._forget_oldest()
                return n_saved
        raise SourceUnavailable(
            f"{len(pending)} documents, {pending[0].id!r} among them, could not be written in {MAX_ATTEMPTS} attempts: "
            "the bucket is busy, or somebody else keeps writing them"
        )

    def _read(self, ids: Sequence[str]) -> None:
        answers = self._kv.pipeline([self._layout.read(id_.encode()) for id_ in ids]) if ids else ()
        for id_, answer in zip(ids, answers, strict=True):
            self._stored_by_id[id_] = self._layout.found(answer)

    def _write(self, revisions: Sequence[Revision]) -> list[Revision]:
        """Write each revision over what is remembered of its document; those that were not written, to try again."""
        now = self._now()
        writes: list[tuple[Revision, dict[str, Any]]] = []
        requests: list[Request] = []
        for revision in revisions:
            stored = self._stored_by_id.pop(revision.id)
            sync = apply_revision(stored.sync, revision, next(self._sequences), now)
            writes.append((revision, sync))
            requests.append(self._layout.write(revision, sync, stored))
        refused: list[Revision] = []
        assert len(requests) == len(writes) == len(revisions), "a request for each"
        for (revision, sync), answer in zip(writes, self._kv.pipeline(requests) if requests else (), strict=True):
            cas = None if answer.status in BUSY else operations.stored(answer)
            if cas is None:
                refused.append(revision)
            else:
                self._stored_by_id[revision.id] = self._layout.written(revision, sync, cas)
        return refused

    def _forget_oldest(self) -> None:
        """Forget the documents that were written longest ago: the map's first."""
        excess = max(0, len(self._stored_by_id) - CACHED_DOCUMENTS)
        for id_ in list(islice(self._stored_by_id, excess)):
            del self._stored_by_id[id_]

    def _new_sequences(self) -> Iterator[int]:
        """Sequences of our own, without end."""
        while True:
            request = operations.increment(self._sequence_key, SEQUENCE_BATCH, SEQUENCE_BATCH)
            last = operations.counted(self._ask(request))
            if last is None:
                raise InvariantBroken(f"the counter {self._sequence_key!r} was not created")
            yield from range(last - SEQUENCE_BATCH + 1, last + 1)

    def _ask(self, request: Request) -> Frame:
        return self._kv.pipeline([request])[0]


def _windows(revisions: Iterable[Revision]) -> Iterator[list[Revision]]:
    """*revisions* cut into runs of different documents."""
    window: dict[str, Revision] = {}
    for revision in revisions:
        if revision.id in window or len(window) == WINDOW:
            yield list(window.values())
            window = {}
        window[revision.id] = revision
    if window:
        yield list(window.values())
