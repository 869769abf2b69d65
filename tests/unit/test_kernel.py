"""The compiled kernel makes of everything what Python makes of it: documents, rounds, removals, frames, damage."""

import gc
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex import kernel
from channelindex.decode.sync_gateway import SyncGatewayDecoder
from channelindex.feeds.base import (
    ADVANCED,
    DELETION,
    EXPIRATION,
    HISTORY,
    JSON,
    MUTATION,
    ROLLBACK,
    SNAPSHOT,
    XATTR,
    Event,
)
from channelindex.feeds.dcp.parser import FrameParser, decompress
from channelindex.mcbp import Op, join_xattrs
from channelindex.model import ORIGIN, Checkpoint
from devbucket.sync_gateway.metadata import apply_revision
from devbucket.sync_gateway.revisions import read_revisions
from tests.fuzz.documents import seeds
from tests.support.dcp_replay import Replay
from tests.support.dcp_wire import deletion, expiration, marker, marker_2, marker_2_2, mutation, stream_frame
from tests.support.kernel_pairs import WITHIN_A_SNAPSHOT, ParserPair, RoundPair, in_frames, needs_kernel, using
from tests.support.recording import by_connection
from tests.support.shared import SHARED, shared_path
from workers.pipeline.round import RoundBuilder

SYNC = b'"rev":"2-0123456789abcdef0123456789abcdef","sequence":7'


@pytest.fixture(autouse=True)
def _kernel() -> None:
    needs_kernel()


def compiled_decode(value: bytes, datatype: int = JSON, key: bytes = b"doc") -> object:
    module = kernel._found().compiled
    assert module is not None
    return module.decode(key, datatype, value)


def inline(sync: bytes) -> bytes:
    return b'{"a":1,"_sync":{%s}}' % sync


def events_of(*values: bytes, key: bytes = b"doc", datatype: int = JSON) -> list[Event]:
    return [(MUTATION, 0, seqno, key, datatype, value) for seqno, value in enumerate(values, 1)]


PLAIN = {
    "no channels": inline(SYNC),
    "null channels": inline(SYNC + b',"channels":null'),
    "channels": inline(SYNC + b',"channels":{"a":null,"b":null,"":null,"*":null}'),
    "wide names": inline(SYNC + b',"channels":{"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80":null}'),
    "white space": b' {\r\n"_sync" :\t{ %s , "channels" : { "a" : null } } , "b" : [ ] }\n' % SYNC,
    "object revision": inline(b'"rev":{"rev":"1-a","src":"s","ver":"0x1"},"channels":{"a":null}'),
    "flags": inline(SYNC + b',"flags":65535,"channels":{"a":null}'),
    "large flags": inline(SYNC + b',"flags":18446744073709551615,"channels":{"a":null}'),
    "deleted": inline(SYNC + b',"deleted":true,"channels":{"a":null}'),
    "removal": inline(SYNC + b',"channels":{"a":null,"b":{"seq":3,"rev":"1-a"},"c":{"seq":4,"rev":"2-b","del":true}}'),
    "removal of the star": inline(SYNC + b',"channels":{"*":{"seq":3,"rev":"1-a"},"b":{"seq":3,"rev":"1-a"}}'),
    "removal by an object": inline(SYNC + b',"channels":{"b":{"seq":3,"rev":{"rev":"1-a","x":[]}},"c":{}}'),
    "odd generations": inline(b'"rev":"4294967296-0123456789abcdef0123456789abcdef"'),
    "leading zero": inline(b'"rev":"01-0123456789abcdef0123456789abcdef"'),
    "generation zero": inline(b'"rev":"0-0123456789abcdef0123456789abcdef"'),
    "capital digest": inline(b'"rev":"1-0123456789ABCDEF0123456789abcdef"'),
    "two hyphens": inline(b'"rev":"1-2-0123456789abcdef0123456789abcdef"'),
    "foreign": b'{"a":{"b":[1,-2.5e-3,true,false,null,"\\u00e9\\n"]}}',
    "empty": b"{}",
    "64 deep": b'{"a":%s1%s,"_sync":{%s}}' % (b"[" * 60, b"]" * 60, SYNC),
    "numbers": b'{"a":[0,-0,0.0,1E+99,1e-99,12345678901234567890123456789],"_sync":{%s}}' % SYNC,
    "many channels": inline(SYNC + b',"channels":{%s}' % b",".join(b'"c%d":null' % i for i in range(128))),
}
ODD = {
    "no revision": inline(b'"sequence":7'),
    "empty revision": inline(b'"rev":""'),
    "null revision": inline(b'"rev":null'),
    "long revision": inline(b'"rev":"%s"' % (b"r" * 255)),
    "escaped revision": inline(b'"rev":"1-\\u0061"'),
    "wide revision": inline(b'"rev":"1-\xc3\xa9"'),
    "negative sequence": inline(b'"rev":"1-a","sequence":-1'),
    "float sequence": inline(b'"rev":"1-a","sequence":7.0'),
    "exponent": inline(b'"rev":"1-a","sequence":7e2'),
    "65 bits": inline(b'"rev":"1-a","sequence":18446744073709551616'),
    "leading zero of a number": inline(b'"rev":"1-a","sequence":07'),
    "two of them": inline(SYNC)[:-1] + b',"_sync":{"rev":"3-c"}}',
    "two revisions": inline(SYNC + b',"rev":"3-c"'),
    "a channel twice": inline(SYNC + b',"channels":{"a":null,"b":null,"a":{"seq":1,"rev":"1-a"}}'),
    "an escaped name": inline(SYNC + b',"channels":{"a":null,"\\u0061":null}'),
    "an escaped field": inline(SYNC + b',"\\u0063hannels":{"a":null}'),
    "an escaped _sync": b'{"\\u005fsync":{%s}}' % SYNC,
    "null _sync": b'{"_sync":null}',
    "no object": b"[1]",
    "not UTF-8": b'{"_sync":{%s},"a":"\xff"}' % SYNC,
    "overlong UTF-8": b'{"_sync":{%s},"a":"\xc0\xaf"}' % SYNC,
    "a surrogate in UTF-8": b'{"_sync":{%s},"a":"\xed\xa0\x80"}' % SYNC,
    "a lone surrogate": b'{"_sync":{%s},"a":"\\ud800"}' % SYNC,
    "a control character": b'{"_sync":{%s},"a":"\x1f"}' % SYNC,
    "a huge number": b'{"_sync":{%s},"a":1e999}' % SYNC,
    "no number": b'{"_sync":{%s},"a":01}' % SYNC,
    "half a word": b'{"_sync":{%s},"a":nul}' % SYNC,
    "a trailing comma": b'{"_sync":{%s,}}' % SYNC,
    "trailing text": inline(SYNC) + b"x",
    "cut off": inline(SYNC)[:-1],
    "a byte order mark": b"\xef\xbb\xbf" + inline(SYNC),
    "100 deep": b'{"a":%s1%s,"_sync":{%s}}' % (b"[" * 100, b"]" * 100, SYNC),
    "1,000,000 deep": b'{"_sync":{%s},"a":%s' % (SYNC, b"[" * 1_000_000),
    "many channels": inline(SYNC + b',"channels":{%s}' % b",".join(b'"c%d":null' % i for i in range(129))),
    "a long name": inline(SYNC + b',"channels":{"%s":null}' % (b"n" * 1025)),
    "null flags": inline(SYNC + b',"flags":null'),
    "a null sequence of a removal": inline(SYNC + b',"channels":{"a":{"seq":null,"rev":"1-a"}}'),
}


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("star_channel", [True, False])
def test_plain_documents_are_the_kernels_and_equal(value: bytes, star_channel: bool) -> None:
    assert compiled_decode(value) is not None, "it leaves to Python what it could do"
    RoundPair(star_channel=star_channel).add(events_of(value, value))


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
def test_odd_documents_are_left_to_python_in_their_turn(value: bytes) -> None:
    assert compiled_decode(value) is None or value == ODD["a channel twice"]
    plain = PLAIN["channels"]
    RoundPair().add(events_of(plain, value, plain, plain, value))


@pytest.mark.parametrize(
    "special",
    [b"", b"\\n", b"\\u00e9", b"\xc3\xa9", b"\xe2\x82\xac" * 30, b"\x1f", b"\x7f", b"\xff", b"\\x", b'"', b"\\"],
)
def test_what_is_special_in_a_string_at_each_place(special: bytes) -> None:
    values = [b'{"a":"%s%s%s","_sync":{%s}}' % (b"x" * n, special, b"y" * (n % 5), SYNC) for n in range(200)]
    RoundPair().add(events_of(*values))


def test_a_document_cut_off_at_each_place() -> None:
    value = PLAIN["removal"][:-1] + b',"a":"\xe2\x82\xac%s","b":[{"c":[-1.5,true]}]}' % (b"x" * 70)
    assert compiled_decode(value) is not None
    assert all(compiled_decode(value[:size]) is None for size in range(1, len(value))), "what is cut off is for Python"
    RoundPair().add(events_of(*(value[:size] for size in range(len(value) + 1))))


@pytest.mark.parametrize("kinds", [(b"[", b"]"), (b'{"k":', b"}"), (b'[{"k":', b"}]")])
@pytest.mark.parametrize(
    "inmost", [b"1", b"[]", b"{}", b'{"k":1}', b"[1,2]", b"}", b"]", b"", b"[,]", b"[1,]", b'{"k":1,}']
)
def test_values_in_each_depth(kinds: tuple[bytes, bytes], inmost: bytes) -> None:
    begin, end = kinds
    values = [b'{"a":%s%s%s,"_sync":{%s}}' % (begin * n, inmost, end * n, SYNC) for n in range(70)]
    RoundPair().add(events_of(*values))


@pytest.mark.parametrize("value", [*seeds(), *PLAIN.values(), *ODD.values()])
def test_each_value_as_attribute_and_in_every_datatype(value: bytes) -> None:
    attributes = [
        join_xattrs([("_sync", value)], b""),
        join_xattrs([("a", b"1"), ("_sync", value), ("z", b"{}")], b"{}"),
        join_xattrs([("_sync", b"")], value),
        join_xattrs([("a", b"1")], value),
        join_xattrs([], value),
    ]
    pair = RoundPair()
    seqno = 0
    for data in [value, *attributes]:
        for datatype in range(8):
            seqno += 1
            plain = decompress(datatype, data) if datatype & 2 else (datatype, data)
            pair.add([(DELETION, 0, seqno, b"doc", *plain)])


@pytest.mark.parametrize("size", [*range(8), 23, 24, 25])
def test_attributes_that_are_cut_off_or_lie(size: int) -> None:
    whole = join_xattrs([("_sync", b'{"rev":"1-a"}')], b"{}")
    pair = RoundPair()
    for seqno, claimed in enumerate([0, 1, 5, 6, 7, 9, 10, 11, 26, 27, 28, 255, 2**31, 2**32 - 1], 1):
        number = claimed.to_bytes(4, "big")
        for data in (
            whole[:size],
            number + whole[4:],
            whole[:4] + number + whole[8:],
            whole[:4] + number + whole[8:size],
        ):
            pair.add([(MUTATION, 0, seqno, b"doc", JSON | XATTR, data)])


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"_sync:user:alice",
        b"_sync:role:\xff",
        b"_sync:rev:1",
        b"_idx:a",
        b"_txn:a",
        b"_sync",
        b"k" * 255,
        b"k" * 256,
    ],
)
def test_keys_that_mean_something(key: bytes) -> None:
    RoundPair().add(events_of(PLAIN["channels"], b"{}", key=key))


def removal_versions() -> Iterator[bytes]:
    removals = [b'"c%d":{"seq":%d,"rev":"%d-a"}' % (i, i, i) for i in range(40)]
    for count in (1, 2, 2, 30, 31, 31, 32, 1, 0, 2, 40):
        yield inline(SYNC + b',"channels":{"x":null%s}' % b"".join(b"," + each for each in removals[:count]))


@pytest.mark.parametrize("n_rows", [1, 16])
def test_removals_are_due_and_remembered_alike(n_rows: int) -> None:
    pair = RoundPair(n_rows=n_rows)
    versions = [*removal_versions()]
    for seqno, value in enumerate(versions * 2, 1):
        taken = pair.add(
            [(MUTATION, 0, seqno, b"doc%d" % (seqno % 3), JSON, value), (MUTATION, 0, seqno + 1000, b"d", JSON, value)]
        )
        assert taken is not None
        pair.add([(MUTATION, 0, seqno + 2000, b"d", JSON, PLAIN["removal"])])


def test_a_round_has_as_many_entries_as_came_and_the_next_begins_anew() -> None:
    pair = RoundPair(vbuckets=(0, 5, 900))
    documents = [inline(SYNC + b',"channels":{"c%d":null,"d%d":null}' % (i % 7, i)) for i in range(500)]
    events: list[Event] = [
        (MUTATION, (0, 5, 900)[i % 3], i + 1, b"k%d" % i, JSON, value) for i, value in enumerate(documents)
    ]
    for events_of_round in (events[:1], events[1:300], events[300:]):
        taken = pair.add(events_of_round)
        assert taken is not None
        assert taken.n_entries == 3 * len(events_of_round)


def history(count: int) -> Iterator[Event]:
    """Documents of a repository's history, each as Sync Gateway stores it, inline or as an attribute."""
    previous: dict[str, dict[str, Any]] = {}
    now = datetime(2026, 1, 2, tzinfo=UTC)
    for sequence, revision in enumerate(islice(read_revisions(shared_path("data/repo-history.jsonl.gz")), count), 1):
        sync = previous[revision.id] = apply_revision(previous.get(revision.id), revision, sequence, now)
        text = json.dumps(sync).encode()
        key = revision.id.encode()
        if len(key) % 2:
            yield MUTATION, 0, sequence, key, JSON, b'{"_sync":%s,"id":1}' % text
        else:
            yield MUTATION, 0, sequence, key, JSON | XATTR, join_xattrs([("_sync", text)], b"{}")


@pytest.mark.parametrize("count", [3000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_a_real_history_gives_equal_rounds(count: int) -> None:
    pair = RoundPair(n_rows=1024)
    events = [*history(count)]
    assert events
    for start in range(0, len(events), 500):
        pair.add(events[start : start + 500])


RECORDINGS = sorted(path.name for path in (SHARED / "golden").glob("*.jsonl*")) or ["c_live_tail.jsonl"]


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recorded_connection_gives_equal_events_and_rounds(name: str) -> None:
    for conn, lines in by_connection(shared_path(f"golden/{name}")).items():
        if conn == "c-nonoop":  # of a client that ours never is
            continue
        runs = []
        for mode in (kernel.OFF, kernel.AUTO):
            with using(mode):
                runs.append(Replay())
            runs[-1].run(lines, chunk=4096)
        assert runs[0].events == runs[1].events
        assert snapshots_of(runs[0]) == snapshots_of(runs[1])
        documents = [(*event[:1], 0, *event[2:]) for event in runs[0].events if event[0] <= EXPIRATION]
        RoundPair().add(documents)


def snapshots_of(replay: Replay) -> list[tuple[int, ...]]:
    streams = replay.streams._by_vb.values()
    return [(stream.vb, stream.seqno, stream.snap_start, stream.snap_end, stream.purge_seqno) for stream in streams]


NAMES = st.text(max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | NAMES
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
REVS = st.sampled_from(["1-a", "2-0123456789abcdef0123456789abcdef", "", "é"]) | st.fixed_dictionaries({"rev": NAMES})
REMOVALS = st.fixed_dictionaries(
    {}, optional={"seq": st.integers(0, 2**64), "rev": REVS, "del": st.booleans(), "x": VALUES}
)
SYNCS = st.fixed_dictionaries(
    {"rev": REVS},
    optional={
        "flags": st.integers(0, 2**20),
        "sequence": st.integers(0, 2**64),
        "channels": st.none() | st.dictionaries(NAMES, st.none() | REMOVALS, max_size=5),
        "deleted": st.booleans(),
        "history": VALUES,
    },
)


@given(
    syncs=st.lists(SYNCS | VALUES, min_size=1, max_size=4),
    body=st.dictionaries(NAMES, VALUES, max_size=3),
    escapes=st.booleans(),
)
def test_any_document_gives_equal_rounds(syncs: list[object], body: dict[str, object], escapes: bool) -> None:
    values = [json.dumps({**body, "_sync": sync}, ensure_ascii=escapes).encode() for sync in syncs]
    attributed = [join_xattrs([("_sync", json.dumps(sync, ensure_ascii=escapes).encode())], b"{}") for sync in syncs]
    pair = RoundPair()
    pair.add(events_of(*values))
    pair.add(events_of(*attributed, datatype=JSON | XATTR))


RANGE = bytes(7) + b"\x01" + bytes(7) + b"\x99"
FRAMES: list[Callable[[int], bytes]] = [
    lambda seqno: mutation(1, 0, seqno, b"key", b"value", datatype=JSON),
    lambda seqno: mutation(2, 1, seqno, b"", b"", more_extras=b"x" * 32),
    lambda seqno: mutation(2, 1, seqno, b"k" * 250, b"v" * 3000),
    lambda seqno: deletion(1, 0, seqno, b"key", delete_time=3),
    lambda seqno: expiration(2, 1, seqno, b"key"),
    lambda seqno: marker(1, 0, seqno, seqno + 9),
    lambda seqno: mutation(1, 0, seqno, b"key", b"\x05\x10hello", datatype=3),
    lambda seqno: mutation(1, 0, seqno, b"key", b"\xff\xff", datatype=3),
]
MARKERS: dict[str, Callable[[int], bytes]] = {
    "1": lambda seqno: marker(1, 0, seqno, seqno + 9),
    "1, up to 2^64": lambda seqno: marker(2, 1, seqno, (1 << 64) - 1),
    "1, of one seqno": lambda seqno: marker(2, 1, seqno + 1, seqno + 1),
    "2.0": lambda seqno: marker_2(1, 0, seqno, seqno + 9),
    "2.2": lambda seqno: marker_2_2(1, 0, 0, seqno + 9, seqno),
}
ODD_MARKERS: dict[str, Callable[[int], bytes]] = {
    "2.1": lambda seqno: marker_2(1, 0, seqno, seqno + 9, 1, bytes(24)),
    "2.0 with more": lambda seqno: marker_2(1, 0, seqno, seqno + 9, 0, bytes(32)),
    "2.2 with less": lambda seqno: marker_2(1, 0, seqno, seqno + 9, 2, bytes(16)),
    "2.2 with more": lambda seqno: marker_2(1, 0, seqno, seqno + 9, 2, bytes(33)),
    "1 with more": lambda seqno: stream_frame(Op.DCP_SNAPSHOT_MARKER, 1, 0, RANGE + b"type, more", b""),
    "1 with a value": lambda seqno: stream_frame(Op.DCP_SNAPSHOT_MARKER, 1, 0, RANGE + b"type", b"", b"value"),
    "1 with a key": lambda seqno: stream_frame(Op.DCP_SNAPSHOT_MARKER, 1, 0, RANGE + b"type", b"key"),
    "2.0 with a key": lambda seqno: stream_frame(Op.DCP_SNAPSHOT_MARKER, 1, 0, b"\0", b"\0", RANGE + bytes(19)),
    "no extras": lambda seqno: stream_frame(Op.DCP_SNAPSHOT_MARKER, 1, 0, b"", b"", RANGE + bytes(4)),
}
FRAMES += [*MARKERS.values(), *ODD_MARKERS.values()]
BREAKING: list[Callable[[int], bytes]] = [
    lambda seqno: mutation(1, 0, 0, b"key"),
    lambda seqno: mutation(1, 1, seqno, b"key"),
    lambda seqno: mutation(9, 0, seqno, b"key"),
    lambda seqno: mutation(1, 0, 1 << 41, b"key"),
    lambda seqno: mutation(1, 0, seqno, b"key", datatype=8),
    lambda seqno: mutation(1, 0, seqno, b"key", more_extras=b"x" * 33),
    lambda seqno: b"\x80\x57" + b"\xff" * 40,
    lambda seqno: b"garbage" * 10,
    lambda seqno: marker(1, 0, seqno, seqno - 1),
    lambda seqno: marker_2(1, 0, 1 << 63, (1 << 63) - 1),
    lambda seqno: marker(1, 1, seqno, seqno + 9),
    lambda seqno: marker(9, 0, seqno, seqno + 9),
    lambda seqno: stream_frame(Op.DCP_SNAPSHOT_MARKER, 1, 0, RANGE[:15]),
    lambda seqno: stream_frame(Op.DCP_SNAPSHOT_MARKER, 1, 0, b"\0", b"", RANGE[:15]),
]
RESUMED = [WITHIN_A_SNAPSHOT, Checkpoint(1, 0, 0, 0), Checkpoint(1, 0, 0, 6)]
"""Within a snapshot that goes on, between two, and in one that ends soon."""
PICKED = st.lists(st.sampled_from(range(len(FRAMES))), max_size=12)


@given(
    picked=PICKED,
    end=st.none() | st.sampled_from(range(len(BREAKING))),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    prefix=st.sampled_from([0, 1, 5]),
    at=st.sampled_from(RESUMED),
)
def test_frames_cut_anywhere_give_equal_events(
    picked: list[int], end: int | None, cuts: list[float], prefix: int, at: Checkpoint
) -> None:
    data = b"" if at == WITHIN_A_SNAPSHOT else marker(1, 0, 0, 1 << 40) + marker(2, 1, 0, 1 << 40)
    data += b"".join(FRAMES[number](seqno) for seqno, number in enumerate(picked, 1))
    if end is not None:
        data += BREAKING[end](len(picked) + 1)
    pair = ParserPair(prefix_bytes=prefix, at=at)
    places = [0, *sorted(int(cut * len(data)) for cut in cuts), len(data)]
    for start, stop in pairwise(places):
        if pair.feed(data[start:stop]):
            break


def taken_bytes(frame: bytes, **stream: int) -> int:
    """How much of *frame*, which is of a stream 1 or 2, the kernel takes."""
    module = kernel._found().compiled
    assert module is not None
    streams = {
        opaque: SimpleNamespace(**{"vb": opaque - 1, "seqno": 5, "snap_end": 5, "reach": 5, **stream})
        for opaque in (1, 2)
    }
    end: int = module.take_run(frame, 0, 0, 0, streams, module.Events(), None)[0]
    return end


@pytest.mark.parametrize("made", MARKERS.values(), ids=MARKERS)
def test_a_usual_marker_is_the_kernels_and_whole(made: Callable[[int], bytes]) -> None:
    frame = made(7)
    assert taken_bytes(frame) == len(frame)
    assert taken_bytes(frame + frame, snap_end=0) == 2 * len(frame)
    assert taken_bytes(frame, reach=6) == 0, "what goes on with the snapshot in which we resumed is as wide as that"
    assert {taken_bytes(frame[:size]) for size in range(len(frame))} == {0}


@pytest.mark.parametrize("made", ODD_MARKERS.values(), ids=ODD_MARKERS)
def test_an_odd_marker_is_left_to_python(made: Callable[[int], bytes]) -> None:
    assert taken_bytes(made(7)) == 0


def test_a_marker_of_no_such_stream_is_left_to_python() -> None:
    assert taken_bytes(marker(1, 1, 7, 9)) == taken_bytes(marker(3, 0, 7, 9)) == 0
    pair = ParserPair(at=Checkpoint(1, 4, 4, 4))
    assert pair.feed(marker(1, 1, 5, 9)).startswith("ProtocolError: frame of vbucket 1 with the opaque 1")


def test_what_comes_after_a_marker_is_measured_by_it() -> None:
    pair = ParserPair(at=Checkpoint(1, 4, 4, 4))
    assert pair.feed(marker(1, 0, 5, 6) + mutation(1, 0, 5, b"k") + marker(2, 1, 9, 9) + mutation(1, 0, 6, b"k")) == ""
    assert pair.feed(marker(1, 0, 7, 99)) == ""
    beyond = marker_2_2(1, 0, 7, 8, 3) + mutation(1, 0, 8, b"k") + mutation(1, 0, 9, b"k")
    assert pair.feed(beyond) == "ProtocolError: vbucket 0: seqno 9 in a snapshot that ends at 8"


@pytest.mark.parametrize("cut", [0, 1, 20, 50])
def test_garbage_behind_a_marker_takes_back_no_document(cut: int) -> None:
    pair = ParserPair(at=Checkpoint(1, 4, 4, 4))
    assert pair.feed(marker(1, 0, 5, 9) + mutation(1, 0, 5, b"k")) == ""
    data = mutation(1, 0, 6, b"k") + marker(1, 0, 7, 9) + bytes(40)
    assert pair.feed(data[:cut]) == ""
    assert pair.feed(data[cut:]).startswith("ProtocolError")
    assert pair._streams[1].open_by_opaque[1].seqno == 6


MARKED = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), st.integers(0, 3), st.none() | st.integers(0, 9)))


@given(marked=MARKED, at=st.integers(0, 12))
def test_positions_are_the_same_whoever_takes_the_markers(
    marked: list[tuple[int, int, int, int | None]], at: int
) -> None:
    """Of *marked*, a vbucket, steps up to a snapshot's start and end, and a purge seqno; taken back *at* a seqno."""
    events: list[Event] = []
    newest = [0, 0]
    for vb, step, width, purge_seqno in marked:
        start, end = newest[vb] + step, newest[vb] + step + width
        events.append((SNAPSHOT, vb, start, end) if purge_seqno is None else (SNAPSHOT, vb, start, end, purge_seqno))
        if end > newest[vb] and step:
            events.append((MUTATION, vb, end, b"key", JSON, PLAIN["channels"]))
            newest[vb] = end
    pair = RoundPair((0, 1))
    pair.add(events)
    pair.add([(HISTORY, 0, ((7, 3), (1, 0))), (ROLLBACK, 0, Checkpoint(1, at, at, at)), (ADVANCED, 1, newest[1] + 1)])
    assert len({*map(str, (builder.rollbacks for builder in pair._builders))}) == 1


def test_a_marker_alone_is_no_event_of_the_round() -> None:
    for form in (list, in_frames):
        with using(kernel.AUTO):
            builder = RoundBuilder(SyncGatewayDecoder(star_channel=True), 1, {0: ORIGIN})
        builder.add(form([(SNAPSHOT, 0, 1, 1)]))
        assert builder.n_events == 0
        assert builder.take() is None
        builder.add(form([(SNAPSHOT, 0, 1, 1), *events_of(b"{}"), (SNAPSHOT, 0, 2, 5)]))
        assert builder.n_events == 1


def test_documents_of_a_closed_stream_are_dropped_between_those_of_others() -> None:
    pair = ParserPair((0, 1, 2))
    pair.drop(1)
    assert pair.feed(b"".join(mutation(vb + 1, vb, 5 + round_, b"k") for round_ in range(3) for vb in range(3))) == ""
    assert pair.feed(mutation(1, 0, 9, b"k") + mutation(2, 1, 9, b"k") + b"\x00" * 30).startswith("ProtocolError")
    assert pair.feed(mutation(2, 1, 9, b"k")) == ""


def test_a_document_without_its_body_is_asked_about() -> None:
    pair = ParserPair(bodies=False)
    assert pair.feed(mutation(1, 0, 1, b"k", b"v", datatype=JSON)) == ""
    assert pair.feed(mutation(1, 0, 2, b"k") + mutation(1, 0, 3, b"k", datatype=JSON)).startswith("BodiesNeeded")


def test_a_kernel_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "VERSION", -1)
    kernel._found.cache_clear()
    try:
        assert kernel.description().startswith("python (built from other sources: version")
        assert kernel.chosen() is None
    finally:
        kernel._found.cache_clear()


def test_events_look_like_a_list_and_keep_what_they_lie_in() -> None:
    documents = events_of(PLAIN["channels"], b"", b"x" * 3000)
    others: list[Event] = [(4, 0, 1, 9), (6, 3, None)]
    made = in_frames([documents[0], others[0], *documents[1:]])
    gc.collect()
    assert made[0] == documents[0]
    assert made[-1] == documents[2]
    assert [type(item) for item in made[0]] == [int, int, int, bytes, int, bytes]
    with pytest.raises(IndexError):
        made[4]
    made.extend(others)
    made.extend(in_frames(documents))
    made.extend(made)
    everything = [documents[0], others[0], *documents[1:], *others, *documents]
    assert [*made] == everything * 2
    assert [made.pop() for _ in range(len(made))] == (everything * 2)[::-1]
    assert not made
    with pytest.raises(IndexError):
        made.pop()


def test_events_give_back_what_they_lie_in() -> None:
    frame = mutation(1, 0, 1, b"key", b"value " * 50)
    before = sys.getrefcount(frame)
    with using(kernel.AUTO):
        parser = FrameParser(ParserPair._opened((0,)), lambda frame: None)
    parser.feed(frame)
    assert sys.getrefcount(frame) == before + 1
    event = parser.take_events()[0]
    assert sys.getrefcount(frame) == before
    assert event == (MUTATION, 0, 1, b"key", 0, b"value " * 50)
