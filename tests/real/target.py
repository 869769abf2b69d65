"""The bucket that scenarios are run against, over its network only, and what they may do there."""

import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from channelindex.errors import ChannelIndexError
from channelindex.feeds.dcp import operations
from channelindex.feeds.dcp.exchange import Request
from channelindex.feeds.dcp.kv import KvClient
from channelindex.mcbp import Op, Status
from channelindex.settings import SourceSettings
from devbucket.sync_gateway.layouts import Layout, XattrLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.history import Membership, expected_channels
from workers.pipeline.source import address_of

_BATCH = 256


class NotRun(Exception):
    """A right or a feature is missing: what it is."""


@dataclass
class Target:
    """A bucket, and a prefix that all documents of a run begin with; nobody else's are touched.

    `url`, `user` and `password` are there for `tests.support.node.Node` too.
    """

    url: str
    user: str
    password: str
    ca_file: str = ""
    prefix: str = field(default_factory=lambda: f"channelindex-test-{secrets.token_hex(4)}:")
    ids: set[str] = field(default_factory=set)

    def part(self, number: int) -> "Target":
        """The same bucket, for one scenario: its prefix is a part of ours, and we clean up after it."""
        return replace(self, prefix=f"{self.prefix}{number}:")

    def source(self, **settings: Any) -> SourceSettings:
        """The settings of a feed of the bucket."""
        return SourceSettings(
            url=self.url, user=self.user, password=self.password, tls_ca_file=self.ca_file, **settings
        )

    def kv(self) -> KvClient:
        """A client of the bucket."""
        return KvClient(*address_of(self.source()))

    @contextmanager
    def loading(self, layout: Layout) -> Iterator["TargetLoader"]:
        """Write documents, as Sync Gateway would.

        Raises:
            NotRun: we may not, or the bucket has no xattrs.
        """
        try:
            with self.kv() as client:
                self._probe(client, layout)
                yield TargetLoader(self, client, layout)
        except ChannelIndexError as error:
            raise AssertionError(f"{type(error).__name__}: {error}") from error

    def _probe(self, client: KvClient, layout: Layout) -> None:
        key = f"{self.prefix}probe"
        self.ids.add(key)
        try:
            client.store(key.encode(), b"{}")
        except ChannelIndexError as error:
            raise NotRun(f"{self.user or 'this client'} may not write: {error}") from error
        if isinstance(layout, XattrLayout):
            try:
                client.store_with_xattr(key.encode(), "_probe", b"{}", b"{}")
            except ChannelIndexError as error:
                raise NotRun(f"xattrs cannot be written: {error}") from error

    def ours(self, membership: Membership) -> Membership:
        """What of *membership* is about documents of this run."""
        found = {
            channel: {row for row in rows if row[0].startswith(self.prefix)} for channel, rows in membership.items()
        }
        return {channel: rows for channel, rows in found.items() if rows}

    def clean_up(self) -> int:
        """Delete all documents of this run; how many there were. Tombstones stay until the bucket purges them.

        Raises:
            ChannelIndexError: the bucket cannot be reached, or refuses.
        """
        keys = [id_.encode() for id_ in sorted(self.ids)]
        n_deleted = 0
        with self.kv() as client:
            for start in range(0, len(keys), _BATCH):
                answers = client.pipeline([operations.delete(key) for key in keys[start : start + _BATCH]])
                n_deleted += sum(answer.status == Status.SUCCESS for answer in answers)
        return n_deleted


class TargetLoader:
    """Writes revisions of documents of a run, and knows what the index has to hold of them."""

    def __init__(self, target: Target, client: KvClient, layout: Layout) -> None:
        self.client = client
        self.layout = layout
        self._target = target
        counter = f"{target.prefix}sequence"
        target.ids.add(counter)
        self._loader = Loader(client, layout, sequence_key=counter.encode())
        self._written: list[Revision] = []

    def load(self, revisions: Iterable[Revision]) -> None:
        """Save *revisions*; their ids are to begin with the prefix."""
        revisions = list(revisions)
        assert all(each.id.startswith(self._target.prefix) for each in revisions)
        self._target.ids |= {each.id for each in revisions}
        assert self._loader.load(revisions) == len(revisions)
        self._written += revisions

    def note(self, revisions: Iterable[Revision]) -> None:
        """Count *revisions* as written: somebody else wrote them."""
        self._written += revisions

    def expire(self, ids: Iterable[str], within_s: int, deadline_s: float) -> None:
        """Let documents expire, and wait until they have."""
        keys = [id_.encode() for id_ in ids]
        self.client.pipeline([Request(Op.TOUCH, key, within_s.to_bytes(4, "big")) for key in keys])
        deadline = time.monotonic() + deadline_s
        while any(self.client.get(key) is not None for key in keys):
            assert time.monotonic() < deadline, f"documents that were to expire in {within_s} s are there still"
            time.sleep(0.2)

    def expected(self, without: Iterable[str] = ()) -> Membership:
        """What the index holds of all that was written, but for the documents *without*."""
        left_out = set(without)
        return expected_channels(
            [
                {"id": each.id, "rev": each.rev, "channels": each.channels, "deleted": each.deleted}
                for each in self._written
                if each.id not in left_out
            ]
        )
