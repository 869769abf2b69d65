"""Packs a round into frames that fit a ring, and merges frames into a batch.

A ring frame is complete in itself. So a batch may end after any frame, and nothing has to wait for a rest that the ring
has no room for.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nlargest
from operator import itemgetter
from types import ModuleType
from typing import NamedTuple, Protocol

import msgspec

from channelindex.stores.base import ChannelAppend
from workers.telemetry.hot_channels import CANDIDATES

_HEAD_BYTES = 32
"""Bound of what a frame takes besides group, channels and principals: its head, the epoch, three heads of at most 5."""
_SECTION_BYTES = 11
"""Bound of what one channel takes besides name and entries: one head of a byte, two of at most 5."""
_PRINCIPAL_BYTES = 5


class CompiledSections(Protocol):
    """Sections that the compiled kernel holds. Its length is the number of channels."""

    def __len__(self) -> int:
        """Count the channels."""
        ...

    def mapping(self) -> dict[str, list[bytes]]:
        """Return what it holds, as `Sections` in Python have it."""
        ...

    def frames(self, epoch: int, group: str, principals: list[str], max_bytes: int, /) -> list[bytes] | None:
        """Do what `pack_frames` does; None where one channel's entries or one principal have no room in a frame."""
        ...


Sections = Mapping[str, Sequence[bytes]] | CompiledSections
"""By channel: its packed entries in the order of the feed."""


def mapping_of(sections: Sections) -> Mapping[str, Sequence[bytes]]:
    """Return *sections* as a mapping, whoever holds them."""
    return sections if isinstance(sections, Mapping) else sections.mapping()


class RingFrame(msgspec.Struct, array_like=True):
    """Carries a part of one round to one batch writer.

    `channels` are (channel, packed entries), `principals` the keys of user and role documents that changed.
    """

    epoch: int
    group: str
    channels: list[tuple[str, bytes]]
    principals: list[str]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RingFrame).decode


def pack_frames(epoch: int, group: str, sections: Sections, principals: Sequence[str], max_bytes: int) -> list[bytes]:
    """Encode a round for one batch writer as ring frames of at most *max_bytes* each; none for an empty round.

    Channels keep their order, and so do the entries of a channel, within a frame and over the frames.

    Raises:
        ValueError: a single entry or principal does not fit.
    """
    if not isinstance(sections, Mapping):
        compiled = sections.frames(epoch, group, [*principals], max_bytes)
        if compiled is not None:
            return compiled
        sections = sections.mapping()
    room = max_bytes - _HEAD_BYTES - len(group.encode())
    assert room > 0, "the smallest ring has room for more than a head"
    payloads: list[bytes] = []
    frame, n_bytes = RingFrame(epoch, group, [], []), 0
    for item, size in _items(sections, principals, room):
        if n_bytes + size > room:
            payloads.append(_encode(frame))
            frame, n_bytes = RingFrame(epoch, group, [], []), 0
        n_bytes += size
        if isinstance(item, str):
            frame.principals.append(item)
        else:
            frame.channels.append(item)
    if n_bytes:
        payloads.append(_encode(frame))
    assert all(len(payload) <= max_bytes for payload in payloads), "the bounds of the encoded sizes are too low"
    return payloads


def _items(
    sections: Mapping[str, Sequence[bytes]], principals: Sequence[str], room: int
) -> Iterator[tuple[tuple[str, bytes] | str, int]]:
    """Yield what the frames have to carry, in order, each with a bound of its encoded size, at most *room*."""
    for channel, entries in sections.items():
        overhead = len(channel.encode()) + _SECTION_BYTES
        joined = b"".join(entries)
        size = overhead + len(joined)
        if size <= room:
            yield (channel, joined), size
            continue
        for part in _split(entries, room - overhead):
            joined = b"".join(part)
            assert overhead + len(joined) <= room, "`_split` keeps within its room"
            yield (channel, joined), overhead + len(joined)
    for principal in principals:
        size = len(principal.encode()) + _PRINCIPAL_BYTES
        if size > room:
            raise ValueError(_too_large("principal", size, room))
        yield principal, size


def _split(entries: Sequence[bytes], room: int) -> Iterator[list[bytes]]:
    """Yield *entries* in runs, each of which fits into *room*."""
    part: list[bytes] = []
    n_bytes = 0
    for entry in entries:
        size = len(entry)
        if size > room:
            raise ValueError(_too_large("entry", size, room))
        if n_bytes + size > room:
            yield part
            part, n_bytes = [], 0
        part.append(entry)
        n_bytes += size
    assert part, "a channel without entries has no section"
    yield part


def _too_large(what: str, size: int, room: int) -> str:
    return f"one {what} takes {size} bytes of a ring frame, there is room for {room}: raise workers.ring_bytes"


def decode_frame(payload: bytes | memoryview) -> RingFrame:
    """Decode the frame in *payload*, copied out of the ring."""
    return _decode(payload)


class Merged(NamedTuple):
    """One batch: its appends, the principals that changed, and how many ring frames it is made of.

    `n_bytes` are those of all entries, `largest` the channels of the largest appends, with their bytes.
    """

    appends: Sequence[ChannelAppend]
    principals: list[str]
    n_frames: int
    n_bytes: int
    largest: Sequence[tuple[str, int]]


def merge_payloads(
    taken: Iterable[tuple[int, list[memoryview]]], stale: set[int], compiled: ModuleType | None = None
) -> Merged:
    """Make one batch of the payloads that were taken from rings, each with its ring's least epoch.

    Frames of a lower epoch, or of a *stale* one, are left out. The kernel does it, if *compiled* is there.
    """
    rings = [*taken]
    merged = None if compiled is None else compiled.merge(rings, stale, ChannelAppend)
    if merged is not None:
        assert merged[2] <= sum(len(payloads) for _, payloads in rings), "no frame is there twice"
        return Merged(*merged)
    frames = [
        frame
        for least, payloads in rings
        for frame in map(decode_frame, payloads)
        if frame.epoch >= least and frame.epoch not in stale
    ]
    appends = merge(frames)
    sizes = [(append.channel, len(append.entries)) for append in appends]
    n_bytes = sum(size for _, size in sizes)
    principals = [key for frame in frames for key in frame.principals]
    return Merged(appends, principals, len(frames), n_bytes, nlargest(CANDIDATES, sizes, key=itemgetter(1)))


def merge(frames: Iterable[RingFrame]) -> list[ChannelAppend]:
    """Make one batch: what *frames* bring for the same channel, group and epoch becomes one append.

    Frames of one epoch must come in the order in which they were published; then their entries keep it.
    """
    sections_by_channel: dict[tuple[int, str], dict[str, list[bytes]]] = {}
    for frame in frames:
        by_channel = sections_by_channel.setdefault((frame.epoch, frame.group), {})
        for channel, entries in frame.channels:
            known = by_channel.get(channel)
            if known is None:
                by_channel[channel] = [entries]
            else:
                known.append(entries)
    return [
        ChannelAppend(channel, group, epoch, b"".join(sections))
        for (epoch, group), by_channel in sections_by_channel.items()
        for channel, sections in by_channel.items()
    ]
