"""The read half of an index that a node of this machine holds in its memory."""

import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from channelindex import errors
from channelindex.epochs import EpochStart, PartitionRecord
from channelindex.errors import ChangesForgotten, ChannelIndexError, ProtocolError, StoreUnavailable
from channelindex.model import IndexMeta
from channelindex.stores.base import BlockRef, ChannelState, Quarantined, StableView
from channelindex.stores.memory_wire import (
    MAX_WAIT_S,
    METHODS,
    WIRE_VERSION,
    Failure,
    WireAnswer,
    WireRequest,
    receive_message,
    send_message,
)
from channelindex.timeline import Moment

ANSWER_TIMEOUT_S = 30.0
"""For one answer, besides what it waits itself: a node that is stopped must not hold its readers for ever."""

_PAGE = 10_000
"""Channels listed in one request."""

_STATES_PER_REQUEST = 1000
_BLOCKS_PER_REQUEST = 16

_encode = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(WireAnswer).decode
_result_decoders = {name: msgspec.msgpack.Decoder(method.result) for name, method in METHODS.items()}


class MemoryClient:
    """`IndexReader` of the index behind the socket at *path*. Connects when first needed, and again if that broke."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._peer: socket.socket | None = None

    def meta(self) -> IndexMeta:
        """See `IndexReader.meta`."""
        meta: IndexMeta = self._call("meta")
        return meta

    def stable_view(self) -> StableView:
        """See `IndexReader.stable_view`."""
        view: StableView = self._call("stable_view")
        return view

    def partition_records(self, partitions: Sequence[int] | None = None) -> Sequence[PartitionRecord]:
        """See `IndexReader.partition_records`."""
        records: list[PartitionRecord] = self._call("partition_records", partitions)
        return records

    def archived_starts(self, partitions: Sequence[int]) -> Sequence[Sequence[EpochStart]]:
        """See `IndexReader.archived_starts`."""
        starts: list[list[EpochStart]] = self._call("archived_starts", partitions)
        return starts

    def timelines(self, partitions: Sequence[int]) -> Sequence[Sequence[Moment]]:
        """See `IndexReader.timelines`."""
        moments: list[list[Moment]] = self._call("timelines", partitions)
        return moments

    def channels(self) -> Iterator[str]:
        """See `IndexReader.channels`."""
        start = 0
        while page := self._call("channel_page", start, _PAGE):
            yield from page
            start += len(page)

    def channel_states(self, channels: Sequence[str]) -> Sequence[ChannelState | None]:
        """See `IndexReader.channel_states`."""
        return self._in_parts("channel_states", channels, _STATES_PER_REQUEST)

    def mark(self, _channel: str, _state: ChannelState | None) -> None:
        """See `IndexReader.mark`. It cannot say."""

    def changed(self, marks: Sequence[bytes]) -> Sequence[bool]:
        """See `IndexReader.changed`."""
        return [True] * len(marks)

    def watch(self) -> None:
        """See `IndexReader.watch`. It cannot be watched."""

    def blocks(self, refs: Sequence[BlockRef]) -> Sequence[bytes | None]:
        """See `IndexReader.blocks`."""
        return self._in_parts("blocks", refs, _BLOCKS_PER_REQUEST)

    def principal_counter(self, key: str) -> int:
        """See `IndexReader.principal_counter`."""
        return int(self._call("principal_counter", key))

    def stable_counter(self) -> int:
        """See `IndexReader.stable_counter`."""
        return int(self._call("stable_counter"))

    def wait_stable(self, counter: int, timeout_s: float) -> int:
        """See `IndexReader.wait_stable`."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = min(max(0.0, deadline - time.monotonic()), MAX_WAIT_S)
            current = int(self._call("wait_stable", counter, left_s))
            if current != counter or time.monotonic() >= deadline:
                return current

    def quarantined(self, limit: int = 100) -> tuple[int, Sequence[Quarantined]]:
        """See `IndexReader.quarantined`."""
        total, documents = self._call("quarantined", limit)
        return total, documents

    def close(self) -> None:
        """See `IndexReader.close`."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def _in_parts(self, method: str, items: Sequence[Any], size: int) -> list[Any]:
        assert size > 0
        results: list[Any] = []
        for start in range(0, len(items), size):
            results += self._call(method, items[start : start + size])
        return results

    def _call(self, method: str, *arguments: Any) -> Any:
        assert method in METHODS
        request = _encode(WireRequest(WIRE_VERSION, method, msgspec.Raw(_encode(arguments))))
        try:
            answer = _decode_answer(self._exchange(request))
            if answer.failure is not None:
                raise _error(answer.failure)
            return _result_decoders[method].decode(answer.result)
        except msgspec.MsgspecError as error:
            self.close()
            raise ProtocolError(f"index.store memory:// at {self._path}: an answer that is none: {error}") from error

    def _exchange(self, request: bytes) -> bytes:
        """The answer to *request*; on a connection that broke while nobody used it, after one more attempt."""
        was_open = self._peer is not None
        try:
            return self._exchange_once(request)
        except OSError as error:
            self.close()
            if not was_open:
                raise self._unavailable(error) from error
        try:
            return self._exchange_once(request)
        except OSError as error:
            self.close()
            raise self._unavailable(error) from error

    def _exchange_once(self, request: bytes) -> bytes:
        if self._peer is None:
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            peer.settimeout(ANSWER_TIMEOUT_S + MAX_WAIT_S)
            self._peer = peer
            peer.connect(str(self._path))
        send_message(self._peer, request)
        answer = receive_message(self._peer)
        if answer is None:
            raise OSError("the node has ended the connection")
        return answer

    def _unavailable(self, error: OSError) -> StoreUnavailable:
        return StoreUnavailable(
            f"index.store memory://: no node of this machine answers at {self._path} ({error.strerror or error}); "
            "is it running, with the same node.run_dir and index.name?"
        )


def _error(failure: Failure) -> ChannelIndexError:
    if failure.kind == ChangesForgotten.__name__:
        return ChangesForgotten(failure.channel, failure.floor)
    kind = getattr(errors, failure.kind, ProtocolError)
    return kind(failure.message) if issubclass(kind, ChannelIndexError) else ProtocolError(failure.message)
