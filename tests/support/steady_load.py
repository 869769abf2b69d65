"""A writer that goes on whatever happens to the bucket, and knows what it wrote."""

import threading
import time
from itertools import islice
from types import TracebackType
from typing import Self

import msgspec

from channelindex.errors import AuthenticationFailed, OutcomeUnknown, SourceUnavailable
from channelindex.feeds.dcp.kv import KvClient
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import Layout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision, generation
from devbucket.sync_gateway.synthetic import synthetic_revisions
from tests.support.history import Membership, expected_channels
from tests.support.node import DEADLINE_S, until
from tests.support.running import connect

SLICE = 20
PAUSE_S = 0.02
"""Between slices: the bucket and the node need the processor too."""
RETRY_S = 0.1


class SteadyLoad:
    """Writes in a thread of its own while the context is open, documents whose names begin with *name*.

    A slice that broke off is written again by a new client; what the bucket has of it already is left out.
    """

    def __init__(self, bucket: DevBucket, name: str, layout: Layout, n_documents: int = 100) -> None:
        self.prefix = f"{name}:"
        self._n_retries = 0
        self._bucket = bucket
        self._layout = layout
        self._source = synthetic_revisions(seed=1, n_documents=n_documents)
        self._client: KvClient | None = None
        self._written: list[Revision] = []
        self._stop_asked = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def more(self, n: int = 100) -> None:
        """Wait until *n* more revisions are written."""
        enough = len(self._written) + n
        until(lambda: self._error or len(self._written) >= enough, f"{n} more revisions to be written")

    def until_interrupted(self) -> None:
        """Wait until a slice breaks off once more."""
        before = self._n_retries
        until(lambda: self._error or self._n_retries > before, "the writer to be interrupted")

    def expected(self) -> Membership:
        """The channels of what was written, if all of it is in the bucket."""
        return expected_channels(
            [{"id": r.id, "rev": r.rev, "channels": r.channels, "deleted": r.deleted} for r in self._written]
        )

    def rewrite(self) -> None:
        """Once the context is closed: give every document one more revision."""
        newest = {revision.id: generation(revision.rev) for revision in self._written}
        part = [Revision(id_, f"{number + 1}-{'f' * 32}", ("rewritten",)) for id_, number in newest.items()]
        with connect(self._bucket) as client:
            Loader(client, self._layout).load(part)
        self._written += part

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_asked.set()
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop_asked.is_set():
                part = [msgspec.structs.replace(r, id=self.prefix + r.id) for r in islice(self._source, SLICE)]
                self._write(part, time.monotonic() + DEADLINE_S)
                self._written += part
                self._stop_asked.wait(PAUSE_S)
        except Exception as error:  # whoever closes the context must see it
            self._error = error
        finally:
            self._disconnect()

    def _write(self, part: list[Revision], deadline: float) -> None:
        while True:
            try:
                if self._client is None:
                    self._client = connect(self._bucket)
                    self._loader = Loader(self._client, self._layout)
                self._loader.load(part)
            except (SourceUnavailable, OutcomeUnknown, AuthenticationFailed):
                self._disconnect()
                self._n_retries += 1
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)
            else:
                return

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
