"""The since token survives the round trip, stays short, and every damage to it is told apart."""

import base64
import random
import tracemalloc
import zlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex.errors import TokenInvalid
from channelindex.model import IndexMeta
from channelindex.reading import since_token
from channelindex.reading.since_token import Delivered, Token

META = IndexMeta(1, 64, 8, "source", "index")
ASKED = since_token.ask(["orders"], None)
UINT64 = st.integers(0, (1 << 64) - 1)
NEARBY = st.integers(1_000_000, 1_000_300)


def row(n: int):
    return st.one_of(*(st.lists(values, min_size=n, max_size=n).map(tuple) for values in (UINT64, NEARBY, st.just(0))))


@st.composite
def tokens(draw):
    seqnos = draw(row(64))
    ahead = draw(row(64))
    horizons = tuple(min(seqno + more, (1 << 64) - 1) for seqno, more in zip(seqnos, ahead, strict=True))
    return Token(
        draw(st.integers(0, 63)), draw(UINT64), draw(row(8)), seqnos, horizons, draw(st.sampled_from(Delivered))
    )


TOKENS = tokens()


def resealed(body: bytes) -> str:
    """*body* with a checksum that fits, as text."""
    return base64.urlsafe_b64encode(body + zlib.crc32(body).to_bytes(4, "big")).rstrip(b"=").decode()


def body_of(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[:-4]


@given(TOKENS)
def test_token_round_trips_and_is_safe_in_a_url(value):
    text = since_token.encode(value, META, ASKED)
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert since_token.decode(text, META, ASKED) == value


@pytest.mark.parametrize("text", [None, "", "0"])
def test_no_token_means_the_beginning(text):
    assert since_token.decode(text, META, ASKED) == Token(0, 0, (0,) * 8, (0,) * 64, (0,) * 64)


@pytest.mark.parametrize("n_vbuckets", [64, 1024])
def test_tokens_are_as_short_as_the_docstring_says(n_vbuckets):
    """With epochs that count on from a time in milliseconds, as stores hand them out."""
    choice = random.Random(7)
    meta = IndexMeta(1, n_vbuckets, 64, "source", "index")
    documents = Counter(choice.randrange(n_vbuckets) for _ in range(10_000))
    workers = [1_795_000_000_000 + choice.randrange(400) for _ in range(8)]
    moved_about = [choice.choice(workers) for _ in range(64)]
    measured = [
        _size(meta, [0] * 64, [0] * n_vbuckets),
        _size(meta, workers[:1] * 64, [documents[vb] for vb in range(n_vbuckets)]),
        _size(meta, moved_about, [int(choice.gauss(100_000, 316)) for _ in range(n_vbuckets)]),
        _size(meta, moved_about, [choice.randrange(10**9) for _ in range(n_vbuckets)]),
    ]
    (row,) = [
        line.split() for line in (since_token.__doc__ or "").splitlines() if line.split()[:1] == [str(n_vbuckets)]
    ]
    assert measured == [pytest.approx(int(said), rel=0.03) for said in row[1:]]


def _size(meta, epochs, seqnos) -> int:
    return len(since_token.encode(Token(0, 0, tuple(epochs), tuple(seqnos), tuple(seqnos)), meta, ASKED))


@given(TOKENS, st.data())
def test_any_changed_character_is_noticed(value, data):
    text = since_token.encode(value, META, ASKED)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("ABCxyz019-_").filter(lambda character: character != text[at]))
    with pytest.raises(TokenInvalid, match="garbled"):
        since_token.decode(text[:at] + other + text[at + 1 :], META, ASKED)


@given(TOKENS, st.data())
def test_a_cut_token_is_noticed(value, data):
    text = since_token.encode(value, META, ASKED)
    with pytest.raises(TokenInvalid, match="garbled"):
        since_token.decode(text[: data.draw(st.integers(1, len(text) - 1))], META, ASKED)


@given(st.text(min_size=1).filter(lambda text: text != "0"))
def test_arbitrary_text_is_invalid_and_nothing_else(text):
    with pytest.raises(TokenInvalid):
        since_token.decode(text, META, ASKED)


@given(st.binary(max_size=80), st.booleans())
def test_arbitrary_numbers_under_a_fitting_checksum_decode_or_are_invalid(numbers, deflated):
    head = bytearray(body_of(since_token.encode(since_token.decode(None, META, ASKED), META, ASKED))[:9])
    if deflated:
        head[0] |= 0x80
        numbers = zlib.compress(numbers, wbits=-15)
    try:
        decoded = since_token.decode(resealed(bytes(head) + numbers), META, ASKED)
    except TokenInvalid:
        return
    assert since_token.decode(since_token.encode(decoded, META, ASKED), META, ASKED) == decoded


def test_a_small_token_cannot_inflate_without_limit():
    head = bytearray(body_of(since_token.encode(since_token.decode(None, META, ASKED), META, ASKED))[:9])
    head[0] |= 0x80
    bomb = resealed(bytes(head) + zlib.compress(bytes(3_000_000), wbits=-15))
    tracemalloc.start()
    try:
        with pytest.raises(TokenInvalid, match="do not fit"):
            since_token.decode(bomb, META, ASKED)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_large_token_is_refused_before_anything_is_made_of_it():
    text = "A" * 10_000_000
    tracemalloc.start()
    try:
        with pytest.raises(TokenInvalid, match="10000000 characters are too many"):
            since_token.decode(text, META, ASKED)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["\x00", "../../etc/passwd", "A" * 40, "ÄÖÜ", "\ud800", "AAAA\nAAAA", "%00", "[" * 500]
)
def test_what_is_no_token_is_refused_in_one_line(text):
    with pytest.raises(TokenInvalid) as refused:
        since_token.decode(text, META, ASKED)
    assert len(str(refused.value).splitlines()) == 1


def test_a_token_has_one_spelling():
    text = since_token.encode(since_token.decode(None, META, ASKED), META, ASKED)
    assert len(body_of(text) + b"csum") % 3, "the last character has unused bits"
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    same_bytes = text[:-1] + alphabet[alphabet.index(text[-1]) + 1]
    assert body_of(same_bytes) == body_of(text)
    with pytest.raises(TokenInvalid, match="checksum"):
        since_token.decode(same_bytes, META, ASKED)


def test_a_token_of_another_index_is_refused():
    foreign = since_token.encode(since_token.decode(None, META, ASKED), IndexMeta(1, 64, 8, "source", "another"), ASKED)
    with pytest.raises(TokenInvalid, match="another index"):
        since_token.decode(foreign, META, ASKED)


def test_a_token_of_another_format_version_is_refused():
    body = bytearray(body_of(since_token.encode(since_token.decode(None, META, ASKED), META, ASKED)))
    body[0] += 1
    with pytest.raises(TokenInvalid, match="format version 3"):
        since_token.decode(resealed(bytes(body)), META, ASKED)


def test_a_token_of_another_shape_is_refused():
    other = IndexMeta(1, 128, 8, "source", "index")
    with pytest.raises(TokenInvalid, match="do not fit"):
        since_token.decode(since_token.encode(since_token.decode(None, other, ASKED), other, ASKED), META, ASKED)
