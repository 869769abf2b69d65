"""Watchers of a running index: what a following reader sees, and whether the stable clock ever moves back."""

import threading
import time
from contextlib import closing

from channelindex.errors import ChannelIndexError, IndexMissing
from channelindex.reading.changes_reader import ChangesReader
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader

INDEX = "channels"


class Follower(threading.Thread):
    """Follows one channel; `seen` is the last it was told of each document: (rev, removed, deleted)."""

    def __init__(self, redis_url: str, channel: str) -> None:
        super().__init__(daemon=True)
        self.channel = channel
        self.seen: dict[str, tuple[str, bool, bool]] = {}
        self.error: Exception | None = None
        self._redis_url = redis_url
        self._stop_asked = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with closing(open_reader(IndexSettings(INDEX, self._redis_url))) as store:
                self._await_index(store)
                for page in ChangesReader(store).follow(
                    [self.channel], stop=self._stop_asked.is_set, wait_s=0.1, limit=100
                ):
                    self.seen.update({e.id: (e.rev, e.removed, e.deleted) for e in page.entries})
        except Exception as error:  # the test that joins us must see it
            self.error = error

    def _await_index(self, store) -> None:
        while not self._stop_asked.is_set():
            try:
                store.meta()
            except IndexMissing:
                time.sleep(0.05)
            else:
                return

    def sees(self, expected: set[tuple[str, str, bool, bool]]) -> bool:
        """Whether it has been told exactly *expected* by now."""
        if self.error:
            raise self.error
        return {(doc, *what) for doc, what in self.seen.items()} == expected

    def finish(self) -> None:
        """Stop following; raise what went wrong."""
        self._stop_asked.set()
        self.join(10)
        if self.error:
            raise self.error


class StableWatch(threading.Thread):
    """Samples the stable clock; `moved_back` are the (vbucket, before, after) at which it did."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(daemon=True)
        self.moved_back: list[tuple[int, int, int]] = []
        self.samples = 0
        self._redis_url = redis_url
        self._stop_asked = threading.Event()
        self.start()

    def run(self) -> None:
        highest: dict[int, int] = {}
        with closing(open_reader(IndexSettings(INDEX, self._redis_url))) as store:
            while not self._stop_asked.wait(0.02):
                try:
                    records = store.partition_records()
                except ChannelIndexError:
                    continue
                self.samples += 1
                for record in records:
                    for vb, seqno in zip(record.vbuckets, record.stable, strict=True):
                        if seqno < highest.get(vb, 0):
                            self.moved_back.append((vb, highest[vb], seqno))
                        highest[vb] = max(seqno, highest.get(vb, 0))

    def finish(self) -> None:
        """Stop sampling."""
        self._stop_asked.set()
        self.join(10)
