"""The dev bucket answers the recordings of a real server as that server did.

What may differ is in `ALLOWED` of `tests/support/devbucket_replay.py`. One recording is not replayed here: h_noop is a
minute of waiting, which `tests/unit/test_devbucket_flow.py` goes through on a clock of its own.
"""

import struct
import time
from collections.abc import Callable
from pathlib import Path

import cramjam
import pytest

from channelindex import mcbp
from channelindex.feeds.base import JSON, SNAPPY
from channelindex.feeds.base import XATTR as HAS_XATTRS
from channelindex.mcbp import Frame, Op
from devbucket.bucket import Bucket
from devbucket.vbucket import VBucketState
from tests.support.devbucket_replay import Line, Replay, Step, read_recording
from tests.support.mcbp_client import Writer, local_writer
from tests.support.shared import shared_path

MKDOC, ACCESS_DELETED = 0x01, 0x04
MKDIR, XATTR, MACROS = 0x01, 0x04, 0x10
SYNC = b"""{"rev": "1-abc", "sequence": 7, "recent_sequences": [7], "history": {"revs": ["1-abc"], "parents": [-1], \
"channels": [["ABC"]]}, "channels": {"ABC": null, "OLD": {"seq": 3, "rev": "2-def"}}, "cas": "0x0000000000000000", \
"value_crc32c": "", "time_saved": "2024-01-02T03:04:05.678Z"}"""
BODY = b'{"type":"order","channels":["ABC"]}'


def loading(fill: Callable[[Writer, Bucket], None]) -> Callable[[Bucket], None]:
    return lambda bucket: fill(local_writer(bucket), bucket)


def numbered(n_documents: int, name: str = "k{}", value: str = '{{"i":{}}}', vbs: tuple[int, ...] = (0,)):
    """Fill vbuckets with documents of which name and value hold a number."""

    def fill(writer: Writer, _bucket: Bucket) -> None:
        for vb in vbs:
            for i in range(n_documents):
                writer.set(vb, name.format(i).encode(), value.format(i).encode())

    return loading(fill)


def set_request(vb: int, key: str, value: str) -> bytes:
    return mcbp.pack_request(
        Op.SET, vbucket=vb, key=key.encode(), value=value.encode(), extras=struct.pack(">II", 0, 0)
    )


def delete_request(vb: int, key: str) -> bytes:
    return mcbp.pack_request(Op.DELETE, vbucket=vb, key=key.encode())


def write(vb: int, key: str, value: str) -> Step:
    return lambda replay: replay.burst(set_request(vb, key, value))


def ignored(*texts: str) -> Callable[[Line], bool]:
    return lambda line: any(text in line.text for text in texts)


def test_hello_auth():
    Replay(shared_path("golden/a_hello_auth.jsonl")).run()


def fill_variety(writer: Writer, bucket: Bucket) -> None:
    """The 37 writes of the b_variety recordings."""
    past = int(time.time()) - 1
    writer.set(0, b"json1", b'{"a":1}')
    writer.set(0, b"dedup", b'{"v":1}')
    writer.set(0, b"num", b"42")
    writer.set(0, b"arr", b"[1,2,3]", flags=0x02000006)
    writer.set(0, b"bin", b"\x00\xff\xfe\x80binary")
    writer.set(0, b"empty", b"")
    writer.set(0, b"text", b"hello world")
    sync_and_body(writer, b"syncdoc")
    writer.mutate_in(
        0,
        b"syncdoc2",
        (Op.SUBDOC_DICT_UPSERT, XATTR, "_sync", b'{"rev":"1-fed"}'),
        (Op.SUBDOC_DICT_UPSERT, XATTR | MACROS, "_sync.cas", b'"${Mutation.CAS}"'),
        (Op.SUBDOC_DICT_UPSERT, XATTR | MACROS, "_sync.seqno", b'"${Mutation.seqno}"'),
        (Op.SUBDOC_DICT_UPSERT, XATTR | MACROS, "_sync.value_crc32c", b'"${Mutation.value_crc32c}"'),
        (Op.SET, 0, "", b'{"type":"order2"}'),
        doc_flags=MKDOC,
    )
    writer.mutate_in(0, b"syncdoc2", (Op.SUBDOC_DICT_UPSERT, XATTR | MKDIR, "meta", b'{"u":1}'))
    writer.set(0, b"binx", b"\xff\x00bin")
    writer.mutate_in(0, b"binx", (Op.SUBDOC_DICT_UPSERT, XATTR | MKDIR, "_sync", b'{"rev":"1-bin"}'))
    writer.set(0, b"dedup", b'{"v":2}')
    writer.set(0, b"dedup", b'{"v":3}')
    writer.set(0, b"del1", b"{}")
    writer.delete(0, b"del1")
    sync_and_body(writer, b"delx")
    two = writer.mutate_in(
        0, b"delx", (Op.SUBDOC_DICT_UPSERT, XATTR, "user", b"1"), (Op.SUBDOC_DICT_UPSERT, XATTR, "_sync", b"1")
    )
    assert two.status == 0xCF
    writer.mutate_in(0, b"delx", (Op.SUBDOC_DICT_UPSERT, XATTR, "user", b'{"u":1}'))
    writer.delete(0, b"delx")
    sync_and_body(writer, b"tomb")
    writer.mutate_in(
        0,
        b"tomb",
        (Op.SUBDOC_DICT_UPSERT, XATTR, "_sync", b'{"rev":"2-tomb","flags":1}'),
        (Op.DELETE, 0, "", b""),
    )
    sync_and_body(writer, b"tomb2")
    writer.delete(0, b"tomb2")
    after_delete = (Op.SUBDOC_DICT_UPSERT, XATTR, "_sync", b'{"rev":"3-after-delete"}')
    assert writer.mutate_in(0, b"tomb2", after_delete).status == 0x01
    assert writer.mutate_in(0, b"tomb2", after_delete, doc_flags=ACCESS_DELETED).status == 0xCD
    writer.set(0, b"reborn", b'{"r":1}')
    writer.delete(0, b"reborn")
    writer.set(0, b"reborn", b'{"r":2}')
    writer.set(0, b"exp1", b"{}", expiry=past)
    sync_and_body(writer, b"expx", expiry=past)
    writer.set(0, b"ttl", b'{"t":1}', expiry=4102444800)
    writer.set(0, b"big", b'{"big":"' + b"x" * (1024 * 1024 - 10) + b'"}')
    writer.set(0, "ключ-日本-ü-😀".encode(), '{"ü":"日本"}'.encode())
    writer.set(0, b"k" * 250, b'{"l":1}')
    writer.set(0, b"_txn:client-record", b'{"r":1}')
    assert writer.get(0, b"exp1").status == 0x01
    assert writer.get(0, b"expx").status == 0x01
    writer.set(0, b"json1", b'{"a":2}')
    bucket.vbuckets[0].new_checkpoint()


def sync_and_body(writer: Writer, key: bytes, expiry: int | None = None) -> None:
    specs = ((Op.SUBDOC_DICT_UPSERT, XATTR | MKDIR, "_sync", SYNC), (Op.SET, 0, "", BODY))
    assert writer.mutate_in(0, key, *specs, doc_flags=MKDOC, expiry=expiry).status == 0


def fill_variety_on_disk(writer: Writer, bucket: Bucket) -> None:
    fill_variety(writer, bucket)
    writer.set(0, b"after", b'{"live":1}')
    bucket.vbuckets[0].settle()


def fill_variety_restarted(writer: Writer, bucket: Bucket) -> None:
    fill_variety_on_disk(writer, bucket)
    writer.set(0, b"after-restart", b'{"live":2}')
    writer.set(0, b"after-restart2", b'{"live":3}')
    bucket.vbuckets[0].settle()


def test_variety_from_memory():
    steps = (("one more write while connected", write(0, "after", '{"live":1}')),)
    path = shared_path("golden/b_variety_memory.jsonl.gz")
    Replay(path, load=loading(fill_variety), steps=steps, compare_rev=False).run()


def test_variety_from_disk():
    def two_writes(replay: Replay) -> None:
        replay.burst(set_request(0, "after-restart", '{"live":2}'), set_request(0, "after-restart2", '{"live":3}'))

    steps = (("a write while connected", two_writes),)
    path = shared_path("golden/b_variety_disk.jsonl.gz")
    Replay(path, load=loading(fill_variety_on_disk), steps=steps, compare_rev=False).run()


@pytest.mark.parametrize(
    "name",
    [
        "snappy.jsonl",
        "snappy_hello_only.jsonl.gz",
        "delete_times.jsonl.gz",
        "no_json_hello.jsonl.gz",
        "no_value.jsonl",
        "no_value_no_xattr.jsonl",
        "no_value_underlying.jsonl",
        "no_xattr_flag.jsonl.gz",
    ],
)
def test_variety_with_other_open_flags(name):
    path = shared_path(f"golden/b_variety_disk_{name}")
    Replay(path, load=loading(fill_variety_restarted), compare_rev=False).run()


COMPRESSED = "golden/compressed/s_snappy_nobody_disk_{}.jsonl"


def as_recorded(path: Path) -> Callable[[Bucket], None]:
    """Fill a bucket with the documents and tombstones of a recording, evicted where the recorded server had done so."""
    frames: dict[bytes, Frame] = {}
    for line in read_recording(path):
        if line.frame is not None and line.frame.opcode in (Op.DCP_MUTATION, Op.DCP_DELETION):
            frames[line.frame.key] = line.frame  # of two connections, the later one has the body

    def load(bucket: Bucket) -> None:
        for frame in sorted(frames.values(), key=lambda frame: frame.extras):
            vbucket = bucket.vbuckets[frame.vbucket]
            vbucket.high_seqno = int.from_bytes(frame.extras[:8], "big") - 1
            is_plain = frame.datatype & HAS_XATTRS or not frame.datatype & SNAPPY
            value = frame.value if is_plain or not frame.value else cramjam.snappy.decompress_raw(frame.value)
            if frame.opcode == Op.DCP_DELETION:
                vbucket.delete(frame.key, xattrs=mcbp.split_xattrs(frame.value)[0])
            elif frame.datatype & HAS_XATTRS:
                vbucket.write(frame.key, frame.value + b'{"t":1}', JSON | HAS_XATTRS)
            else:
                vbucket.write(frame.key, bytes(value) or b'{"t":1}', frame.datatype & JSON)
        for vbucket in bucket.vbuckets:
            vbucket.evict(1)
            vbucket.find(b"_sync:seq")

    return load


@pytest.mark.parametrize("name", ["auto", "xattrmode", "xattrmode-nocompression"])
def test_values_that_disk_holds_compressed(name):
    path = shared_path(COMPRESSED.format(name))
    load = as_recorded(path)
    Replay(path, n_vbuckets=16, load=load, compare_rev=False, bucket="orders", has_logins=False).run()


def test_live_tail():
    def burst(replay: Replay) -> None:
        keys = (("x", 0, 0), ("y", 1, 0), ("x", 2, 0), ("z", 3, 0), ("x", 4, 0), ("q", 5, 1))
        replay.burst(*(set_request(vb, key, f'{{"n":{n}}}') for key, n, vb in keys))

    def again(replay: Replay) -> None:
        replay.burst(delete_request(0, "live0"), set_request(0, "live0", '{"again":1}'))

    def touch(replay: Replay) -> None:
        replay.writer().call(Op.TOUCH, vbucket=0, key=b"live1", extras=(4102444800).to_bytes(4, "big"))

    def append(replay: Replay) -> None:
        add = mcbp.pack_request(Op.APPEND, key=b"bin", value=b"cd")
        replay.burst(set_request(0, "bin", "ab"), add)

    def increment(replay: Replay) -> None:
        once = mcbp.pack_request(Op.INCREMENT, key=b"cnt", extras=struct.pack(">QQI", 1, 10, 0))
        replay.burst(once, once)

    def checkpoint(replay: Replay) -> None:
        replay.bucket.new_checkpoint(0)
        write(0, "newchk", "{}")(replay)

    steps: tuple[tuple[str, Step], ...] = (
        ("KV write live0", write(0, "live0", '{"i":0}')),
        ("KV write live1", write(0, "live1", '{"i":1}')),
        ("KV write live2", write(0, "live2", '{"i":2}')),
        ("KV pipelined burst", burst),
        ("KV DELETE live0", again),
        ("KV TOUCH", touch),
        ("KV APPEND", append),
        ("snap=[15,15]", increment),
        ("KV create checkpoint", checkpoint),
    )
    Replay(shared_path("golden/c_live_tail.jsonl"), steps=steps, compare_rev=False).run()


def test_end_seqno():
    def five_more(replay: Replay) -> None:
        replay.burst(*(set_request(0, f"m{i}", f'{{"i":{i}}}') for i in range(5)))

    steps: tuple[tuple[str, Step], ...] = (
        ("snap=[5,10]", five_more),
        ("after a restart", lambda replay: replay.bucket.settle(0)),
    )
    Replay(shared_path("golden/d_end_seqno.jsonl"), load=numbered(5), steps=steps).run()


def test_rollback_rules():
    Replay(shared_path("golden/e_rollback_simple.jsonl"), load=numbered(10)).run()


def test_rollback_after_a_crash():
    def crash(replay: Replay) -> None:
        replay.bucket.drop_connections()
        replay.bucket.failover(0, lose=4)
        replay.bucket.settle(0)
        replay.forget_writer()

    def new_branch(replay: Replay) -> None:
        replay.burst(*(set_request(0, f"new{i}", f'{{"new":{i}}}') for i in range(6)))

    steps: tuple[tuple[str, Step], ...] = (
        *((f"snap=[{6 + i},{6 + i}]", write(0, f"u{i}", f'{{"unpersisted":{i}}}')) for i in range(3)),
        ("snap=[9,9]", write(0, "p0", '{"persisted":"no, overwritten"}')),
        ("kill -9 the server", crash),
        ("6 new writes", new_branch),
    )
    load = numbered(5, "p{}", '{{"persisted":{}}}')
    path = shared_path("golden/e_rollback_crash.jsonl")
    Replay(path, load=load, steps=steps, ignore=ignored("snap=[7,11]"), compare_markers=False).run()


def test_rollback_after_a_purge():
    def fill(writer: Writer, bucket: Bucket) -> None:
        for i in range(6):
            writer.set(0, f"k{i}".encode(), f'{{"i":{i}}}'.encode())
        for i in range(3):
            writer.delete(0, f"k{i}".encode())
        writer.set(0, b"last", b"{}")
        bucket.vbuckets[0].purge()

    steps = (("after restart", lambda replay: replay.bucket.settle(0)),)
    path = shared_path("golden/e_rollback_purge.jsonl")
    Replay(path, load=loading(fill), steps=steps, ignore=ignored("REQ DCP_DELETION")).run()


def test_resume_in_the_middle_of_a_snapshot():
    def fill(writer: Writer, bucket: Bucket) -> None:
        for i in range(20):
            writer.set(0, f"k{i:02}".encode(), f'{{"i":{i}}}'.encode())
        bucket.vbuckets[0].settle()

    def overwrite(replay: Replay) -> None:
        replay.burst(*(set_request(0, f"k{i:02}", f'{{"again":{i}}}') for i in range(5)))

    steps: tuple[tuple[str, Step], ...] = (("k00..k04 were overwritten", overwrite),)
    path = shared_path("golden/e_resume_mid_snapshot.jsonl")
    ignore = ignored("snap=[22,25]")
    Replay(path, load=loading(fill), steps=steps, ignore=ignore, compare_markers=False).run()


def test_not_my_vbucket():
    def fill(writer: Writer, bucket: Bucket) -> None:
        for vb in range(4):
            writer.set(vb, b"k", b"{}")
        for vb, state in ((1, VBucketState.REPLICA), (2, VBucketState.DEAD), (3, VBucketState.PENDING)):
            bucket.set_vbucket_state(vb, state)

    Replay(shared_path("golden/f_not_my_vbucket.jsonl"), load=loading(fill)).run()


def test_vbucket_state_changes():
    def fill(writer: Writer, bucket: Bucket) -> None:
        for vb in range(7):
            writer.set(vb, f"k{vb}".encode(), b"{}")
        bucket.set_vbucket_state(6, VBucketState.REPLICA)
        bucket.vbuckets[6].settle()
        bucket.vbuckets[5].new_checkpoint()

    def become(vb: int, state: str) -> Step:
        return lambda replay: replay.bucket.set_state(vb, state)

    steps = (
        ("vb0 active -> dead", become(0, "dead")),
        ("vb1 active -> replica", become(1, "replica")),
        ("vb2 active -> pending", become(2, "pending")),
        ("DEL_VBUCKET vb3", become(3, "dead")),
        ("vb4 active->active", become(4, "active")),
        ("vb1 replica -> active", become(1, "active")),
        ("DCP_STREAM_END opaque=0xd0006", become(6, "active")),
        ("a write arrives", write(5, "alive", "{}")),
    )
    path = shared_path("golden/g_vb_state_change.jsonl")
    Replay(path, n_vbuckets=7, load=loading(fill), steps=steps).run()


def test_flow_control():
    pad = "x" * 190
    steps = (("buffer 100, one message bigger", lambda replay: replay.bucket.settle(0)),)
    load = numbered(40, "key{:02}", f'{{{{"pad":"{pad}"}}}}')
    path = shared_path("golden/i_flow_control.jsonl")
    Replay(path, load=load, steps=steps, ignore=ignored("DCP_NOOP")).run()


def test_bucket_deleted_and_made_anew():
    def eight_new(replay: Replay) -> None:
        for i in range(8):
            replay.writer().set(0, f"n{i}".encode(), b"{}")

    steps: tuple[tuple[str, Step], ...] = (
        ("DELETE_BUCKET default", lambda replay: replay.bucket.drop_bucket()),
        ("bucket re-created", lambda replay: replay.bucket.create_bucket()),
        ("start=0", eight_new),
    )
    load = numbered(5, value="{{}}")
    Replay(shared_path("golden/j_bucket_delete.jsonl"), load=load, steps=steps).run()


def test_close_stream():
    load = numbered(1, "k", "{{}}", vbs=(0, 1, 2, 3))
    Replay(shared_path("golden/k_close_stream.jsonl"), load=load).run()


def test_duplicate_stream():
    steps = (("snap=[2,2]", write(0, "k2", "{}")),)
    Replay(shared_path("golden/l_duplicate_stream.jsonl"), load=numbered(1, "k", "{{}}"), steps=steps).run()


def test_bad_requests():
    Replay(shared_path("golden/m_bad_requests.jsonl"), load=numbered(10, value="{{}}")).run()


def test_ephemeral_bucket_restarted():
    def fill(writer: Writer, _bucket: Bucket) -> None:
        for i in range(4):
            writer.set(0, f"k{i}".encode(), f'{{"i":{i}}}'.encode())
        writer.delete(0, b"k1")
        writer.set(0, b"k2", b'{"again":1}')

    steps = (("kill -9 and restart", Replay.replace_bucket),)
    Replay(shared_path("golden/p_ephemeral.jsonl"), load=loading(fill), steps=steps).run()


def test_interleaving_of_many_streams():
    def fill(writer: Writer, _bucket: Bucket) -> None:
        for vb in range(16):
            for i in range(4):
                writer.set(vb, f"k{vb}-{i}".encode(), f'{{"i":{i}}}'.encode())

    Replay(shared_path("golden/q_interleave.jsonl"), n_vbuckets=16, load=loading(fill)).run()


def test_cluster_map():
    steps = (("a new cluster map is set", lambda replay: replay.bucket.set_state(3, "dead")),)
    Replay(shared_path("golden/r_cluster_config.jsonl"), steps=steps).run()


def test_server_stopped_and_started(tmp_path):
    def stop(replay: Replay) -> None:
        replay.bucket.stop_node(0)

    def start_without_a_bucket(replay: Replay) -> None:
        replay.restart()
        replay.bucket.warm_up(on=True)

    steps: tuple[tuple[str, Step], ...] = (
        ("SIGTERM to the server", stop),
        ("the bucket is not created yet", start_without_a_bucket),
        ("dcp2: REQ HELLO", lambda replay: replay.bucket.warm_up(on=False)),
    )

    path = shared_path("golden/n_server_stop.jsonl")
    Replay(path, load=numbered(3, value="{{}}"), steps=steps, file=tmp_path / "bucket.db").run()


def test_source_checkpoints():
    def fill(writer: Writer, bucket: Bucket) -> None:
        for checkpoint, keys in ((1, b"aba"), (2, b"ac"), (3, b"b")):
            for key in keys:
                writer.set(0, bytes([key]), b'{"cp":%d}' % checkpoint)
            if checkpoint < 3:
                bucket.vbuckets[0].new_checkpoint()
        writer.delete(0, b"c")

    Replay(shared_path("golden/o_checkpoints.jsonl"), load=loading(fill)).run()


def test_every_recording_has_a_test():
    names = {path.name for path in shared_path("golden").glob("*.jsonl*")}
    text = Path(__file__).read_text() + Path(__file__).parent.parent.joinpath("unit/test_devbucket_flow.py").read_text()
    assert {name for name in names if name.removeprefix("b_variety_disk_") not in text} == set()
