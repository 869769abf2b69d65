"""What travels in the rings: packing a round into frames that fit, and merging frames into a batch.

A ring frame is complete in itself: its clock pairs never claim an entry that a later frame brings. So a batch may end
after any frame, and nothing has to wait for a rest that the ring has no room for.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from struct import Struct

import msgspec

from channelindex.blocks import PAIR_BYTES
from channelindex.stores.base import ChannelAppend

_HEAD_BYTES = 32
"""Bound of what a frame takes besides group, channels and principals: its head, the epoch, three heads of at most 5."""
_SECTION_BYTES = 16
"""Bound of what one channel takes besides name, entries and pairs: one head of a byte, three of at most 5."""
_PRINCIPAL_BYTES = 5

_SPLIT_PAIR = Struct(">2s8s")
_VB_BYTES = 2

Sections = Mapping[str, tuple[Sequence[bytes], Mapping[int, bytes]]]
"""By channel: its packed entries in the order of the feed, and the newest clock pair of each vbucket in them."""


class RingFrame(msgspec.Struct, array_like=True):
    """A part of one round for one batch writer.

    `channels` are (channel, packed entries, clock pairs of just these entries), `principals` the keys of user and role
    documents that changed.
    """

    epoch: int
    group: str
    channels: list[tuple[str, bytes, bytes]]
    principals: list[str]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RingFrame).decode


def pack_frames(epoch: int, group: str, sections: Sections, principals: Sequence[str], max_bytes: int) -> list[bytes]:
    """A round for one batch writer as encoded ring frames of at most *max_bytes* each; empty for an empty round.

    Channels keep their order, and so do the entries of a channel, within a frame and over the frames.

    Raises:
        ValueError: a single entry or principal does not fit.
    """
    room = max_bytes - _HEAD_BYTES - len(group.encode())
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
    return payloads


def _items(
    sections: Sections, principals: Sequence[str], room: int
) -> Iterator[tuple[tuple[str, bytes, bytes] | str, int]]:
    """What the frames have to carry, in order, each with a bound of its encoded size, at most *room*."""
    for channel, (entries, pair_by_vb) in sections.items():
        overhead = len(channel.encode()) + _SECTION_BYTES
        joined, pairs = b"".join(entries), b"".join(pair_by_vb.values())
        size = overhead + len(joined) + len(pairs)
        if size <= room:
            yield (channel, joined, pairs), size
            continue
        for part in _split(entries, room - overhead):
            joined, pairs = b"".join(part), pairs_of(part)
            yield (channel, joined, pairs), overhead + len(joined) + len(pairs)
    for principal in principals:
        size = len(principal.encode()) + _PRINCIPAL_BYTES
        if size > room:
            raise ValueError(_too_large("principal", size, room))
        yield principal, size


def _split(entries: Sequence[bytes], room: int) -> Iterator[list[bytes]]:
    """*entries* in runs, each of which fits into *room* together with one clock pair per entry."""
    part: list[bytes] = []
    n_bytes = 0
    for entry in entries:
        size = len(entry) + PAIR_BYTES
        if size > room:
            raise ValueError(_too_large("entry", size, room))
        if n_bytes + size > room:
            yield part
            part, n_bytes = [], 0
        part.append(entry)
        n_bytes += size
    yield part


def pairs_of(entries: Iterable[bytes]) -> bytes:
    """The clock pairs of packed entries: an entry begins with its pair, and the last one of a vbucket is its newest."""
    return b"".join({entry[:_VB_BYTES]: entry[:PAIR_BYTES] for entry in entries}.values())


def _too_large(what: str, size: int, room: int) -> str:
    return f"one {what} takes {size} bytes of a ring frame, there is room for {room}: raise workers.ring_bytes"


def decode_frame(payload: bytes | memoryview) -> RingFrame:
    """The frame that *payload* encodes, copied out of the ring."""
    return _decode(payload)


def merge(frames: Iterable[RingFrame]) -> list[ChannelAppend]:
    """One batch: what *frames* bring for the same channel, group and epoch becomes one append.

    Frames of one epoch must come in the order in which they were published; then their entries keep it.
    """
    sections_by_channel: dict[tuple[int, str], dict[str, list[tuple[str, bytes, bytes]]]] = {}
    for frame in frames:
        by_channel = sections_by_channel.setdefault((frame.epoch, frame.group), {})
        for section in frame.channels:
            known = by_channel.get(section[0])
            if known is None:
                by_channel[section[0]] = [section]
            else:
                known.append(section)
    return [
        _append(channel, group, epoch, sections)
        for (epoch, group), by_channel in sections_by_channel.items()
        for channel, sections in by_channel.items()
    ]


def _append(channel: str, group: str, epoch: int, sections: list[tuple[str, bytes, bytes]]) -> ChannelAppend:
    if len(sections) == 1:
        return ChannelAppend(channel, group, epoch, sections[0][1], sections[0][2])
    entries = b"".join([section[1] for section in sections])
    seqno_by_vb = dict(_SPLIT_PAIR.iter_unpack(b"".join([section[2] for section in sections])))
    return ChannelAppend(channel, group, epoch, entries, b"".join(chain.from_iterable(seqno_by_vb.items())))
