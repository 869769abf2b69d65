"""The asyncio stream of a bucket's changes: goes on where it ended, tells rollbacks, and finds nodes by SRV records."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dns.message
import dns.resolver
import dns.rrset
import pytest
from dns.resolver import Resolver

from channelindex.errors import AuthenticationFailed, InputInvalid
from channelindex.feeds.bounded import events
from channelindex.feeds.dcp import DcpChange, KvClient, RolledBack, parse_source_url, srv, stream
from channelindex.model import ORIGIN
from channelindex.settings import SourceSettings
from devbucket import DevBucket, DevBucketConfig
from tests.support.dcp_reading import ADMIN, Reading, fill
from tests.support.pages import fences_of
from workers.pipeline.source import describe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "stream.md"
WRITTEN = 'main("couchbase://127.0.0.1:11210/default", "Administrator", "password")'


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=8, n_nodes=2)) as opened:
        yield opened


@pytest.fixture
def kv(bucket: DevBucket) -> Iterator[KvClient]:
    with KvClient(parse_source_url(bucket.url), ADMIN) as client:
        yield client


async def take(bucket: DevBucket, count: int, since: str = "") -> tuple[list[DcpChange | RolledBack], str]:
    """The next *count* events, and the position while the last one of them is being worked on."""
    taken = []
    async with stream(bucket.url, bucket.user, bucket.password, since=since) as changes:
        async with asyncio.timeout(60):
            async for event in changes:
                taken.append(event)
                if len(taken) == count:
                    return taken, changes.position
    raise AssertionError("the stream has an end")


def test_a_stream_goes_on_behind_what_was_taken_and_repeats_what_was_not(bucket: DevBucket, kv: KvClient) -> None:
    fill(kv, 100)
    every, _ = asyncio.run(take(bucket, 100))
    seen, position = asyncio.run(take(bucket, 40))
    rest, _ = asyncio.run(take(bucket, 61, position))
    assert rest[0] == seen[-1] or seen[-1] in rest, "it was not done with when the stream was closed"
    assert sorted([*seen[:-1], *rest]) == sorted(every)


def test_a_rollback_is_an_event_and_the_vbucket_comes_anew(bucket: DevBucket, kv: KvClient) -> None:
    for number in range(5):
        kv.store(b"same", b'{"n":%d}' % number)
    vb = kv.vbucket_of(b"same")

    async def over_a_failover() -> list[DcpChange | RolledBack]:
        events = []
        async with stream(bucket.url, bucket.user, bucket.password) as changes:
            async with asyncio.timeout(60):
                async for event in changes:
                    events.append(event)
                    if isinstance(event, RolledBack):
                        kv.store(b"same", b'{"n":"new"}')
                    elif event.value == b'{"n":"new"}':
                        break
                    elif event.seqno == 5:
                        bucket.failover(vb, lose=2)
        return events

    events = asyncio.run(over_a_failover())
    (rolled_back,) = [event for event in events if isinstance(event, RolledBack)]
    assert rolled_back.vb == vb
    assert rolled_back.seqno <= 3
    assert isinstance(events[-1], DcpChange)


def test_what_is_no_position_or_of_another_bucket_is_refused(bucket: DevBucket, kv: KvClient) -> None:
    with pytest.raises(InputInvalid, match="no position"):
        stream(bucket.url, bucket.user, bucket.password, since="{}")
    for outside in ("[1, 5, 7, 9]", "[1, 9, 5, 7]", "[1, -1, -1, 7]"):
        since = f'{{"source": "s", "checkpoints": {{"0": {outside}}}}}'
        with pytest.raises(InputInvalid, match="outside of its snapshot"):
            stream(bucket.url, bucket.user, bucket.password, since=since)
    fill(kv, 2)
    _, position = asyncio.run(take(bucket, 1))
    with DevBucket(DevBucketConfig(n_vbuckets=8)) as other, pytest.raises(InputInvalid, match="of the bucket"):
        asyncio.run(take(other, 1, position))
    with pytest.raises(AuthenticationFailed):
        asyncio.run(anext(stream(bucket.url, "nobody", "wrong")))


def test_the_example_that_keeps_its_position_repeats_nothing(bucket: DevBucket, kv: KvClient, tmp_path: Path) -> None:
    (code,) = [fence.text for fence in fences_of(PAGE.read_text(encoding="utf-8")) if fence.name == "resume.py"]
    assert WRITTEN in code
    example = tmp_path / "resume.py"
    example.write_text(code.replace(WRITTEN, f"main({bucket.url!r}, {bucket.user!r}, {bucket.password!r})"))
    kv.store(b"first", b"{}")
    for first, last in (("first 1", "second"), ("third 1", "fourth")):
        with subprocess.Popen([sys.executable, example], cwd=tmp_path, text=True, stdout=subprocess.PIPE) as printing:
            assert printing.stdout
            assert printing.stdout.readline() == f"{first}\n"
            kv.store(last.encode(), b"{}")
            assert printing.stdout.readline() == f"{last} 1\n"
            printing.send_signal(signal.SIGINT)
            printing.communicate(timeout=60)
        kv.store(b"third", b"{}")


def test_the_loop_ends_when_it_is_asked() -> None:
    with DevBucket(DevBucketConfig(n_vbuckets=4)) as bucket:
        with KvClient(parse_source_url(bucket.url), ADMIN) as kv:
            fill(kv, 50)
        ends = dict(enumerate(bucket.high_seqnos()))
        with Reading(bucket, dict.fromkeys(range(4), ORIGIN), end_seqnos=ends) as reading:
            came = list(events(reading.feed, reading.feed.ended))
        assert len([event for event in came if event[0] == 0]) == 50


class NameServer:
    """A name server on loopback that knows some SRV records, or never answers."""

    def __init__(self, records: dict[str, list[str]], *, answers: bool = True) -> None:
        self._records = records
        self._answers = answers
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def resolver(self) -> Resolver:
        resolver = Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self._socket.getsockname()[1]
        return resolver

    def _serve(self) -> None:
        while True:
            data, client = self._socket.recvfrom(4096)
            if not data:
                return
            query = dns.message.from_wire(data)
            name = query.question[0].name.to_text()
            self.asked.append(name)
            if not self._answers:
                continue
            answer = dns.message.make_response(query)
            if name in self._records:
                answer.answer.append(dns.rrset.from_text_list(name, 60, "IN", "SRV", self._records[name]))
            else:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            self._socket.sendto(answer.to_wire(), client)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ending:
            ending.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


def test_srv_records_name_the_nodes_the_preferred_ones_first() -> None:
    records = {
        "_couchbase._tcp.cluster.test.": ["10 5 11210 b.test.", "10 9 11210 a.test.", "1 0 11999 c.test."],
        "_couchbases._tcp.cluster.test.": ["0 0 11207 t.test."],
    }
    with closing(NameServer(records)) as server:
        found = srv.find_nodes(parse_source_url("couchbase://Cluster.test/b"), server.resolver())
        assert list(map(str, found.seeds)) == ["c.test:11999", "a.test:11210", "b.test:11210"]
        found = srv.find_nodes(parse_source_url("couchbases://cluster.test/b"), server.resolver())
        assert list(map(str, found.seeds)) == ["t.test:11207"]
        unknown = parse_source_url("couchbase://host.test/b")
        assert srv.find_nodes(unknown, server.resolver()) == unknown
        assert server.asked[-1] == "_couchbase._tcp.host.test."
        n_asked = len(server.asked)
        for url in ("couchbase://a.test:11210/b", "couchbase://a.test,b.test/b", "couchbase://10.0.0.1/b"):
            assert srv.find_nodes(parse_source_url(url), server.resolver()).seeds == parse_source_url(url).seeds
        assert len(server.asked) == n_asked, "hosts for sure are not looked up"


def test_a_name_server_that_is_silent_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(srv, "LOOKUP_S", 0.3)
    with closing(NameServer({}, answers=False)) as server:
        address = parse_source_url("couchbase://cluster.test/b")
        assert srv.find_nodes(address, server.resolver()) == address
        assert server.asked


def test_a_node_finds_its_bucket_by_a_name(bucket: DevBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {"_couchbase._tcp.cluster.test.": [f"0 0 {port} localhost." for port in bucket.ports]}
    with closing(NameServer(records)) as server:
        monkeypatch.setattr(dns.resolver, "Resolver", server.resolver)
        found = describe(SourceSettings("couchbase://cluster.test/default", user=bucket.user, password=bucket.password))
    assert found.n_vbuckets == 8
