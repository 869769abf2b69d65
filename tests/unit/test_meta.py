"""The meta record: what is read, what is refused, and what the refusal says."""

import pytest

from channelindex.blocks import FORMAT_VERSION
from channelindex.errors import IndexCorrupt, IndexMismatch, IndexMissing
from channelindex.model import IndexMeta
from channelindex.stores.meta import check_meta, decode_meta, encode_meta

META = IndexMeta(FORMAT_VERSION, 1024, 64, "bucket", "index")


def test_a_meta_record_comes_back():
    assert decode_meta(encode_meta(META), "key", "name") == META


def test_a_newer_format_is_refused_as_such_whatever_else_its_record_holds():
    newer = FORMAT_VERSION + 1
    with pytest.raises(IndexMismatch, match=rf"format version {newer}, written by a newer channelindex.*upgrade"):
        decode_meta(b'{"format": %d, "shards": [1, 2]}' % newer, "key", "name")


@pytest.mark.parametrize(
    "stored", [b"", b"[]", b"{}", b'{"format": "1"}', b'{"format": %d, "n_vbuckets": 64}' % FORMAT_VERSION]
)
def test_what_is_no_meta_record_is_corrupt(stored):
    with pytest.raises(IndexCorrupt, match="key: "):
        decode_meta(stored, "key", "name")


def test_absent_is_missing():
    with pytest.raises(IndexMissing, match=r"index\.name"):
        decode_meta(None, "key", "name")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (IndexMeta(FORMAT_VERSION, 64, 64, "bucket", "index"), "number of vbuckets 64, expected 1024"),
        (IndexMeta(FORMAT_VERSION, 1024, 16, "bucket", "index"), "index.partitions 16, expected 64"),
        (IndexMeta(FORMAT_VERSION, 1024, 64, "another", "index"), "source bucket UUID another, expected bucket"),
    ],
)
def test_a_mismatch_names_both_sides_and_the_way_out(found, says):
    with pytest.raises(IndexMismatch, match=says) as caught:
        check_meta(found, META, "name")
    assert "set index.name to a new name" in str(caught.value)
    assert "source.url" in str(caught.value)
