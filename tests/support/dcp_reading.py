"""A feed of a dev bucket that is read in the test's own thread, and documents for it."""

import time
from collections.abc import Callable, Mapping
from typing import Self

from channelindex.feeds.base import HISTORY, MUTATION, Event
from channelindex.feeds.dcp import operations
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.client import DcpFeed, FeedOptions
from channelindex.feeds.dcp.connstr import SourceAddress, parse_source_url
from channelindex.feeds.dcp.kv import KvClient
from channelindex.mcbp import Status
from channelindex.model import ORIGIN, Checkpoint
from devbucket import DevBucket

DEADLINE_S = 120.0
ADMIN = Credentials("Administrator", "password")


class Reading:
    """A feed that is read and acknowledged; keeps all its events."""

    def __init__(
        self,
        bucket: DevBucket,
        checkpoints: Mapping[int, Checkpoint] | None = None,
        credentials: Credentials = ADMIN,
        end_seqnos: dict[int, int] | None = None,
        address: SourceAddress | None = None,
        **options: object,
    ) -> None:
        self.feed = DcpFeed(
            address or parse_source_url(bucket.url),
            credentials,
            name="test",
            end_seqnos=end_seqnos,
            options=FeedOptions(**options),  # type: ignore[arg-type]
        )
        self.feed.start(checkpoints or dict.fromkeys(range(bucket.config.n_vbuckets), ORIGIN))
        self.events: list[Event] = []
        self.acknowledging = True

    def turn(self) -> None:
        self.feed.tick(time.monotonic())
        self.events += self.feed.read(1 << 20)
        if self.acknowledging:
            self.feed.acknowledge()

    def until(self, done: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not done():
            assert time.monotonic() < deadline, f"last error: {self.feed.last_error}, {len(self.events)} events"
            self.turn()
            time.sleep(0.001)

    def until_caught_up(self, bucket: DevBucket) -> None:
        """Read until the highest seqno of every vbucket has come."""
        highs = {vb: high for vb, high in enumerate(bucket.high_seqnos()) if high}
        self.until(lambda: all(self.newest().get(vb, 0) >= high for vb, high in highs.items()))

    def newest(self) -> dict[int, int]:
        """The newest seqno of each vbucket."""
        return {event[1]: event[2] for event in self.events if event[0] <= MUTATION + 3}

    def seqnos(self, vb: int) -> list[int]:
        return [event[2] for event in self.events if event[0] <= MUTATION + 3 and event[1] == vb]

    def n_opened(self, vb: int) -> int:
        """How often the vbucket's stream was opened."""
        return sum(event[:2] == (HISTORY, vb) for event in self.events)

    def documents(self, kind: int = MUTATION) -> list[tuple[int, int, bytes]]:
        return [event[1:4] for event in self.events if event[0] == kind]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.close()


def fill(kv: KvClient, n: int, prefix: str = "doc") -> None:
    answers = kv.pipeline([operations.store(b"%s:%d" % (prefix.encode(), i), b'{"i":%d}' % i) for i in range(n)])
    assert {answer.status for answer in answers} == {Status.SUCCESS}
