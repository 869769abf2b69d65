"""Stored bytes that no store of ours can have written are damage, whoever reads them, and no fault of the program."""

import msgspec
import pytest

from channelindex.epochs import NO_BOUND, EpochStart, new_record, whole_record
from channelindex.errors import IndexCorrupt
from channelindex.model import Checkpoint
from channelindex.stores import records
from channelindex.stores.base import Directory, Quarantined
from channelindex.stores.couchbase import directories as in_bucket
from channelindex.stores.couchbase.link import Stored
from channelindex.stores.redis import directories as in_redis
from channelindex.timeline import Moment

START, NEXT = EpochStart(5, (10, 20), (15, NO_BOUND)), EpochStart(7, (12, 0))


@pytest.mark.parametrize("seqno", [9, 21])
def test_a_checkpoint_outside_of_its_snapshot_is_damage(seqno: int):
    packed = records.pack_checkpoints((Checkpoint(1, seqno, 10, 20),))
    with pytest.raises(IndexCorrupt, match=f"p: a checkpoint at {seqno}, outside of its snapshot 10 to 20"):
        records.unpack_checkpoints(packed, 1, "p")


def test_moments_are_read_in_the_order_of_their_times_whatever_their_order_in_the_store():
    moments = [Moment(time_ms, 1, 0, (Checkpoint(),)) for time_ms in (3, 1, 2)]
    read = records.unpack_moments(b"".join(map(records.pack_moment, moments)), 1, "t")
    assert [moment.time_ms for moment in read] == [1, 2, 3]


@pytest.mark.parametrize("history", [(NEXT, START), (START, START)])
def test_a_history_that_does_not_ascend_is_damage(history: tuple[EpochStart, ...]):
    with pytest.raises(IndexCorrupt, match="p: the epochs of its history do not ascend"):
        records.unpack_history(records.pack_history(history), 2, "p")


def test_an_archive_may_have_starts_in_any_order_and_twice():
    archive = (NEXT, START, START)
    assert records.unpack_archive(records.pack_history(archive), 2, "p") == archive


def test_a_record_that_counts_its_own_start_as_archived_is_damage():
    record = new_record(0, 2)._replace(epoch=NEXT.epoch, history=(START, NEXT), archived=START.epoch)
    with pytest.raises(IndexCorrupt, match="begins at epoch 5, which is said to be in its archive, with all up to 5"):
        whole_record(record, (START,))


def test_a_start_that_reaches_less_far_than_it_is_is_damage():
    packed = records.pack_history((EpochStart(5, (10, 20), (15, 19)),))
    for unpack in (records.unpack_history, records.unpack_archive):
        with pytest.raises(IndexCorrupt, match="p: the start of epoch 5 reaches less far than it is"):
            unpack(packed, 2, "p")


@pytest.mark.parametrize(("number", "first"), [(3, 4), (3, -1)])
def test_a_group_that_begins_behind_its_active_block_or_before_all_is_damage(number: int, first: int):
    value = in_redis.encode_directory(Directory(number, 1, 0, 0, first, 0)).encode()
    message = f"c: block {number} is active, and {first} the first that is there"
    with pytest.raises(IndexCorrupt, match=message):
        in_redis.decode_directory(value, "c")
    document = in_bucket.ChannelDirectory({"g": in_bucket.DirectoryEntry(number, 1, 0, first)})
    with pytest.raises(IndexCorrupt, match=message):
        in_bucket.decode_directory(Stored(msgspec.msgpack.encode(document), 1), "c")


def test_a_quarantined_document_before_the_first_seqno_is_damage():
    packed = records.pack_quarantined(Quarantined(0, 0, b"key", "why", 1.0))
    with pytest.raises(IndexCorrupt, match="q: "):
        records.unpack_quarantined(packed, "q")
