"""Snapshots of an index that is lost and made anew while they are taken."""

from typing import Any

import pytest

from channelindex.epochs import new_record
from channelindex.errors import StoreUnavailable
from channelindex.model import IndexMeta
from channelindex.reading.snapshot import Snapshots
from channelindex.stores.records import view_of


class RemadeStore:
    """An index of two partitions of 4 vbuckets at the first look, of 8 from the second on."""

    def stable_view(self):
        return view_of(IndexMeta(1, 8, 2, "source", "index"), [new_record(0, 4), new_record(4, 4)])

    def partition_records(self, partitions):
        return [new_record(8 * partition, 8) for partition in partitions]


def test_an_index_made_anew_with_other_partitions_while_it_is_read_is_read_again_later():
    store: Any = RemadeStore()
    with pytest.raises(StoreUnavailable, match="partition 0 now has 8 vbuckets: made anew"):
        Snapshots(store).take()
