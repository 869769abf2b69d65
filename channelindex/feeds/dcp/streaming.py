"""Streams a bucket's changes to asyncio: `async for event in stream(url, user, password, since=position)`."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from channelindex.errors import InputInvalid
from channelindex.feeds.base import ADVANCED, EXPIRATION, HISTORY, ROLLBACK, SNAPSHOT, Event
from channelindex.feeds.dcp.auth import Credentials
from channelindex.feeds.dcp.client import DcpFeed, FeedOptions
from channelindex.feeds.dcp.connstr import parse_source_url
from channelindex.feeds.dcp.kv import source_info
from channelindex.feeds.dcp.srv import find_nodes
from channelindex.feeds.dcp.tls import TlsOptions
from channelindex.feeds.position import Position
from channelindex.model import ORIGIN, Checkpoint

CONNECT_TIMEOUT_S = 10.0
"""Time for the bucket to say who it is, at the start."""
_READ_BYTES = 1 << 20
_LONGEST_WAIT_S = 1.0


class DcpChange(NamedTuple):
    """A change of a document. `kind`: MUTATION, DELETION or EXPIRATION of `channelindex.feeds.base`."""

    kind: int
    vb: int
    seqno: int
    key: bytes
    datatype: int
    value: bytes


class RolledBack(NamedTuple):
    """The bucket took back what vbucket *vb* had above *seqno*; its changes come anew from there."""

    vb: int
    seqno: int


class _SavedPosition(msgspec.Struct):
    source: str
    checkpoints: dict[int, Checkpoint]


class ChangeStream:
    """An endless iterator over the changes of all vbuckets; made by `stream`. Use it in `async with`, or close it.

    An event counts as taken when the next one is asked for: only then is it part of `position` and acknowledged, so
    that a consumer that is slow, or ends in the middle of one, makes the bucket wait and loses nothing.
    """

    def __init__(self, url: str, credentials: Credentials, since: str, tls: TlsOptions, options: FeedOptions) -> None:
        self._address = parse_source_url(url, tls)
        self._credentials = credentials
        self._options = options
        self._saved = _loaded(since) if since else None
        self._feed: DcpFeed | None = None
        self._source = ""
        self._positions: dict[int, Position] = {}
        self._portion: Iterator[Event] = iter(())
        self._given: Event | None = None

    @property
    def position(self) -> str:
        """Text to go on with, for `since`, of all that was taken. Empty before the first event."""
        checkpoints = {vb: position.checkpoint() for vb, position in self._positions.items()}
        return msgspec.json.encode(_SavedPosition(self._source, checkpoints)).decode() if checkpoints else ""

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> DcpChange | RolledBack:
        """Wait for the next event; the one before it counts as taken.

        Raises:
            SourceUnavailable, AuthenticationFailed: the bucket cannot be reached at the start, or refuses us.
            InputInvalid: `since` is of another bucket.
        """
        self._take_given()
        while True:
            for event in self._portion:
                if event[0] <= EXPIRATION:
                    self._given = event
                    return DcpChange(*event)
                if event[0] == ROLLBACK:
                    return self._roll_back(*event[1:])
                self._note(event)
            await self._read()

    def _take_given(self) -> None:
        if self._given is not None:
            assert self._given[2] > self._positions[self._given[1]].seqno, "seqnos of a vbucket rise"
            self._positions[self._given[1]].seqno = self._given[2]
            self._given = None

    def _note(self, event: Event) -> None:
        """Take in an event that is about no document."""
        kind, vb, *rest = event
        position = self._positions[vb]
        if kind == ADVANCED:
            position.seqno = rest[0]
        elif kind == SNAPSHOT:
            position.enter_snapshot(*rest)
        elif kind == HISTORY:
            position.failover_log = rest[0]

    def _roll_back(self, vb: int, to: Checkpoint) -> RolledBack:
        """Stream *vb* again from the last point at or below *to* at which it was complete."""
        assert self._feed is not None, "events come from a feed"
        checkpoint = self._positions[vb].rolled_back(to)
        assert checkpoint.seqno <= to.seqno, "above it is nothing any more"
        self._positions[vb] = Position(checkpoint)
        self._feed.drop([vb])
        self._feed.add({vb: checkpoint})
        return RolledBack(vb, checkpoint.seqno)

    async def _read(self) -> None:
        """Acknowledge what was taken and read on; wait where there is nothing now."""
        if self._feed is None:
            self._feed = await self._start()
        self._feed.acknowledge()
        now = time.monotonic()
        due = self._feed.tick(now)
        portion = self._feed.read(_READ_BYTES)
        if not portion:
            await self._readable(max(0.0, min(due - now, _LONGEST_WAIT_S)))
        else:
            await asyncio.sleep(0)  # whoever only reads what is there must not keep others from running
        self._portion = iter(portion)

    async def _start(self) -> DcpFeed:
        self._address = await asyncio.to_thread(find_nodes, self._address)
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        bucket = await asyncio.to_thread(source_info, self._address, self._credentials, deadline)
        if self._saved and self._saved.source != bucket.uuid:
            raise InputInvalid(f"the position is of the bucket {self._saved.source}, and this is {bucket.uuid}")
        self._source = bucket.uuid
        checkpoints: Mapping[int, Checkpoint] = self._saved.checkpoints if self._saved else {}
        self._positions = {vb: Position(checkpoints.get(vb, ORIGIN)) for vb in range(bucket.n_vbuckets)}
        feed = DcpFeed(self._address, self._credentials, name="stream", source_uuid=bucket.uuid, options=self._options)
        feed.start({vb: checkpoints.get(vb, ORIGIN) for vb in self._positions})
        return feed

    async def _readable(self, timeout_s: float) -> None:
        """Wait until the feed has something to do, at most *timeout_s*."""
        assert self._feed is not None, "there is something to wait for"
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._feed.fileno(), ready.set)
        try:
            async with asyncio.timeout(timeout_s):
                await ready.wait()
        except TimeoutError:
            pass
        finally:
            loop.remove_reader(self._feed.fileno())

    def close(self) -> None:
        """Close the connections. What was given last counts as taken only if the next one was asked for."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    async def __aenter__(self) -> Self:
        """Return itself; it connects when it is first asked."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()


def stream(
    url: str,
    user: str,
    password: str,
    *,
    since: str = "",
    tls: TlsOptions = TlsOptions(),  # noqa: B008 it is immutable
    options: FeedOptions = FeedOptions(),  # noqa: B008 it is immutable
) -> ChangeStream:
    """Return the changes of the bucket at *url*, from its beginning or from `since`, the `position` of an earlier one.

    Raises:
        ConfigInvalid: *url* is none of a bucket.
        InputInvalid: *since* is no position.
    """
    return ChangeStream(url, Credentials(user, password), since, tls, options)


def _loaded(since: str) -> _SavedPosition:
    try:
        saved = msgspec.json.decode(since, type=_SavedPosition)
    except msgspec.DecodeError as error:
        raise InputInvalid(f"since is no position of a stream: {error}") from error
    for vb, at in saved.checkpoints.items():
        if min(at) < 0 or not at.snap_start <= at.seqno <= at.snap_end:
            raise InputInvalid(f"since is no position of a stream: vbucket {vb} is at {at}, outside of its snapshot")
    return saved
