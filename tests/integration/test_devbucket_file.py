"""A dev bucket that outlives its process: ended cleanly, and killed."""

import random
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest

from channelindex.errors import ConfigInvalid
from channelindex.mcbp import Frame, Op, Status
from devbucket import DevBucket, DevBucketConfig
from devbucket.bucket import Bucket
from devbucket.storage import Storage
from devbucket.vbucket import MAX_LOSS, VBucketState
from tests.support.mcbp_client import RawClient, Writer, local_writer

N_VBUCKETS = 4
EVERYTHING = ("seqno", "key", "rev", "cas", "value", "datatype", "flags", "expiry", "fate", "changed_at")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bucket.db"


def load(storage: Storage) -> Bucket:
    return storage.load(Bucket("default", N_VBUCKETS))


def reopened(path: Path) -> tuple[Storage, Bucket]:
    storage = Storage(path)
    return storage, load(storage)


def contents(bucket: Bucket) -> list[list[tuple[object, ...]]]:
    return [
        [tuple(getattr(item, name) for name in EVERYTHING) for item in vbucket.items_after(0)]
        for vbucket in bucket.vbuckets
    ]


def logs(bucket: Bucket) -> list[list[tuple[int, int]]]:
    return [vbucket.failover_log.entries for vbucket in bucket.vbuckets]


def test_bucket_is_as_it_was_after_a_clean_end(path):
    storage, bucket = reopened(path)
    writer = local_writer(bucket)
    writer.set(0, b"k", b'{"n":1}', flags=7, expiry=4102444800)
    writer.mutate_in(1, b"x", (Op.SUBDOC_DICT_UPSERT, 0x05, "_sync", b'{"rev":"1-a"}'), doc_flags=1)
    writer.delete(1, b"x")
    writer.set(1, b"x", b"\xff")
    writer.set(2, b"gone", b"{}")
    writer.delete(2, b"gone")
    bucket.set_vbucket_state(3, VBucketState.DEAD)
    before, uuid, histories, cas = contents(bucket), bucket.uuid, logs(bucket), bucket.vbuckets[0].next_cas()
    storage.close(bucket)
    storage, again = reopened(path)
    assert (contents(again), again.uuid, logs(again)) == (before, uuid, histories)
    assert again.vbuckets[3].state == VBucketState.DEAD
    assert local_writer(again).set(0, b"k", b"{}").cas > cas
    assert again.vbuckets[0].high_seqno == 2
    storage.close(again)


def test_killed_process_loses_what_was_not_written_and_begins_new_histories(path):
    storage, bucket = reopened(path)
    local_writer(bucket).set(0, b"kept", b"{}")
    storage.flush(bucket)
    local_writer(bucket).set(0, b"lost", b"{}")
    histories = logs(bucket)
    storage._link.close()  # as kill -9 leaves it
    storage, again = reopened(path)
    assert [item.key for item in again.vbuckets[0].items_after(0)] == [b"kept"]
    for (vbuuid, seqno), old, new in zip(
        [(log[0][0], vb.high_seqno) for log, vb in zip(histories, again.vbuckets, strict=True)],
        histories,
        logs(again),
        strict=True,
    ):
        assert new[1:] == old
        assert new[0][0] != vbuuid
        assert new[0][1] == seqno
    storage.close(again)


def test_file_follows_failover_purge_and_compaction(path):
    storage, bucket = reopened(path)
    writer = local_writer(bucket)
    for i in range(5):
        writer.set(0, b"%d" % i, b"{}")
        writer.set(1, b"%d" % i, b"{}")
        writer.delete(1, b"%d" % i)
    storage.flush(bucket)
    bucket.failover(0, lose=3)
    bucket.vbuckets[1].purge()
    for i in range(3 * MAX_LOSS):
        writer.set(2, b"k", b"%d" % i)
    storage.flush(bucket)
    writer.set(2, b"k", b"last")
    before = contents(bucket)
    storage.close(bucket)
    storage, again = reopened(path)
    assert contents(again) == before
    assert [vbucket.purge_seqno for vbucket in again.vbuckets[:2]] == [0, 8]
    assert again.vbuckets[2].high_seqno == 3 * MAX_LOSS + 1
    again.failover(2, lose=2)
    assert local_writer(again).get(2, b"k").value == b"%d" % (3 * MAX_LOSS - 2)
    storage.close(again)


def test_documents_expire_after_a_restart(path):
    storage, bucket = reopened(path)
    local_writer(bucket).set(0, b"k", b"{}", expiry=4102444800)
    storage.close(bucket)
    storage, again = reopened(path)
    again.clock = again.vbuckets[0]._clock = lambda: 4102444801.0
    again.expire_due()
    assert [item.deleted for item in again.vbuckets[0].items_after(0)] == [True]
    storage.close(again)


@pytest.mark.parametrize("seed", range(5))
def test_random_life_with_random_ends(path, seed):
    """What the file says is what the bucket was when it was last written, whatever happened in between."""
    chance = random.Random(seed)
    storage, bucket = reopened(path)
    for _ in range(12):
        for _ in range(chance.randrange(40)):
            do_something(bucket, chance)
        storage.flush(bucket)
        flushed = contents(bucket)
        clean = chance.random() < 0.5
        for _ in range(chance.randrange(1, 10)):
            do_something(bucket, chance)
        if clean:
            flushed = contents(bucket)
            storage.close(bucket)
        else:
            storage._link.close()
        storage, bucket = reopened(path)
        assert contents(bucket) == flushed
    storage.close(bucket)


def do_something(bucket: Bucket, chance: random.Random) -> None:
    writer, vb, key = local_writer(bucket), chance.randrange(N_VBUCKETS), b"%d" % chance.randrange(8)
    what = chance.randrange(20)
    if what == 0:
        bucket.failover(vb, chance.randint(0, min(3, bucket.vbuckets[vb].most_to_lose())))
    elif what == 1:
        bucket.vbuckets[vb].purge()
    elif what < 6:
        writer.delete(vb, key)
    else:
        writer.set(vb, key, b"%d" % chance.randrange(1000))


def test_file_in_use_or_of_another_kind_is_refused(path, tmp_path):
    storage, bucket = reopened(path)
    with pytest.raises(ConfigInvalid, match="cannot hold a dev bucket: database is locked"):
        Storage(path)
    storage.close(bucket)
    storage = Storage(path)
    with pytest.raises(ConfigInvalid, match="holds the bucket 'default' with 4 vbuckets, not 'other' with 8"):
        storage.load(Bucket("other", 8))
    storage.close(None)
    text = tmp_path / "text"
    text.write_text("this is no database, and long enough to be seen as none" * 10)
    with pytest.raises(ConfigInvalid, match="cannot hold a dev bucket"):
        Storage(text)
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as link:
        link.executescript("CREATE TABLE t (x);")
    with pytest.raises(ConfigInvalid, match="it is no file of a dev bucket of format 2"):
        Storage(other)


def config(path: Path) -> DevBucketConfig:
    return DevBucketConfig(n_vbuckets=N_VBUCKETS, file=path)


def observed(client: RawClient, vbuuid: int) -> Frame:
    return client.call(Op.OBSERVE_SEQNO, value=vbuuid.to_bytes(8, "big"))


def test_kill_keeps_what_was_durable_and_clients_of_the_old_history_roll_back(path):
    with DevBucket(config(path)) as bucket:
        client = RawClient(bucket.port).log_in()
        assert client.durable_set(0, b"durable", level=3).status == Status.SUCCESS
        feed = RawClient(bucket.port).log_in().open_dcp()
        vbuuid = int.from_bytes(feed.request_stream(0).value[:8], "big")
        bucket.stall_disk(on=True)
        Writer(client.call).set(0, b"unwritten", b"{}")
        assert struct.unpack(">BHQQQ", observed(client, vbuuid).value) == (0, 0, vbuuid, 1, 2)
        bucket.kill()
        assert client.read() is None
        client.close()
        feed.close()
    with DevBucket(config(path)) as bucket:
        client = RawClient(bucket.port).log_in()
        assert Writer(client.call).get(0, b"durable").status == Status.SUCCESS
        assert Writer(client.call).get(0, b"unwritten").status == Status.KEY_ENOENT
        hard, _, now, persisted, current, old, end = struct.unpack(">BHQQQQQ", observed(client, vbuuid).value)
        assert (hard, persisted, current, old, end) == (1, 1, 1, vbuuid, 1)
        assert now != vbuuid
        feed = RawClient(bucket.port).log_in().open_dcp()
        refused = feed.request_stream(0, start=2, vbuuid=vbuuid)
        assert (refused.status, refused.value) == (Status.ROLLBACK, struct.pack(">Q", 1))
        client.close()
        feed.close()


def test_clean_restart_keeps_everything_and_the_history(path):
    with DevBucket(config(path)) as bucket:
        client = RawClient(bucket.port).log_in().open_dcp()
        Writer(client.call).set(0, b"k", b"{}")
        vbuuid = client.request_stream(0).value[:8]
        client.close()
    with DevBucket(config(path)) as bucket:
        client = RawClient(bucket.port).log_in().open_dcp()
        accepted = client.request_stream(0, start=1, vbuuid=int.from_bytes(vbuuid, "big"))
        assert (accepted.status, accepted.value[:8]) == (Status.SUCCESS, vbuuid)
        client.close()


def test_dropped_bucket_is_gone_from_the_file_too(path):
    with DevBucket(config(path)) as bucket:
        bucket.bulk_load([(0, 5, b"k", b"{}")])
        bucket.drop_bucket()
        bucket.create_bucket()
        bucket.bulk_load([(1, 3, b"k", b"{}")])
    with DevBucket(config(path)) as bucket:
        assert bucket.high_seqnos() == [0, 3, 0, 0]
        bucket.drop_bucket()
    with DevBucket(config(path)) as bucket:
        assert bucket.high_seqnos() == [0] * N_VBUCKETS
