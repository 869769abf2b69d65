"""The meta record of an index in Redis, read while somebody else makes the index."""

from typing import Any

import pytest

from channelindex import blocks
from channelindex.errors import IndexCorrupt, IndexMissing
from channelindex.model import IndexMeta
from channelindex.stores.meta import encode_meta
from channelindex.stores.redis.keys import Keys
from channelindex.stores.redis.partition_records import read_meta

META = IndexMeta(blocks.FORMAT_VERSION, 16, 4, "source", "index")


class Answers:
    """A link whose GETs find one thing after the other; partition records are there, or not."""

    def __init__(self, *found: bytes | None, has_partitions: bool) -> None:
        self._found = list(found)
        self._has_partitions = has_partitions

    def execute(self, *_: object) -> bytes | None:
        return self._found.pop(0)

    def pipeline(self, commands: list[Any]) -> list[int]:
        return [int(self._has_partitions)] * len(commands)


def read(*found: bytes | None, has_partitions: bool) -> IndexMeta:
    return read_meta(Answers(*found, has_partitions=has_partitions), Keys("channels"), "channels")  # type: ignore[arg-type]


def test_index_that_is_made_between_two_looks_is_whole():
    assert read(None, encode_meta(META), has_partitions=True) == META


def test_meta_that_is_missing_beside_partitions_is_lost():
    with pytest.raises(IndexCorrupt, match="the meta record is missing"):
        read(None, None, has_partitions=True)


def test_no_meta_and_no_partitions_is_no_index():
    with pytest.raises(IndexMissing):
        read(None, has_partitions=False)
