"""In which form a document is streamed: it depends on how it is stored, where it is read, and what the client takes.

The rows without a source were recorded (golden/compressed, golden/b_variety_disk*; couchbase/kv_engine 6.0). Those of
"active" without HELLO SNAPPY were run on that server. Read only, in couchbase/kv_engine master, engines/ep/src/item.cc
and engines/ep/src/dcp/active_stream.cc: that `force_value_compression` compresses a bodyless value again (since 6.6.1),
and what passive mode keeps.
"""

import cramjam
import pytest

from channelindex import mcbp
from channelindex.feeds.base import JSON, SNAPPY, XATTR
from devbucket.items import (
    COMPRESS,
    FROM_DISK,
    INCLUDE_XATTRS,
    NO_VALUE,
    NO_VALUE_KEEP_DATATYPE,
    TAKES_SNAPPY,
    Item,
    datatype_of,
    join_value,
)
from devbucket.vbucket import VBucket

BODY = b'{"t":"' + b"lorem ipsum " * 20 + b'"}'
SYNC = {"_sync": b'{"rev":"1-a","channels":{"a":null}}'}
WHOLE = INCLUDE_XATTRS
BODYLESS = INCLUDE_XATTRS | NO_VALUE_KEEP_DATATYPE
FORCED = TAKES_SNAPPY | COMPRESS


def document(vbucket: VBucket, *, xattrs: dict[str, bytes] | None = None, compressed: bool = False) -> Item:
    value, datatype = join_value(xattrs or {}, BODY)
    return vbucket.write(b"k", value, datatype, compressed=compressed)


def sent(item: Item, mode: int) -> tuple[int, bool, bytes]:
    """The datatype, whether the bytes are Snappy's, and what they stand for."""
    item.encode_for(mode)
    datatype, payload = item.head[5], item.payload
    try:
        plain = bytes(cramjam.snappy.decompress_raw(payload)) if payload else b""
    except cramjam.DecompressionError:
        return datatype, False, payload
    return datatype, bool(payload), plain


SECTION = mcbp.join_xattrs(SYNC.items(), b"")


@pytest.mark.parametrize(
    ("stored", "mode", "datatype", "is_snappy", "value"),
    [
        # in memory, or read from disk by who takes no Snappy: plain
        ("plain", WHOLE | TAKES_SNAPPY, JSON | XATTR, False, SECTION + BODY),
        ("plain", BODYLESS | TAKES_SNAPPY, JSON | XATTR, False, SECTION),
        ("plain", BODYLESS | TAKES_SNAPPY | FROM_DISK, JSON | XATTR, False, SECTION),
        ("evicted", WHOLE | FROM_DISK, JSON | XATTR, False, SECTION + BODY),
        ("evicted", BODYLESS | FROM_DISK, JSON | XATTR, False, SECTION),
        # evicted: disk has it compressed, and without its body it comes plain under a datatype that says Snappy
        ("evicted", WHOLE | TAKES_SNAPPY | FROM_DISK, JSON | XATTR | SNAPPY, True, SECTION + BODY),
        ("evicted", BODYLESS | TAKES_SNAPPY | FROM_DISK, JSON | XATTR | SNAPPY, False, SECTION),
        ("evicted", INCLUDE_XATTRS | NO_VALUE | TAKES_SNAPPY | FROM_DISK, XATTR, False, SECTION),
        ("evicted", TAKES_SNAPPY | FROM_DISK, JSON, False, BODY),
        ("evicted", BODYLESS | FORCED | FROM_DISK, JSON | XATTR | SNAPPY, True, SECTION),
        # compressed in memory too: the same from everywhere, and even to who takes no Snappy
        ("active", WHOLE, JSON | XATTR, False, SECTION + BODY),
        ("active", WHOLE | TAKES_SNAPPY, JSON | XATTR | SNAPPY, True, SECTION + BODY),
        ("active", BODYLESS, JSON | XATTR | SNAPPY, False, SECTION),
        ("active", BODYLESS | TAKES_SNAPPY, JSON | XATTR | SNAPPY, False, SECTION),
        ("active", BODYLESS | FORCED, JSON | XATTR | SNAPPY, True, SECTION),
        # without xattrs nothing is left but the datatype
        ("evicted, inline", BODYLESS | TAKES_SNAPPY | FROM_DISK, JSON | SNAPPY, False, b""),
        ("active, inline", BODYLESS, JSON | SNAPPY, False, b""),
        ("active, inline", WHOLE | TAKES_SNAPPY, JSON | SNAPPY, True, BODY),
        ("passive, inline", WHOLE | TAKES_SNAPPY, JSON | SNAPPY, True, BODY),
        ("passive, inline", WHOLE, JSON, False, BODY),
        # tombstones are on disk only
        ("tombstone", BODYLESS | TAKES_SNAPPY, XATTR, False, SECTION),
        ("tombstone", BODYLESS | TAKES_SNAPPY | FROM_DISK, XATTR | SNAPPY, False, SECTION),
        ("tombstone", WHOLE | TAKES_SNAPPY | FROM_DISK, XATTR | SNAPPY, True, SECTION),
        ("tombstone", BODYLESS | FORCED | FROM_DISK, XATTR | SNAPPY, True, SECTION),
        ("tombstone", BODYLESS | FROM_DISK, XATTR, False, SECTION),
    ],
)
def test_form_of_a_streamed_document(stored, mode, datatype, is_snappy, value):
    vbucket = VBucket(0)
    how, _, where = stored.partition(", ")
    if how in ("active", "passive"):
        vbucket.set_compression(how)
    item = document(vbucket, xattrs={} if where == "inline" else SYNC, compressed=how == "passive")
    if how == "evicted":
        assert vbucket.evict(1) == 1
    if how == "tombstone":
        item = vbucket.delete(b"k")
    assert sent(item, mode) == (datatype, is_snappy, value)


def test_mode_off_keeps_nothing_compressed_and_active_compresses_what_is_there():
    vbucket = VBucket(0)
    item = document(vbucket, compressed=True)
    assert sent(item, WHOLE | TAKES_SNAPPY)[0] == JSON
    vbucket.set_compression("active")
    assert sent(item, WHOLE | TAKES_SNAPPY)[0] == JSON | SNAPPY
    vbucket.set_compression("off")
    assert sent(item, WHOLE | TAKES_SNAPPY)[0] == JSON | SNAPPY, "what is compressed stays so until it is written anew"


def test_read_or_restart_brings_an_evicted_value_back_into_memory():
    vbucket = VBucket(0)
    item = document(vbucket, xattrs=SYNC)
    for back in (lambda: vbucket.find(b"k"), vbucket.settle):
        vbucket.evict(1)
        assert sent(item, BODYLESS | TAKES_SNAPPY | FROM_DISK)[0] & SNAPPY
        back()
        assert not sent(item, BODYLESS | TAKES_SNAPPY | FROM_DISK)[0] & SNAPPY


def test_eviction_takes_each_nth_document_and_streams_it_from_disk():
    vbucket = VBucket(0)
    for number in range(10):
        vbucket.write(b"%d" % number, BODY, JSON)
    assert vbucket.evict(3) == 4
    assert [item.resident for item in vbucket.items_after(0)] == [number % 3 != 0 for number in range(10)]
    assert vbucket.memory_from == 11


@pytest.mark.parametrize(
    ("body", "datatype"),
    [
        (rb'{"x":"\ud800"}', JSON),
        (rb'{"x":"\udc00\ud800"}', JSON),
        (rb'{"x":"\ud80"}', 0),
        (rb'{"x":"\ud800}', 0),
        (b'{"x":"\xed\xa0\x80"}', 0),
        (b'{"x":' + b"[" * 5_000 + b"]" * 5_000 + b"}", JSON),
        (b'{"x":' + b"[" * 5_000 + b"]" * 4_999 + b"}", 0),
        (b'{"x":nonsense}', 0),
        (b'{"x":"[[","y":NaN}', 0),
    ],
)
def test_what_is_json_is_a_matter_of_syntax_alone(body: bytes, datatype: int):
    """Read in kv_engine, utilities/JSON_checker.c at 4688e0f43: neither pairs of surrogates nor a deepest level."""
    assert datatype_of(body) == datatype
