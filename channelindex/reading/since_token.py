"""Encodes and decodes the `since` token: a reader's position as a short string that is safe in a URL. Pure; no I/O.

A token is base64url, without padding, of these bytes:

    format version (1 byte; the top bit is set where the numbers are deflated), fingerprint of the index (4 bytes),
    fingerprint of what was asked for (4 bytes)
    the numbers, as varints (seven bits a byte, least significant first, the top bit set on all bytes but the last):
        vbucket whose turn it is, the seqno up to which it has its turn, what was delivered before (`Delivered`)
        epochs by partition; by vbucket the seqnos, then how much higher the horizons are: each list as differences
        to the value before (zigzag: 2d, or -2d - 1 where d is negative), a 0 followed by the number of further zeros
    CRC-32 of all bytes before (4 bytes)

Characters of a token, 64 partitions. Fresh: nothing read yet. New: 10,000 documents so far. Busy: about 100,000 changes
per vbucket, partitions moved about between eight feed workers. Wild: each vbucket had anything up to 10^9 changes.

    vbuckets   fresh    new   busy   wild
    64            28    123    342    584
    1024          32    885   2430   6119
"""

import base64
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import lru_cache
from operator import add, le, sub
from typing import NamedTuple

from channelindex.errors import TokenInvalid
from channelindex.model import IndexMeta

TOKEN_VERSION = 2

_FINGERPRINT_BYTES = 4
_CHECKSUM_BYTES = 4
_INDEX_END = 1 + _FINGERPRINT_BYTES
_HEAD_BYTES = _INDEX_END + _FINGERPRINT_BYTES
MAX_SEQNO = (1 << 64) - 1
_MAX_VARINT_BYTES = 10  # the zigzag of the widest difference has 65 bits
_DEFLATED = 0x80
_RAW_DEFLATE = -15
ANYTHING = bytes(_FINGERPRINT_BYTES)
"""In the place of what was asked for: a position of the whole index, after which all is news whatever is asked for."""


class Delivered(IntEnum):
    """Documents that a reader may have got and that it has yet to get again, for `active_only`."""

    NOTHING = 0
    """In vbuckets at seqno 0, nothing; in the others, anything."""
    NOTHING_IN_TURN = 1
    """Nothing either in `turn_vb`, up to `turn_seqno`: that is its first turn."""
    ANYTHING = 2
    """Of any vbucket: a rollback has put some to 0 again."""


class Token(NamedTuple):
    """A reader's position: `seqnos` by vbucket, each under its partition's epoch in `epochs`.

    `horizons`, by vbucket, are the stable seqnos of when the vbucket was last read. Where one is above the seqno, a
    page ended within the vbucket: documents that have an entry at or below the seqno were left for later because they
    have a newer one up to the horizon. If a rollback takes that one back, they must not be forgotten.

    `turn_vb` is the vbucket whose turn it is: the next result begins with it, as far as `turn_seqno`, and comes back
    to what is above that after all others. A vbucket that keeps changing can so not keep the others waiting.

    `delivered` is for `active_only`.
    """

    turn_vb: int
    turn_seqno: int
    epochs: tuple[int, ...]
    seqnos: tuple[int, ...]
    horizons: tuple[int, ...]
    delivered: Delivered = Delivered.NOTHING


def undelivered_upto(read: Token, vb: int) -> int:
    """The seqno up to which a deletion or removal in *vb* is of no document that the reader at *read* got."""
    if read.delivered == Delivered.ANYTHING:
        return 0
    if vb == read.turn_vb and read.turn_seqno and read.delivered == Delivered.NOTHING_IN_TURN:
        return read.turn_seqno  # what is above has a turn of its own, after the reader got what is up to here
    return 0 if read.seqnos[vb] else MAX_SEQNO


def heard_upto(begin: Token, vb: int, bound: int) -> int:
    """The seqno up to which the reader at *begin* knows of every removal in *vb* that concerns it.

    It got them, or none of the documents. *bound* is what a position of the token's epoch is lowered to.
    """
    if not begin.seqnos[vb] and begin.delivered != Delivered.ANYTHING:
        return MAX_SEQNO
    return min(bound, max(begin.seqnos[vb], undelivered_upto(begin, vb)))


def ask(channels: Iterable[str], doc_ids: Iterable[str] | None) -> bytes:
    """The fingerprint of what a reader asks for: *channels* and *doc_ids* as sets. A token is good for it alone."""
    asked = repr((sorted(set(channels)), None if doc_ids is None else sorted(set(doc_ids))))
    return hashlib.blake2b(asked.encode(errors="surrogatepass"), digest_size=_FINGERPRINT_BYTES).digest()


def encode(token: Token, meta: IndexMeta, asked: bytes) -> str:
    """*token* as the string that `decode` reads; *asked* is of `ask`."""
    return seal(pack(token), meta, asked)


@lru_cache(maxsize=16)
def pack(token: Token) -> bytes:
    """The numbers of *token*, with the byte that begins the string. All that takes time, whatever is asked for.

    Remembered for a few: all who are caught up are at the same.
    """
    assert 0 <= token.turn_vb < len(token.seqnos), "the turn is a vbucket's"
    assert len(token.seqnos) == len(token.horizons)
    assert all(map(le, token.seqnos, token.horizons)), "nobody has read beyond what was stable then"
    numbers = bytearray()
    _put_varint(numbers, token.turn_vb)
    _put_varint(numbers, token.turn_seqno)
    _put_varint(numbers, token.delivered)
    _put_differences(numbers, token.epochs)
    _put_differences(numbers, token.seqnos)
    _put_differences(numbers, map(sub, token.horizons, token.seqnos))
    deflated = zlib.compress(numbers, wbits=_RAW_DEFLATE)
    smaller = len(deflated) < len(numbers)
    version = bytes((TOKEN_VERSION | (_DEFLATED if smaller else 0),))
    return version + (deflated if smaller else numbers)


def seal(packed: bytes, meta: IndexMeta, asked: bytes) -> str:
    """Encode what `pack` returned as the string that `decode` reads."""
    assert len(asked) == _FINGERPRINT_BYTES
    body = packed[:1] + _fingerprint(meta) + asked + packed[1:]
    return _to_text(body + zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "big"))


def packed_in(text: str, meta: IndexMeta, asked: bytes) -> bytes | None:
    """The bytes of `pack` in *text*; None if it is no token for *asked*. Takes a fraction of what `decode` takes."""
    try:
        body = _checked_bytes(text)
    except TokenInvalid:
        return None
    if body[1:_INDEX_END] != _fingerprint(meta) or body[_INDEX_END:_HEAD_BYTES] not in (asked, ANYTHING):
        return None
    return body[:1] + body[_HEAD_BYTES:]


def decode(text: str | None, meta: IndexMeta, asked: bytes | None) -> Token:
    """The token that *text* is; None, "" and "0" stand for the beginning. With None for *asked*, of whatever was asked.

    Raises:
        TokenInvalid: it is garbled, of another format version, was made by another index, or for other than *asked*.
    """
    if text in (None, "", "0"):
        return Token(0, 0, (0,) * meta.n_partitions, (0,) * meta.n_vbuckets, (0,) * meta.n_vbuckets)
    most_bytes = _HEAD_BYTES + _CHECKSUM_BYTES + _most_bytes(meta.n_partitions, meta.n_vbuckets)
    if len(text or "") > 2 * most_bytes:  # before anything is made of it
        raise _garbled(f"{len(text or '')} characters are too many")
    body = _checked_bytes(text or "")
    version = body[0] & ~_DEFLATED
    if version != TOKEN_VERSION:
        raise TokenInvalid(f"since token has format version {version}, this program reads {TOKEN_VERSION}")
    if body[1:_INDEX_END] != _fingerprint(meta):
        raise TokenInvalid("since token was made by another index; begin again without one")
    if asked is not None and body[_INDEX_END:_HEAD_BYTES] not in (asked, ANYTHING):
        raise TokenInvalid("since token was made for other channels or documents; begin again without one")
    return _unpack(body[:1] + body[_HEAD_BYTES:], meta.n_partitions, meta.n_vbuckets)


@lru_cache(maxsize=64)
def _unpack(packed: bytes, n_partitions: int, n_vbuckets: int) -> Token:
    """The token that `pack` packed; remembered for some, because who asks in vain asks again with the same.

    Raises:
        TokenInvalid: it is none of an index of this shape.
    """
    most_bytes = _most_bytes(n_partitions, n_vbuckets)
    numbers = _inflated(packed[1:], most_bytes) if packed[0] & _DEFLATED else packed[1:]
    values = iter(_varints(numbers))
    turn_vb, turn_seqno, delivered = next(values, n_vbuckets), next(values, 0), next(values, 0)
    epochs = _take_differences(values, n_partitions)
    seqnos = _take_differences(values, n_vbuckets)
    horizons = tuple(map(add, seqnos, _take_differences(values, n_vbuckets)))
    if turn_vb >= n_vbuckets or max(turn_seqno, *horizons) > MAX_SEQNO or next(values, None) is not None:
        raise _garbled("its parts do not fit the index")
    if delivered > max(Delivered):
        raise _garbled(f"{delivered} is no mark of what was delivered")
    return Token(turn_vb, turn_seqno, epochs, seqnos, horizons, Delivered(delivered))


def _fingerprint(meta: IndexMeta) -> bytes:
    return zlib.crc32(meta.index_uuid.encode()).to_bytes(_FINGERPRINT_BYTES, "big")


def _garbled(why: str) -> TokenInvalid:
    return TokenInvalid(f"since token is garbled: {why}")


def _to_text(raw: bytes | bytearray) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _checked_bytes(text: str) -> bytes:
    """The bytes of *text* without their checksum, which fits."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError as error:
        raise _garbled("it is not base64url") from error
    if len(raw) < _HEAD_BYTES + _CHECKSUM_BYTES:
        raise _garbled(f"{len(raw)} bytes are too few")
    body, checksum = raw[:-_CHECKSUM_BYTES], raw[-_CHECKSUM_BYTES:]
    if zlib.crc32(body) != int.from_bytes(checksum, "big") or _to_text(raw) != text:
        raise _garbled("its checksum differs")
    return body


def _put_varint(out: bytearray, value: int) -> None:
    assert value >= 0, "it would never end"
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _most_bytes(n_partitions: int, n_vbuckets: int) -> int:
    """Upper bound of the bytes of a token's numbers."""
    return _MAX_VARINT_BYTES * (3 + 2 * n_partitions + 4 * n_vbuckets)


def _inflated(numbers: bytes, most_bytes: int) -> bytes:
    """*numbers* inflated; a token never makes more than *most_bytes*, for which the index has numbers."""
    inflater = zlib.decompressobj(wbits=_RAW_DEFLATE)
    try:
        inflated = inflater.decompress(numbers, most_bytes)
    except zlib.error as error:
        raise _garbled("it does not inflate") from error
    if not inflater.eof or inflater.unused_data:
        raise _garbled("its parts do not fit the index")
    return inflated


def _varints(numbers: bytes) -> list[int]:
    values: list[int] = []
    value = shift = 0
    for byte in numbers:
        if byte > 0x7F:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift >= 7 * _MAX_VARINT_BYTES:
                raise _garbled("a number in it is too long")
        else:
            values.append(value | byte << shift)
            value = shift = 0
    if shift:
        raise _garbled("it ends within a number")
    return values


def _put_differences(out: bytearray, values: Iterable[int]) -> None:
    before = zeros = 0
    for value in values:
        difference, before = value - before, value
        if difference == 0:
            zeros += 1
            continue
        if zeros:
            _put_zeros(out, zeros)
            zeros = 0
        zigzag = 2 * difference if difference > 0 else -2 * difference - 1
        if zigzag <= 0x7F:  # most are; a call for each is what takes time
            out.append(zigzag)
        else:
            _put_varint(out, zigzag)
    if zeros:
        _put_zeros(out, zeros)


def _put_zeros(out: bytearray, n_zeros: int) -> None:
    assert n_zeros > 0
    out.append(0)
    _put_varint(out, n_zeros - 1)


def _take_differences(values: Iterator[int], n_values: int) -> tuple[int, ...]:
    taken: list[int] = []
    before = 0
    while len(taken) < n_values:
        zigzag = next(values, None)
        if zigzag:
            before += -(zigzag + 1) // 2 if zigzag % 2 else zigzag // 2
            if not 0 <= before <= MAX_SEQNO:
                raise _garbled(f"{before} is no seqno")
            taken.append(before)
            continue
        repeats = next(values, None) if zigzag == 0 else None
        if repeats is None or repeats >= n_values - len(taken):
            raise _garbled("its parts do not fit the index")
        taken += [before] * (repeats + 1)
    return tuple(taken)
