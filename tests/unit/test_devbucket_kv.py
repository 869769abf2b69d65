"""The dev bucket's document commands, without a connection."""

import json
import struct

import pytest

from channelindex import mcbp
from channelindex.mcbp import Feature, Op, Status
from devbucket.bucket import Bucket
from devbucket.client_session import ClientSession
from devbucket.dispatch import answer
from devbucket.items import MAX_SYSTEM_XATTR_BYTES, MAX_VALUE_BYTES
from devbucket.jsonpath import PathError, split_path
from devbucket.kv_commands import GET_META
from devbucket.replies import HangUp
from devbucket.subdoc_edit import REPLACE_BODY_WITH_XATTR
from tests.support.mcbp_client import Writer, local_session, local_writer

MKDOC, ADD, ACCESS_DELETED, CREATE_AS_DELETED = 0x01, 0x02, 0x04, 0x08
MKDIR, XATTR, MACROS = 0x01, 0x04, 0x10
NOW = 1_700_000_000


@pytest.fixture
def bucket() -> Bucket:
    return Bucket("default", 4, clock=lambda: float(NOW))


@pytest.fixture
def writer(bucket: Bucket) -> Writer:
    return local_writer(bucket)


def upsert(path: str, text: bytes, flags: int = MKDIR) -> tuple[int, int, str, bytes]:
    return (Op.SUBDOC_DICT_UPSERT, flags, path, text)


def count(writer: Writer, opcode: int, delta: int = 1, initial: int = 0, expiry: int = 0):
    return writer.call(opcode, key=b"n", extras=struct.pack(">QQI", delta, initial, expiry))


def test_set_get_delete(writer):
    stored = writer.set(1, b"k", b"[1]", flags=7)
    found = writer.get(1, b"k")
    assert (found.status, found.value, found.extras, found.cas) == (0, b"[1]", b"\0\0\0\7", stored.cas)
    assert writer.get(0, b"k").status == Status.KEY_ENOENT
    assert writer.delete(1, b"k").cas > stored.cas
    assert writer.get(1, b"k").status == Status.KEY_ENOENT
    assert writer.delete(1, b"k").status == Status.KEY_ENOENT


@pytest.mark.parametrize(
    ("opcode", "present", "status"),
    [
        (Op.ADD, True, Status.KEY_EEXISTS),
        (Op.ADD, False, Status.SUCCESS),
        (Op.REPLACE, True, Status.SUCCESS),
        (Op.REPLACE, False, Status.KEY_ENOENT),
        (Op.SET, True, Status.SUCCESS),
    ],
)
def test_add_and_replace_look_whether_the_document_is_there(writer, opcode, present, status):
    if present:
        writer.set(0, b"k", b"1")
    assert writer.call(opcode, key=b"k", extras=bytes(8), value=b"2").status == status


@pytest.mark.parametrize("opcode", [Op.SET, Op.REPLACE, Op.APPEND, Op.DELETE])
def test_wrong_cas_is_refused_and_the_right_one_passes(writer, opcode):
    cas = writer.set(0, b"k", b"1").cas
    fields = {"extras": bytes(8), "value": b"2"} if opcode in (Op.SET, Op.REPLACE) else {}
    assert writer.call(opcode, key=b"k", cas=cas + 1, **fields).status == Status.KEY_EEXISTS
    assert writer.call(opcode, key=b"gone", cas=cas, **fields).status == Status.KEY_ENOENT
    assert writer.call(opcode, key=b"k", cas=cas, **fields).status == Status.SUCCESS


def test_append_and_prepend(writer):
    assert writer.call(Op.APPEND, key=b"k", value=b"x").status == Status.NOT_STORED
    writer.set(0, b"k", b"b")
    writer.call(Op.APPEND, key=b"k", value=b"c")
    writer.call(Op.PREPEND, key=b"k", value=b"a")
    assert writer.get(0, b"k").value == b"abc"


def test_counters(writer):
    assert count(writer, Op.INCREMENT, expiry=0xFFFFFFFF).status == Status.KEY_ENOENT
    assert count(writer, Op.INCREMENT, initial=5).value == struct.pack(">Q", 5)
    assert count(writer, Op.INCREMENT, delta=3).value == struct.pack(">Q", 8)
    assert count(writer, Op.DECREMENT, delta=9).value == struct.pack(">Q", 0)
    writer.set(0, b"n", str(2**64 - 1).encode())
    assert count(writer, Op.INCREMENT, delta=2).value == struct.pack(">Q", 1)
    writer.set(0, b"n", b"one")
    assert count(writer, Op.INCREMENT).status == Status.DELTA_BADVAL


def test_expiry_is_relative_up_to_thirty_days_and_absolute_beyond(bucket, writer):
    writer.set(0, b"relative", b"1", expiry=60)
    writer.set(0, b"absolute", b"1", expiry=NOW + 90)
    assert bucket.vbuckets[0].find(b"relative").expiry == NOW + 60
    assert bucket.vbuckets[0].find(b"absolute").expiry == NOW + 90


def test_pager_expires_what_nobody_reads():
    now = [float(NOW)]
    bucket = Bucket("default", 2, clock=lambda: now[0])
    writer = local_writer(bucket)
    writer.set(1, b"short", b"1", expiry=10)
    writer.set(1, b"long", b"1", expiry=10)
    writer.call(Op.TOUCH, vbucket=1, key=b"long", extras=(100).to_bytes(4, "big"))
    now[0] += 50
    bucket.expire_due()
    assert [(item.key, item.deleted) for item in bucket.vbuckets[1].items_after(0)] == [
        (b"long", False),
        (b"short", True),
    ]
    now[0] += 51
    bucket.expire_due()
    assert [item.deleted for item in bucket.vbuckets[1].items_after(0)] == [True, True]


def test_setting_the_body_keeps_the_xattrs_of_a_live_document(bucket, writer):
    writer.mutate_in(0, b"k", upsert("mine", b"1", XATTR), doc_flags=MKDOC)
    writer.set(0, b"k", b"[]")
    assert bucket.vbuckets[0].find(b"k").xattrs() == {"mine": b"1"}
    writer.delete(0, b"k")
    writer.set(0, b"k", b"[]")
    assert bucket.vbuckets[0].find(b"k").xattrs() == {}


@pytest.mark.parametrize(
    ("opcode", "fields"),
    [
        (Op.SET, {"key": b"k", "extras": bytes(4)}),
        (Op.SET, {"key": b"", "extras": bytes(8)}),
        (Op.SET, {"key": b"k" * 251, "extras": bytes(8)}),
        (Op.SET, {"key": b"k", "extras": bytes(8), "datatype": 2}),
        (Op.TOUCH, {"key": b"k"}),
        (Op.INCREMENT, {"key": b"k"}),
        (Op.OBSERVE_SEQNO, {}),
        (Op.GET_ALL_VB_SEQNOS, {"extras": bytes(8)}),
        (Op.SUBDOC_MULTI_MUTATION, {"key": b"k", "value": b"\xc8\0\0\x09\0\0\0\0"}),
        (Op.SUBDOC_MULTI_LOOKUP, {"key": b"k", "value": b""}),
        (Op.SUBDOC_MULTI_MUTATION, {"key": b"k", "extras": b"\x03", "value": b"\x01\0\0\0\0\0\0\0"}),
    ],
)
def test_malformed_requests_are_answered_and_then_hung_up_on(bucket, opcode, fields):
    taken = mcbp.take_frame(mcbp.pack_request(opcode, **fields))
    assert taken is not None
    replies: list[bytes] = []
    with pytest.raises(HangUp):
        answer(local_session(bucket), taken[0], replies)
    response = mcbp.take_frame(replies[0])
    assert response is not None
    assert response[0].status == Status.EINVAL


def test_unknown_and_refused_commands(writer):
    assert writer.call(0xEE).status == Status.UNKNOWN_COMMAND
    assert writer.call(Op.FLUSH).status == Status.NOT_SUPPORTED


def test_mutation_token_where_negotiated(bucket, writer):
    session = local_session(bucket)
    session.features = frozenset({Feature.MUTATION_SEQNO})
    vbuuid = bucket.vbuckets[2].failover_log.vbuuid
    assert run(session, Op.SET, vbucket=2, key=b"k", extras=bytes(8)).extras == struct.pack(">QQ", vbuuid, 1)
    observed = run(session, Op.OBSERVE_SEQNO, vbucket=2, value=vbuuid.to_bytes(8, "big")).value
    assert observed == struct.pack(">BHQQQ", 0, 2, vbuuid, 1, 1)


def run(session: ClientSession, opcode: int, **fields):
    taken = mcbp.take_frame(mcbp.pack_request(opcode, **fields))
    assert taken is not None
    replies: list[bytes] = []
    answer(session, taken[0], replies)
    response = mcbp.take_frame(replies[0])
    assert response is not None
    return response[0]


def test_stat_ends_with_an_empty_key(bucket):
    taken = mcbp.take_frame(mcbp.pack_request(Op.STAT))
    assert taken is not None
    replies: list[bytes] = []
    answer(local_session(bucket), taken[0], replies)
    frames = [mcbp.take_frame(reply) for reply in replies]
    assert all(frame is not None for frame in frames)
    assert [frame[0].key for frame in frames if frame][-1] == b""
    assert {frame[0].key: frame[0].value for frame in frames if frame}[b"vb_active_num"] == b"4"


def test_meta_of_a_document_and_of_a_tombstone(writer):
    writer.set(0, b"k", b"{}", flags=9)
    meta = writer.call(GET_META, key=b"k", extras=b"\x02")
    assert struct.unpack(">IIIQB", meta.extras) == (0, 9, 0, 1, 1)
    writer.delete(0, b"k")
    assert struct.unpack(">IIIQ", writer.call(GET_META, key=b"k").extras) == (1, 0, 0, 2)
    assert writer.call(GET_META, key=b"gone").status == Status.KEY_ENOENT


def test_subdoc_changes_nested_paths_of_body_and_xattr(writer):
    writer.set(0, b"k", b'{"a":{"b":1},"c":2}')
    changed = writer.mutate_in(
        0,
        b"k",
        upsert("_x.deep.er", b'"v"', XATTR | MKDIR),
        upsert("a.b", b"5"),
        (Op.SUBDOC_DICT_ADD, 0, "a.n", b"[]"),
        (Op.SUBDOC_DELETE, 0, "c", b""),
    )
    assert changed.status == Status.SUCCESS
    assert json.loads(writer.get(0, b"k").value) == {"a": {"b": 5, "n": []}}
    status, results = writer.lookup_in(
        0,
        b"k",
        (Op.SUBDOC_GET, XATTR, "_x.deep"),
        (Op.SUBDOC_EXISTS, 0, "a.b"),
        (Op.SUBDOC_GET, 0, "a.b.z"),
        (Op.SUBDOC_GET, 0, "q"),
        (Op.GET, 0, ""),
    )
    assert status == Status.SUBDOC_MULTI_PATH_FAILURE
    assert results == [
        (0, b'{"er":"v"}'),
        (0, b""),
        (Status.SUBDOC_PATH_MISMATCH, b""),
        (Status.SUBDOC_PATH_ENOENT, b""),
        (0, b'{"a":{"b":5,"n":[]}}'),
    ]


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ((Op.SUBDOC_DICT_UPSERT, 0, "x.y", b"1"), Status.SUBDOC_PATH_ENOENT),
        ((Op.SUBDOC_DICT_ADD, 0, "a", b"1"), Status.SUBDOC_PATH_EEXISTS),
        ((Op.SUBDOC_DELETE, 0, "x", b""), Status.SUBDOC_PATH_ENOENT),
        ((Op.SUBDOC_DELETE, XATTR, "x", b""), Status.SUBDOC_PATH_ENOENT),
        ((Op.SUBDOC_DICT_UPSERT, 0, "a.b", b"1"), Status.SUBDOC_PATH_MISMATCH),
        ((Op.SUBDOC_DICT_UPSERT, 0, "a[0]", b"1"), Status.SUBDOC_PATH_EINVAL),
        ((Op.SUBDOC_DICT_UPSERT, 0, "b", b"{"), 0xC5),
        ((Op.SUBDOC_DICT_UPSERT, XATTR, "b", b"{"), 0xC5),
        ((Op.SUBDOC_DICT_UPSERT, XATTR | MACROS, "b", b'"${Nothing}"'), 0xD0),
        ((REPLACE_BODY_WITH_XATTR, XATTR, "gone", b""), Status.SUBDOC_PATH_ENOENT),
        ((Op.SUBDOC_GET, 0, "a", b""), 0xCB),
    ],
)
def test_subdoc_failure_names_its_path_and_changes_nothing(bucket, writer, spec, status):
    writer.set(0, b"k", b'{"a":1}')
    failed = writer.mutate_in(0, b"k", upsert("first", b"1"), spec)
    assert failed.status == Status.SUBDOC_MULTI_PATH_FAILURE
    assert struct.unpack(">BH", failed.value) == (1, status)
    assert writer.get(0, b"k").value == b'{"a":1}'
    assert bucket.vbuckets[0].high_seqno == 1


def test_subdoc_on_a_body_that_is_not_json(writer):
    writer.set(0, b"k", b"plain")
    assert writer.mutate_in(0, b"k", upsert("a", b"1")).value == struct.pack(">BH", 0, Status.SUBDOC_DOC_NOTJSON)


def test_subdoc_creates_documents_only_when_asked_to(writer):
    assert writer.mutate_in(0, b"k", upsert("a", b"1")).status == Status.KEY_ENOENT
    assert writer.mutate_in(0, b"k", upsert("a", b"1"), doc_flags=MKDOC).status == Status.SUCCESS
    assert writer.get(0, b"k").value == b'{"a":1}'
    assert writer.mutate_in(0, b"k", upsert("a", b"1"), doc_flags=ADD).status == Status.KEY_EEXISTS


def test_subdoc_creates_a_tombstone_and_reads_it_only_with_access_to_deleted(bucket, writer):
    created = writer.mutate_in(0, b"k", upsert("_x", b"1", XATTR), doc_flags=ADD | CREATE_AS_DELETED)
    assert created.status == Status.SUBDOC_SUCCESS_DELETED
    assert bucket.vbuckets[0].find(b"k").deleted
    path = (Op.SUBDOC_GET, XATTR, "_x")
    assert writer.lookup_in(0, b"k", path)[0] == Status.KEY_ENOENT
    assert writer.lookup_in(0, b"k", path, doc_flags=ACCESS_DELETED) == (0xCD, [(0, b"1")])
    other = (Op.SUBDOC_GET, XATTR, "_y")
    assert writer.lookup_in(0, b"k", other, doc_flags=ACCESS_DELETED)[0] == 0xD3


def test_macros_get_what_the_change_gets(bucket, writer):
    writer.mutate_in(
        0,
        b"k",
        upsert("_s.cas", b'"${Mutation.CAS}"', XATTR | MKDIR | MACROS),
        upsert("_s.seqno", b'"${Mutation.seqno}"', XATTR | MACROS),
        upsert("_s.crc", b'"${Mutation.value_crc32c}"', XATTR | MACROS),
        (Op.SET, 0, "", b'{"type":"order2"}'),
        doc_flags=MKDOC,
    )
    item = bucket.vbuckets[0].find(b"k")
    assert json.loads(item.xattrs()["_s"]) == {
        "cas": f"0x{item.cas.to_bytes(8, 'little').hex()}",
        "seqno": "0x0000000000000001",
        "crc": "0x187c8bdc",
    }


def test_body_replaced_with_an_xattr(writer):
    writer.set(0, b"k", b"{}")
    writer.mutate_in(0, b"k", upsert("txn.staged", b'{"n":1}', XATTR | MKDIR))
    replaced = writer.mutate_in(
        0, b"k", (REPLACE_BODY_WITH_XATTR, XATTR, "txn.staged", b""), (Op.SUBDOC_DELETE, XATTR, "txn", b"")
    )
    assert replaced.status == Status.SUCCESS
    assert writer.get(0, b"k").value == b'{"n":1}'
    assert writer.lookup_in(0, b"k", (Op.SUBDOC_EXISTS, XATTR, "txn"))[1] == [(Status.SUBDOC_PATH_ENOENT, b"")]


def test_virtual_xattr_tells_of_the_document(bucket, writer):
    writer.set(0, b"k", b'{"type":"order2"}', expiry=60)
    _, results = writer.lookup_in(0, b"k", (Op.SUBDOC_GET, XATTR, "$document"))
    about = json.loads(results[0][1])
    assert about["CAS"] == f"0x{bucket.vbuckets[0].find(b'k').cas:016x}"
    assert (about["exptime"], about["value_crc32c"], about["deleted"]) == (NOW + 60, "0x187c8bdc", False)


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("a", ["a"]),
        ("a.b", ["a", "b"]),
        ("`a.b`.c", ["a.b", "c"]),
        ("a``b", ["a`b"]),
        ("`a[0]`", ["a[0]"]),
        ("a[0][2].b", ["a", 0, 2, "b"]),
        ("[-1].b", [-1, "b"]),
    ],
)
def test_paths(path, keys):
    assert split_path(path) == tuple(keys)


@pytest.mark.parametrize("path", ["a..b", "a.", "`a", "a[-2]", "a[x]", "a[1", "a]", "a[1]b", ".a", ""])
def test_paths_that_cannot_be_parsed(path):
    with pytest.raises(PathError):
        split_path(path)


def framed(bucket: Bucket, framing: bytes, *, features: frozenset[int] = frozenset(), **fields):
    """A SET of "k" with framing extras."""
    taken = mcbp.take_frame(mcbp.pack_request(Op.SET, key=b"k", value=b"{}", **fields))
    assert taken is not None
    session = local_session(bucket)
    session.features = features
    replies: list[bytes] = []
    answer(session, taken[0]._replace(framing=framing), replies)
    response = mcbp.take_frame(replies[0])
    assert response is not None
    return response[0]


def test_frame_with_framing_extras_is_parsed_whole():
    head = bytes([0x08, Op.SET, 3, 1]) + bytes([8, 0, 0, 5]) + (3 + 8 + 1 + 2).to_bytes(4, "big") + bytes(12)
    taken = mcbp.take_frame(head + b"\x12\x01\x02" + bytes(8) + b"k" + b"{}")
    assert taken is not None
    frame, end = taken
    assert (frame.magic, frame.framing, frame.extras, frame.key, frame.value) == (
        0x80,
        b"\x12\x01\x02",
        bytes(8),
        b"k",
        b"{}",
    )
    assert end == 38


@pytest.mark.parametrize("framing", [b"\x11\x01", b"\x13\x03\x00\x01", b"\x00\x11\x02", b"\xf0\x07\x11\x01"])
def test_every_durability_is_met(bucket, framing):
    assert framed(bucket, framing, extras=bytes(8)).status == Status.SUCCESS


@pytest.mark.parametrize("framing", [b"\x11\x00", b"\x11\x04", b"\x10", b"\x11", b"\xf1", b"\x1f"])
def test_durability_that_makes_no_sense_is_malformed(bucket, framing):
    with pytest.raises(HangUp, match="malformed"):
        framed(bucket, framing, extras=bytes(8))


def test_expiry_is_kept_where_that_is_asked_for(bucket, writer):
    writer.set(0, b"k", b"{}", expiry=60)
    framed(bucket, b"\x50", extras=bytes(8))
    assert bucket.vbuckets[0].find(b"k").expiry == NOW + 60
    framed(bucket, b"", extras=bytes(8))
    assert bucket.vbuckets[0].find(b"k").expiry == 0


def test_locked_document_is_for_the_holder_of_its_cas(writer):
    before = writer.set(0, b"k", b"{}").cas
    locked = writer.call(Op.GET_LOCKED, key=b"k", extras=(10).to_bytes(4, "big"))
    assert (locked.value, locked.cas > before) == (b"{}", True)
    assert writer.get(0, b"k").cas == 2**64 - 1
    assert writer.set(0, b"k", b"1").status == Status.LOCKED
    assert writer.delete(0, b"k").status == Status.LOCKED
    assert writer.call(Op.GET_LOCKED, key=b"k").status == Status.LOCKED
    assert writer.call(Op.UNLOCK, key=b"k", cas=before).status == Status.LOCKED
    assert writer.call(Op.UNLOCK, key=b"k", cas=locked.cas).status == Status.SUCCESS
    assert writer.call(Op.UNLOCK, key=b"k", cas=locked.cas).status == Status.ETMPFAIL
    again = writer.call(Op.GET_LOCKED, key=b"k").cas
    assert writer.call(Op.SET, key=b"k", cas=again, value=b"2", extras=bytes(8)).status == Status.SUCCESS
    assert writer.set(0, b"k", b"3").status == Status.SUCCESS
    assert writer.call(Op.GET_LOCKED, key=b"none").status == Status.KEY_ENOENT


@pytest.mark.parametrize(("asked_s", "lasts_s"), [(5, 5), (30, 30), (0, 15), (31, 15)])
def test_lock_ends_by_itself(asked_s, lasts_s):
    now = [float(NOW)]
    bucket = Bucket("default", 1, clock=lambda: now[0])
    writer = local_writer(bucket)
    writer.set(0, b"k", b"{}")
    writer.call(Op.GET_LOCKED, key=b"k", extras=asked_s.to_bytes(4, "big"))
    now[0] += lasts_s - 1
    assert writer.set(0, b"k", b"1").status == Status.LOCKED
    now[0] += 1
    assert writer.set(0, b"k", b"1").status == Status.SUCCESS


@pytest.mark.parametrize(
    ("spec", "body"),
    [
        ((Op.SUBDOC_ARRAY_PUSH_LAST, 0, "a", b"4,5"), {"a": [1, 2, 3, 4, 5], "n": 7}),
        ((Op.SUBDOC_ARRAY_PUSH_FIRST, 0, "a", b"8,9"), {"a": [8, 9, 1, 2, 3], "n": 7}),
        ((Op.SUBDOC_ARRAY_INSERT, 0, "a[1]", b"9"), {"a": [1, 9, 2, 3], "n": 7}),
        ((Op.SUBDOC_ARRAY_INSERT, 0, "a[3]", b"9"), {"a": [1, 2, 3, 9], "n": 7}),
        ((Op.SUBDOC_ARRAY_ADD_UNIQUE, 0, "a", b"true"), {"a": [1, 2, 3, True], "n": 7}),
        ((Op.SUBDOC_ARRAY_PUSH_LAST, MKDIR, "x.y", b"1"), {"a": [1, 2, 3], "n": 7, "x": {"y": [1]}}),
        ((Op.SUBDOC_DELETE, 0, "a[-1]", b""), {"a": [1, 2], "n": 7}),
        ((Op.SUBDOC_REPLACE, 0, "a[0]", b"{}"), {"a": [{}, 2, 3], "n": 7}),
        ((Op.SUBDOC_COUNTER, 0, "n", b"-9"), {"a": [1, 2, 3], "n": -2}),
        ((Op.SUBDOC_COUNTER, 0, "m", b"5"), {"a": [1, 2, 3], "n": 7, "m": 5}),
    ],
)
def test_subdoc_arrays_and_counters(writer, spec, body):
    writer.set(0, b"k", b'{"a":[1,2,3],"n":7}')
    changed = writer.mutate_in(0, b"k", spec)
    assert changed.status == Status.SUCCESS
    assert json.loads(writer.get(0, b"k").value) == body
    if spec[0] == Op.SUBDOC_COUNTER:
        number = str(body[spec[2]]).encode()
        assert changed.value == struct.pack(">BHI", 0, 0, len(number)) + number


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ((Op.SUBDOC_ARRAY_PUSH_LAST, 0, "x", b"1"), Status.SUBDOC_PATH_ENOENT),
        ((Op.SUBDOC_ARRAY_PUSH_LAST, 0, "n", b"1"), Status.SUBDOC_PATH_MISMATCH),
        ((Op.SUBDOC_ARRAY_PUSH_LAST, 0, "a", b""), 0xC5),
        ((Op.SUBDOC_ARRAY_INSERT, 0, "a[4]", b"1"), Status.SUBDOC_PATH_ENOENT),
        ((Op.SUBDOC_ARRAY_INSERT, 0, "a", b"1"), Status.SUBDOC_PATH_EINVAL),
        ((Op.SUBDOC_ARRAY_INSERT, 0, "a[-1]", b"1"), Status.SUBDOC_PATH_EINVAL),
        ((Op.SUBDOC_ARRAY_ADD_UNIQUE, 0, "a", b"1"), Status.SUBDOC_PATH_EEXISTS),
        ((Op.SUBDOC_ARRAY_ADD_UNIQUE, 0, "a", b"{}"), 0xC5),
        ((Op.SUBDOC_ARRAY_ADD_UNIQUE, 0, "o", b"1"), Status.SUBDOC_PATH_MISMATCH),
        ((Op.SUBDOC_COUNTER, 0, "a", b"1"), Status.SUBDOC_PATH_MISMATCH),
        ((Op.SUBDOC_COUNTER, 0, "n", b"0"), 0xC8),
        ((Op.SUBDOC_COUNTER, 0, "big", b"1"), 0xC7),
        ((Op.SUBDOC_DICT_UPSERT, MKDIR, "x[0].y", b"1"), Status.SUBDOC_PATH_ENOENT),
    ],
)
def test_subdoc_arrays_and_counters_that_do_not_fit(writer, spec, status):
    body = b'{"a":[1,2,3],"n":7,"o":[{}],"big":9223372036854775807}'
    writer.set(0, b"k", body)
    assert struct.unpack(">BH", writer.mutate_in(0, b"k", spec).value) == (0, status)
    assert writer.get(0, b"k").value == body


def test_subdoc_count_and_array_elements(writer):
    writer.set(0, b"k", b'{"a":[1,{"b":2},3],"n":7}')
    status, results = writer.lookup_in(
        0,
        b"k",
        (Op.SUBDOC_GET_COUNT, 0, "a"),
        (Op.SUBDOC_GET_COUNT, 0, ""),
        (Op.SUBDOC_GET_COUNT, 0, "n"),
        (Op.SUBDOC_GET, 0, "a[1].b"),
        (Op.SUBDOC_GET, 0, "a[-1]"),
        (Op.SUBDOC_GET, 0, "a[3]"),
        (Op.SUBDOC_GET, 0, "a.b"),
    )
    assert status == Status.SUBDOC_MULTI_PATH_FAILURE
    assert results == [
        (0, b"3"),
        (0, b"2"),
        (Status.SUBDOC_PATH_MISMATCH, b""),
        (0, b"2"),
        (0, b"3"),
        (Status.SUBDOC_PATH_ENOENT, b""),
        (Status.SUBDOC_PATH_MISMATCH, b""),
    ]


def test_a_key_may_have_250_bytes(writer):
    assert writer.set(0, b"k" * 250, b"1").status == Status.SUCCESS
    with pytest.raises(HangUp):
        writer.set(0, b"k" * 251, b"1")


def test_a_body_may_have_20_mib_with_the_xattrs_of_users_but_without_those_of_the_system(writer):
    body = b" " * MAX_VALUE_BYTES
    assert writer.set(0, b"k", body).status == Status.SUCCESS
    assert writer.set(0, b"k", body + b" ").status == Status.E2BIG
    assert writer.call(Op.APPEND, key=b"k", value=b" ").status == Status.E2BIG
    assert writer.mutate_in(0, b"k", upsert("_sync", b"1", XATTR)).status == Status.SUCCESS
    assert writer.set(0, b"k", body).status == Status.SUCCESS
    assert writer.mutate_in(0, b"k", upsert("mine", b"1", XATTR)).status == Status.E2BIG


def test_the_xattrs_of_the_system_may_have_1_mib(writer):
    overhead = 4 + 4 + len("_sync") + 2
    text = b'"%s"' % (b"x" * (MAX_SYSTEM_XATTR_BYTES - overhead - 2))
    writer.set(0, b"k", b"{}")
    assert writer.mutate_in(0, b"k", upsert("_sync", text, XATTR)).status == Status.SUCCESS
    assert writer.mutate_in(0, b"k", upsert("_sync", b" " + text, XATTR)).status == Status.E2BIG
    assert writer.mutate_in(0, b"k", upsert("_other", b"1", XATTR)).status == Status.E2BIG
