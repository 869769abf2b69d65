"""Documents as no Sync Gateway writes them, and some as large as can be: each has its outcome, and the next one comes.

All documents of a test are in one vbucket, and each bad one is followed by a good one.
"""

import signal
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cramjam
import psutil
import pytest

from channelindex.decode.base import MAX_CHANNEL_BYTES, MAX_CHANNELS
from channelindex.errors import ChannelIndexError
from channelindex.feeds.base import JSON, SNAPPY, XATTR
from channelindex.feeds.dcp.kv import KvClient
from channelindex.mcbp import MAX_BODY_BYTES, join_xattrs
from channelindex.reading.changes_reader import ChangesReader
from channelindex.stores import open_reader
from devbucket.bucket import Bucket
from devbucket.bucket_config import DevBucketConfig
from devbucket.items import MAX_SYSTEM_XATTR_BYTES, MAX_VALUE_BYTES
from devbucket.process import DevBucket
from tests.support.node import Node, until
from tests.support.running import assert_verified, await_stable, connect
from tests.support.stores import settings_of

ONE_VBUCKET = DevBucketConfig(n_vbuckets=1)
SETTINGS = {"index__partitions": 1, "workers__feed_workers": 1, "workers__ring_bytes": 2**18}
"""With the smallest rings that can be configured."""
MOST_MEMORY = 512 << 20
"""Of any process of the node at its peak. The largest frame has 21 MiB, and some copies of it lie side by side."""

GOOD = b'{"_sync":{"rev":"1-a","sequence":7,"channels":{"good":null}}}'
INDEXED, IGNORED = "indexed", "ignored"


class Case(NamedTuple):
    """A document, and what comes of it: INDEXED, IGNORED, or a part of the reason for its quarantine."""

    name: str
    outcome: str
    value: bytes
    datatype: int = JSON
    key: bytes = b""
    channel: str = "A"


def sync(inner: bytes) -> bytes:
    return b'{"_sync":{"rev":"1-a",' + inner + b"}}"


def in_channel(name: bytes) -> bytes:
    return sync(b'"channels":{"%s":null}' % name)


def nested(depth: int) -> bytes:
    return b'{"x":' + b"[" * depth + b"]" * depth + b',"_sync":{"rev":"1-a","channels":{"A":null}}}'


def xattrs(text: bytes) -> bytes:
    return join_xattrs([("_sync", text)], b"{}")


def snappy(plain: bytes) -> bytes:
    return bytes(cramjam.snappy.compress_raw(plain))


MEMBER = b'{"rev":"1-a","channels":{"A":null}}'
WHOLE = xattrs(MEMBER)
A = b'"channels":{"A":null}'

CASES = (
    # names of channels
    Case("empty channel name", INDEXED, in_channel(b""), channel=""),
    Case("channel with control characters", INDEXED, in_channel(rb"a\n\u0000\u001b[2J"), channel="a\n\0\x1b[2J"),
    Case("channel that looks like a key", INDEXED, in_channel(b"{7}:c:{i}*?[^]"), channel="{7}:c:{i}*?[^]"),
    Case("channel beyond the BMP", INDEXED, in_channel(rb"\ud83d\ude00\u00e9"), channel="\U0001f600é"),
    Case("longest channel name", INDEXED, in_channel(b"n" * MAX_CHANNEL_BYTES), channel="n" * MAX_CHANNEL_BYTES),
    Case("channel name too long", "channel name of 65536 bytes", in_channel(b"n" * (MAX_CHANNEL_BYTES + 1))),
    Case("channel name of 1 MiB", "channel name of 1048576 bytes", in_channel(b"n" * 2**20)),
    Case("channel with an unpaired surrogate", INDEXED, in_channel(rb"\ud800"), channel="\ufffd"),
    Case("channel that is not UTF-8", INDEXED, in_channel(b"\xff"), channel="\ufffd"),
    # keys
    Case("key that is not UTF-8", INDEXED, in_channel(b"A"), key=b"\xff\xfe"),
    Case("key with control characters", INDEXED, in_channel(b"A"), key=b"\x1b[2J\n\0"),
    Case("key longer than any server allows", "key of 256 bytes", in_channel(b"A"), key=b"k" * 256),
    # JSON
    Case("body that is not UTF-8", INDEXED, b'{"x":"\xff","_sync":%s}' % MEMBER),
    Case("deep", INDEXED, nested(500)),
    Case("as deep as Go goes", INDEXED, nested(9_999)),
    Case("too deep", "nested too deeply", nested(100_000)),
    Case("last of two _sync counts", INDEXED, b'{"_sync":{"rev":"9-z","channels":{"B":null}},"_sync":%s}' % MEMBER),
    Case("last of two members counts", INDEXED, sync(b'"channels":{"A":{"seq":1,"rev":"1-a"},"A":null}')),
    Case("NaN", "malformed", b'{"x":NaN,"_sync":%s}' % MEMBER),
    Case("Infinity", "malformed", b'{"_sync":%s,"x":-Infinity}' % MEMBER),
    Case("text behind the document", "malformed", in_channel(b"A") + b"x"),
    Case("half a document", "truncated", in_channel(b"A")[:-2]),
    Case("byte order mark", IGNORED, b"\xef\xbb\xbf" + in_channel(b"A")),
    Case("JSON to us, to the server not", IGNORED, in_channel(b"A"), datatype=0),
    # sequences and flags
    Case("sequence 2^63", INDEXED, sync(b'"sequence":9223372036854775808,' + A)),
    Case("sequence 2^64-1", INDEXED, sync(b'"sequence":18446744073709551615,' + A)),
    Case("sequence 2^64", "exceeds 64 bits", sync(b'"sequence":18446744073709551616,' + A)),
    Case("sequence of 5,000 digits", "exceeds 64 bits", sync(b'"sequence":' + b"9" * 4000 + b"," + A)),
    Case("negative sequence", ">= 0", sync(b'"sequence":-1,' + A)),
    Case("sequence with a fraction", "got `float`", sync(b'"sequence":1.5,' + A)),
    Case("sequence beyond all numbers", "out of range", sync(b'"sequence":1e999,' + A)),
    Case("sequence as text", "got `str`", sync(b'"sequence":"5",' + A)),
    Case("removal at 2^64", "exceeds 64 bits", sync(b'"channels":{"A":{"seq":18446744073709551616,"rev":"1-a"}}')),
    Case("flags beyond 16 bits", INDEXED, sync(b'"flags":18446744073709551615,' + A)),
    # revisions
    Case("no revision", "missing or empty", b'{"_sync":{"channels":{"A":null}}}'),
    Case("revision of another type", "got `int`", b'{"_sync":{"rev":5,"channels":{"A":null}}}'),
    Case("revision without a number", INDEXED, b'{"_sync":{"rev":"x","channels":{"A":null}}}'),
    Case("longest revision", INDEXED, b'{"_sync":{"rev":"%s","channels":{"A":null}}}' % (b"r" * 254)),
    Case("revision too long", "revision id of 255 bytes", b'{"_sync":{"rev":"%s"}}' % (b"r" * 255)),
    # _sync and channels of other types
    *(Case(f"_sync is {text.decode()}", "Expected `object", b'{"_sync":%s}' % text) for text in (b"5", b"[]", b'"x"')),
    Case("_sync is null", IGNORED, b'{"_sync":null}'),
    Case("attribute _sync is null", "Expected `object`", xattrs(b"null"), XATTR),
    Case("attribute _sync is empty", "truncated", xattrs(b""), XATTR),
    Case("channels are a list", "got `array`", sync(b'"channels":["A"]')),
    Case("a channel is a number", "got `int`", sync(b'"channels":{"A":1}')),
    # attributes
    Case("attributes without a length", "need 4 bytes", b"\0", XATTR),
    Case("attributes cut off", "malformed at byte", WHOLE[:20], XATTR | JSON),
    Case("attributes longer than all", "malformed at byte", b"\xff" * 4 + WHOLE[4:], XATTR | JSON),
    Case("an attribute longer than all", "malformed at byte", WHOLE[:4] + b"\xff" * 4 + WHOLE[8:], XATTR | JSON),
    Case("an attribute without an end", "malformed at byte", WHOLE[: 4 + len(MEMBER) + 7], XATTR),
    Case("first of two attributes counts", INDEXED, join_xattrs([("_sync", MEMBER), ("_sync", b"5")], b""), XATTR),
    Case("attributes, but no datatype", IGNORED, WHOLE, 0),
    # compression
    Case("compressed", INDEXED, snappy(in_channel(b"A")), JSON | SNAPPY),
    Case("20 MB in 1 MB", INDEXED, snappy(in_channel(b"A") + b" " * MAX_VALUE_BYTES), JSON | SNAPPY),
    Case("more than any document", "compressed", snappy(in_channel(b"A") + b" " * MAX_BODY_BYTES), JSON | SNAPPY),
    Case("claims 4 GiB", "compressed", b"\xff\xff\xff\xff\x0f" + snappy(in_channel(b"A")), JSON | SNAPPY),
    Case("claims 22 MiB and ends", "compressed", b"\x80\x80\x80\x0b\x04a", JSON | SNAPPY),
    # numbers of channels
    Case("too many channels", "at most 100000", sync(b'"channels":{%s}' % b",".join(
        b'"%x":null' % number for number in range(MAX_CHANNELS + 1)))),
)  # fmt: skip


def key_of(case: Case) -> bytes:
    return case.key or b"bad " + case.name.encode()


def load(bucket: Bucket) -> None:
    """What no client could write, each followed by a document that can be read."""
    for number, case in enumerate(CASES):
        bucket.vbuckets[0].write(key_of(case), case.value, case.datatype)
        bucket.vbuckets[0].write(b"good %d" % number, GOOD, JSON)


@pytest.fixture
def reader(redis_url: str) -> Iterator[ChangesReader]:
    with closing(open_reader(settings_of(redis_url, "channels"))) as store:
        yield ChangesReader(store)


def peak_memory(node: Node) -> int:
    """The most that a process of the node ever had in memory, in bytes."""
    statuses = [Path(f"/proc/{child.pid}/status").read_text() for child in psutil.Process(node.pid).children()]
    lines = [line for status in statuses for line in status.splitlines() if line.startswith("VmHWM")]
    return max(int(line.split()[1]) for line in lines) * 1024


def ids(reader: ChangesReader, channel: str) -> set[str]:
    return {entry.id for entry in reader.changes([channel]).entries}


@pytest.mark.real_start
def test_every_bad_document_has_its_outcome_and_the_next_is_indexed(tmp_path, redis_url, reader):
    settings = {**SETTINGS, "source__metadata": "inline", "source__compression": False}
    with DevBucket(ONE_VBUCKET, load) as bucket, Node("n1", tmp_path, redis_url, bucket, **settings).start() as node:
        await_stable(redis_url, bucket)
        workers = {child.pid for role in ("feed_worker", "batch_writer") for child in node.children(role)}

        total, listed = reader._store.quarantined(1000)
        reasons = {document.key: document.reason for document in listed}
        refused = [case for case in CASES if case.outcome not in {INDEXED, IGNORED}]
        assert {case.name for case in refused if case.outcome not in reasons.get(key_of(case), "")} == set()
        assert total == len(listed) == len(refused)

        shown = {case: key_of(case).decode(errors="backslashreplace") for case in CASES}
        indexed = {case for case in CASES if case.outcome == INDEXED}
        assert {case.name for case in indexed if shown[case] not in ids(reader, case.channel)} == set()
        assert ids(reader, "good") == {f"good {number}" for number in range(len(CASES))}
        assert ids(reader, "*") == {shown[case] for case in indexed} | ids(reader, "good")
        assert set(reader._store.channels()) == {case.channel for case in indexed} | {"good", "*"}

        assert {child.pid for role in ("feed_worker", "batch_writer") for child in node.children(role)} == workers
        assert "level=error" not in node.log.read_text()
        until(lambda: "level=warning event=feed.quarantined" in node.log.read_text(), "the warning of the quarantine")
        assert peak_memory(node) < MOST_MEMORY
        assert_verified(node.config, undecodable=len(refused))
        assert node.drain() == 0


def documents_at_the_limits() -> Iterator[tuple[str, bytes, bytes, bytes]]:
    """(name, key, attribute _sync or nothing, body), each as large as a server takes it."""
    yield "key", b"k" * 250, b"", in_channel(b"A")
    yield "body", b"body", b"", padded(in_channel(b"A"), MAX_VALUE_BYTES)
    pair_bytes = len(xattrs(b"")) - len(b"{}")
    yield "attribute", b"attribute", padded(MEMBER, MAX_SYSTEM_XATTR_BYTES - pair_bytes), b"{}"
    yield (
        "all",
        b"a" * 250,
        padded(MEMBER, MAX_SYSTEM_XATTR_BYTES - pair_bytes),
        padded(b'{"x":1}', MAX_VALUE_BYTES),
    )


def padded(text: bytes, size: int) -> bytes:
    """JSON *text* that a property of no interest makes *size* bytes long."""
    head = b'{"pad":"'
    return head + b"x" * (size - len(text) - len(head) - 1) + b'",' + text[1:]


def store(client: KvClient, key: bytes, attribute: bytes, body: bytes) -> None:
    if attribute:
        client.store_with_xattr(key, "_sync", attribute, body)
    else:
        client.store(key, body)


@pytest.mark.real_start
def test_documents_as_large_as_a_bucket_takes_them_are_indexed_and_larger_ones_refused(tmp_path, redis_url, reader):
    with (
        DevBucket(ONE_VBUCKET) as bucket,
        Node("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as node,
    ):
        for name, key, attribute, body in documents_at_the_limits():
            with connect(bucket) as client:
                store(client, key, attribute, body)
                store(client, b"good " + name.encode(), b"", GOOD)
            larger = (key + b"k", attribute, body) if name == "key" else (
                key, attribute and padded(attribute, len(attribute) + 40), body if attribute else body + b" "
            )  # fmt: skip
            with connect(bucket) as client, pytest.raises(ChannelIndexError):
                store(client, *larger)
        with connect(bucket) as client:
            store(client, b"many", b"", sync(b'"channels":{%s}' % names(MAX_CHANNELS)))
            store(client, b"good many", b"", GOOD)
            store(client, b"some", b'{"rev":"1-a","channels":{%s}}' % names(10_000), b"{}")
        await_stable(redis_url, bucket)
        keys = {key.decode() for _, key, _, _ in documents_at_the_limits()}
        assert ids(reader, "A") == keys
        assert ids(reader, "good") == {f"good {name}" for name in ("key", "body", "attribute", "all", "many")}
        assert ids(reader, f"{MAX_CHANNELS - 1:x}") == {"many"}
        assert ids(reader, f"{9_999:x}") == {"many", "some"}
        assert len(set(reader._store.channels())) == MAX_CHANNELS + 3
        assert reader._store.quarantined()[0] == 0
        assert node.log.read_text().count("feed.started") == 1
        assert peak_memory(node) < MOST_MEMORY
        assert_verified(node.config, "*", "A", "good", "0", "1", f"{9_999:x}", f"{MAX_CHANNELS - 1:x}")


def names(count: int) -> bytes:
    return b",".join(b'"%x":null' % number for number in range(count))


HOSTILE_FILES = (
    b"\0" * 100,
    b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    b"x = " + b"[" * 100_000,
    b"[workers]\nfeed_workers = " + b"9" * 5000,
    b"[coordination]\nttl_s = 1" + b"0" * 400,
    b'[source]\npassword_file = "a\\u0000b"\n',
    b"#" * (100 << 20),
)


def has_refused(node: Node, times: int) -> bool:
    return node.log.read_text().count("config.refused") == times


def test_a_reload_of_a_hostile_file_is_refused_and_the_node_goes_on(tmp_path, redis_url, reader):
    with DevBucket(ONE_VBUCKET) as bucket, Node("n1", tmp_path, redis_url, bucket, **SETTINGS).start() as node:
        until(lambda: "feed.started" in node.log.read_text(), "the node to work")
        right = node.config.read_bytes()
        for number, hostile in enumerate(HOSTILE_FILES, start=1):
            node.config.write_bytes(hostile)
            node.signal(signal.SIGHUP)
            until(partial(has_refused, node, number), "the reload to be refused")
        node.config.write_bytes(right)
        with connect(bucket) as client:
            client.store(b"good", GOOD)
        await_stable(redis_url, bucket)
        assert ids(reader, "good") == {"good"}
        assert node.drain() == 0
