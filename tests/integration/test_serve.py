"""The changes feed over HTTP: paths, parameters, rows, feeds, errors, to the byte, by the real server."""

import gzip
import http.client
import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channelindex.model import DELETED, REMOVED
from channelindex.reading import since_token
from channelindex.reading.query import Query
from devbucket.embedded_redis import EmbeddedRedis
from tests.support.node import until
from tests.support.profiles import examples
from tests.support.served import PARTITIONS, Documents, Service, raw


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture(scope="module")
def documents(store: EmbeddedRedis) -> Iterator[Documents]:
    """Nobody but its own tests writes to the channels `a` and `b`, and they only read them."""
    with closing(Documents(store.url)) as made:
        made.write(*[("a", f"doc{n}", 0) for n in range(250)])
        made.write(("b", "doc1000", 0), ("b", "doc1001", DELETED), ("b", "doc1002", REMOVED))
        yield made


@pytest.fixture(scope="module")
def service(store: EmbeddedRedis, documents: Documents, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("serve"), store.url, documents.index.name).start() as running:
        yield running


def rows(service: Service, **parameters: Any) -> list[dict[str, Any]]:
    answer = service.changes(**parameters)
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json["results"]
    return found


def test_an_answer_is_one_row_a_line_to_the_byte(service: Service) -> None:
    answer = service.changes(channels="b")
    lines = answer.body.decode().split("\n")
    assert lines[0] == '{"results":['
    assert lines[1].endswith('"id":"doc1000","changes":[{"rev":"17-aa"}],"channels":["b"]},')
    assert lines[2].endswith('"id":"doc1001","changes":[{"rev":"17-aa"}],"deleted":true,"channels":["b"]},')
    assert lines[3].endswith('"id":"doc1002","changes":[{"rev":"16-aa"}],"removed":["b"]}')
    assert lines[4] == "],"
    assert lines[5] == f'"last_seq":"{answer.json["results"][-1]["seq"]}","pending":0}}'
    assert lines[6:] == [""]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "private, no-cache"
    assert service.changes(channels="nobody").body == b'{"results":[\n],\n"last_seq":"%s","pending":0}\n' % (
        service.changes(channels="nobody").json["last_seq"].encode()
    )


def test_each_row_has_a_seq_of_its_own_from_which_an_answer_can_be_continued(service: Service) -> None:
    told = rows(service, channels="a")
    assert len({row["seq"] for row in told}) == 250
    whole = [number for number, row in enumerate(told, start=1) if "." not in row["seq"]]
    assert whole == [100, 200, 250]
    for number in (1, 99, 100, 101, 249, 250):
        again = [row["id"] for row in rows(service, channels="a", since=told[number - 1]["seq"])]
        begun = max(0, *(each for each in whole if each <= number), 0) if number >= 100 else 0
        assert again == [row["id"] for row in told[begun:]], "at most a hundred come again"
    quoted = json.dumps(told[99]["seq"])
    assert len(rows(service, channels="a", since=quoted)) == 150
    assert [row["seq"] is None for row in rows(service, channels="a", limit=4, seq_interval=2)] == [True, False] * 2


def test_pages_are_full_until_the_last_and_pending_counts_what_follows(service: Service) -> None:
    seen, since = [], "0"
    for n_left in (225, 200, 175, 150, 125, 100, 75, 50, 25, 0):
        answer = service.changes(channels="a", since=since, limit=25).json
        assert (len(answer["results"]), answer["pending"]) == (25, n_left)
        seen += [row["id"] for row in answer["results"]]
        since = answer["last_seq"]
    assert service.changes(channels="a", since=since, limit=25).json["results"] == []
    assert seen == [row["id"] for row in rows(service, channels="a")]
    nothing = service.changes(channels="a", limit=0).json
    assert nothing == {"results": [], "last_seq": "0", "pending": 250}
    assert [len(rows(service, channels="a", limit=limit)) for limit in (101, 137, 199, 1009)] == [101, 137, 199, 250]


def test_who_polls_again_learns_that_nothing_has_changed(service: Service, documents: Documents) -> None:
    path = f"/{service.db}/_changes?channels=polled"
    documents.write(("polled", "doc1", 0))
    first = service.ask("GET", path)
    again = service.ask("GET", path, If_None_Match=first.headers["etag"])
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])
    documents.write(("polled", "doc2", 0))
    changed = service.ask("GET", path, If_None_Match=first.headers["etag"])
    assert changed.status == 200
    assert changed.headers["etag"] != first.headers["etag"]
    assert len(changed.json["results"]) == 2


def test_a_longpoll_answers_at_once_or_when_something_comes_or_when_its_time_is_over(
    service: Service, documents: Documents
) -> None:
    documents.write(("poll", "doc1", 0))
    first = service.changes(channels="poll", feed="longpoll").json
    assert [row["id"] for row in first["results"]] == ["doc1"]
    with service.open(channels="poll", feed="longpoll", since=first["last_seq"], heartbeat=1000) as stream:
        assert stream.headers["cache-control"] == "private, no-store"
        assert stream.line() == '{"results":[', "the first byte comes at once"
        assert stream.line() == "", "a heartbeat"
        documents.write(("poll", "doc2", DELETED))
        answer = json.loads('{"results":[' + stream.rest().decode())
    assert [(row["id"], row["deleted"]) for row in answer["results"]] == [("doc2", True)]
    assert answer["pending"] == 0
    idle = service.changes(channels="poll", feed="longpoll", since=answer["last_seq"], timeout=1)
    assert idle.json["results"] == []
    assert idle.body.startswith(b'{"results":[\n')
    assert service.changes(channels="poll", since=idle.json["last_seq"]).json["results"] == []


def test_a_continuous_feed_tells_line_by_line_what_is_there_and_what_comes(
    service: Service, documents: Documents
) -> None:
    documents.write(("live", "doc1", 0), ("live", "doc2", 0))
    with service.open(channels="live", feed="continuous", heartbeat=1000) as stream:
        assert [stream.row()["id"] for _ in range(2)] == ["doc1", "doc2"]
        assert stream.line() == "", "a heartbeat"
        documents.write(("live", "doc3", 0))
        last = stream.row()
        assert last["id"] == "doc3"
    with service.open(channels="live", feed="continuous", since=last["seq"], limit=1) as stream:
        documents.write(("live", "doc4", 0), ("live", "doc5", 0))
        row = stream.row()
        assert stream.row() == {"last_seq": row["seq"], "pending": 1}
        assert stream.rest() == b""
    with service.open(channels="live", feed="continuous", since="now", timeout=1) as stream:
        assert stream.row()["pending"] == 0


def test_an_event_stream_goes_on_after_the_event_that_came_last(service: Service, documents: Documents) -> None:
    documents.write(("events", "doc1", 0))
    with service.open(channels="events", feed="eventsource") as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.event() == {"retry": "2000"}
        both = [stream.event(), stream.event()]
        (first,) = [event for event in both if event["event"] == "message"]
        assert json.loads(first["data"])["seq"] == first["id"]
        assert "up-to-date" in {event["event"] for event in both}
        documents.write(("events", "doc2", 0))
        assert json.loads(stream.event()["data"])["id"] == "doc2"
    with service.open(channels="events", feed="eventsource", since="0", last_event_id=first["id"]) as stream:
        assert stream.event() == {"retry": "2000"}
        newest = stream.event()
        assert json.loads(newest["data"])["id"] == "doc2"
        with service.open(channels="events", feed="eventsource", last_event_id=newest["id"]) as other:
            assert other.event() == {"retry": "2000"}
            assert other.event()["event"] == "up-to-date", "also to one who need not read"


def test_a_live_feed_tells_deletions_though_it_began_with_what_is_active(
    service: Service, documents: Documents
) -> None:
    documents.write(("active", "doc1", 0), ("active", "doc2", DELETED))
    with service.open(channels="active", feed="continuous", active_only="true", heartbeat=60000) as stream:
        assert stream.row()["id"] == "doc1"
        documents.write(("active", "doc1", DELETED))
        assert stream.row()["deleted"] is True


def test_a_feed_lives_through_a_rollback(service: Service, documents: Documents) -> None:
    documents.write(("back", "doc7", 0))
    with service.open(channels="back", feed="continuous", heartbeat=60000) as stream:
        before = stream.row()
        documents.write(("back", "doc7", 0))
        assert stream.row()["changes"] != before["changes"]
        documents.roll_back(7, 1)
        assert stream.row()["changes"] == before["changes"]


def test_channels_and_documents_are_asked_for_in_the_url_or_in_the_body(service: Service) -> None:
    path = f"/{service.db}/_changes"
    body = json.dumps({"channels": ["a", "b"], "limit": 2, "feed": "normal"}).encode()
    assert len(service.ask("POST", path, body).json["results"]) == 2
    assert len(service.ask("POST", f"{path}?limit=3", body).json["results"]) == 3, "the URL wins"
    packed = service.ask("POST", path, gzip.compress(body), Content_Encoding="gzip")
    assert len(packed.json["results"]) == 2
    only = json.dumps({"doc_ids": ["doc3", "doc1000", "doc4", "none"]}).encode()
    told = service.ask("POST", f"{path}?filter=_doc_ids&channels=a,b", only).json["results"]
    assert {row["id"] for row in told} == {"doc3", "doc4", "doc1000"}
    named = rows(service, channels='["a","b"]', filter="sync_gateway/bychannel")
    assert len(named) == 253


def test_a_time_is_a_since(service: Service, documents: Documents) -> None:
    for number, now_s in ((1, 1_000_000.0), (2, 1_000_100.0), (3, 1_000_200.0)):
        documents.write(("timed", f"doc{number}", 0))
        documents.index.owner.note_moments(documents.epoch, PARTITIONS, now_s)

    def told(since: str, **parameters: Any) -> list[str]:
        return sorted(row["id"] for row in rows(service, channels="timed", since=since, **parameters))

    assert told("1970-01-12T13:46:39Z") == ["doc1", "doc2", "doc3"], "nothing is known of a time before all"
    assert told("1970-01-12T13:46:40Z") == told("1970-01-12t14:46:40.5+01:00") == ["doc2", "doc3"]
    assert told("1970-01-12T13:48:25Z", feed="longpoll") == ["doc3"]
    assert told("2026-11-27T08:00:00Z") == []
    path = f"/{service.db}/_changes?channels=timed&since=1970-01-12T14:48:20+01:00"
    assert [row["id"] for row in service.ask("GET", path).json["results"]] == ["doc3"], "a plus sign as it is"


def test_who_demands_it_is_answered_once_the_index_is_as_far_as_a_token(service: Service, documents: Documents) -> None:
    documents.write(("ahead", "doc14", 0))
    here = service.changes(channels="ahead").json["last_seq"]
    asked = Query.of(["ahead"], None, active_only=False).asked
    meta = documents.index.meta
    position = since_token.decode(here.partition("-")[2], meta, asked)
    seqnos = tuple(seqno + (vb == 14) for vb, seqno in enumerate(position.seqnos))
    ahead = f"1-{since_token.encode(position._replace(seqnos=seqnos, horizons=seqnos), meta, asked)}"
    assert len(rows(service, channels="ahead", at_least=here)) == 1
    refused = service.changes(channels="ahead", at_least=ahead, timeout=0)
    assert (refused.status, refused.json["error"], refused.headers["retry-after"]) == (503, "unavailable", "5")
    with ThreadPoolExecutor(3) as threads:
        feeds = [threads.submit(rows, service, channels="ahead", at_least=ahead, feed=feed) for feed in ONCE]
        documents.write(("ahead", "doc30", 0))
        assert [{row["id"] for row in feed.result()} for feed in feeds] == [{"doc14", "doc30"}] * 2


ONCE = ("normal", "longpoll")


def test_heads_say_how_far_the_index_is_and_if_all_of_it_was_sent(service: Service) -> None:
    whole = service.changes(channels="a")
    part = service.changes(channels="a", limit=100)
    for answer, is_all in ((whole, "true"), (part, "false"), (service.changes(channels="a", limit=0), "false")):
        assert answer.headers["channelindex-up-to-date"] == is_all
        assert int(answer.headers["channelindex-seq"]) >= int(answer.json["last_seq"].partition("-")[0])
    last = whole.json["last_seq"]
    assert int(last.partition("-")[0]) <= int(service.changes(channels="a", limit=0).headers["channelindex-seq"])
    assert service.changes(channels="a", limit=1500).headers["channelindex-up-to-date"] == "true"
    assert "accept-encoding" in whole.headers["vary"].lower()


def test_a_live_feed_numbers_as_many_rows_as_it_is_asked_to(service: Service) -> None:
    for feed in ("continuous", "eventsource"):
        told = told_by(service, {"feed": feed, "limit": 10, "seq_interval": 5}, "a", "0", {})
        assert [row["seq"] is None for row in told] == ([True] * 4 + [False]) * 2


def test_what_a_database_tells_of_itself_can_be_followed_from_for_any_channel(
    service: Service, documents: Documents
) -> None:
    told = service.ask("GET", f"/{service.db}").json
    assert (told["db_name"], told["instance_start_time"]) == (service.db, "0")
    assert (told["channels"], told["lag"]) == (["*"], {"changes": None, "seconds": None}), "nobody owns a partition"
    assert service.ask("HEAD", f"/{service.db}/").status == 200
    for channel in ("a", "fresh"):
        assert rows(service, channels=channel, since=told["update_seq"]) == []
    documents.write(("fresh", "doc5", 0))
    assert len(rows(service, channels="fresh", since=told["update_seq"])) == 1


REFUSED = [
    ("GET", "/{db}/_changes?since=garbled-token", 400, "since_invalid"),
    ("GET", "/{db}/_changes?since=17", 400, "since_invalid"),
    ("GET", "/{db}/_changes?since=17-g1AAAAGreJ", 400, "since_invalid"),
    ("GET", "/{db}/_changes?limit=-1", 400, "bad_request"),
    ("GET", "/{db}/_changes?limit=many", 400, "bad_request"),
    ("GET", "/{db}/_changes?feed=often", 400, "bad_request"),
    ("GET", "/{db}/_changes?heartbeat=soon", 400, "bad_request"),
    ("GET", "/{db}/_changes?chanels=a", 400, "bad_request"),
    ("GET", "/{db}/_changes?channels=", 400, "bad_request"),
    ("GET", "/{db}/_changes?filter=app/mine", 400, "bad_request"),
    ("GET", "/{db}/_changes?filter=_doc_ids", 400, "bad_request"),
    ("GET", "/{db}/_changes?descending=true", 400, "bad_request"),
    ("GET", "/{db}/_changes?include_docs=true", 501, "not_implemented"),
    ("GET", "/{db}/_changes?request_plus=true", 501, "not_implemented"),
    ("GET", "/{db}/_changes?at_least=now", 400, "bad_request"),
    ("GET", "/{db}/_changes?at_least=garbled-token", 400, "since_invalid"),
    ("GET", "/{db}/_changes?atleast=1-2", 400, "bad_request"),
    ("GET", "/{db}/_changes?since=2026-13-45T08:00:00Z", 400, "since_invalid"),
    ("GET", "/{db}/_changes?since=2026-11-27T08:00:00", 400, "since_invalid"),
    ("GET", "/{db}/_changes?channels=" + "c," * 1001 + "c", 200, ""),
    ("GET", "/{db}/_changes?channels=" + ",".join(f"c{n}" for n in range(1001)), 400, "bad_request"),
    ("GET", "/{db}/_changes?x=" + "y" * 40_000, 414, "too_long"),
    ("DELETE", "/{db}/_changes", 405, "method_not_allowed"),
    ("PUT", "/{db}", 412, "file_exists"),
    ("GET", "/other", 404, "not_found"),
    ("GET", "/other/_changes", 404, "not_found"),
    ("GET", "/{db}/doc1", 501, "not_implemented"),
    ("POST", "/{db}/_bulk_get", 501, "not_implemented"),
    ("GET", "/_all_dbs", 501, "not_implemented"),
    ("GET", "/_node/_local/_stats", 501, "not_implemented"),
    ("GET", "//{db}/_changes", 404, "not_found"),
    ("GET", "/{db}//_changes", 404, "not_found"),
    ("GET", "/x/../{db}/_changes", 404, "not_found"),
    ("GET", "/./{db}/_changes", 404, "not_found"),
    ("GET", "/{db}%2f_changes", 404, "not_found"),
    ("GET", "/{db}/_changes%00", 404, "not_found"),
    ("GET", "/{db}/%255fchanges", 404, "not_found"),
]


@pytest.mark.parametrize(("method", "path", "status", "error"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_answered_says_why(service: Service, method: str, path: str, status: int, error: str) -> None:
    answer = service.ask(method, path.replace("{db}", service.db))
    assert answer.status == status, answer.body
    if error:
        assert answer.json["error"] == error
        assert answer.json["reason"]
        assert "changes-feed.md" in answer.json["docs"]
        assert answer.headers["cache-control"] == "private, no-store"
    if status == 405:
        assert answer.headers["allow"] == "GET, POST"


def test_a_token_of_other_channels_is_refused(service: Service) -> None:
    since = service.changes(channels="b").json["last_seq"]
    answer = service.changes(channels="a", since=since)
    assert (answer.status, answer.json["error"]) == (400, "since_invalid")
    assert "other channels" in answer.json["reason"]


def test_bodies_that_are_none_are_refused(service: Service) -> None:
    path = f"/{service.db}/_changes"
    for body, headers, status in (
        (b"[1]", {}, 400),
        (b"{", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b"not gzip", {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b"{}")[:-4], {"Content_Encoding": "gzip"}, 400),
        (gzip.compress(b" " * 50_000_000), {"Content_Encoding": "gzip"}, 413),
        (b" " * 1_100_000, {}, 413),
        (b"{}", {"Content_Encoding": "br"}, 415),
    ):
        assert service.ask("POST", path, body, **headers).status == status


FEEDS = st.sampled_from(["normal", "longpoll", "continuous", "eventsource"])
ASKED = st.fixed_dictionaries(
    {"feed": FEEDS, "limit": st.integers(1, 120)},
    optional={"seq_interval": st.integers(1, 50)},
)


@pytest.fixture(scope="module")
def mixed(documents: Documents) -> list[str]:
    """Channels with documents that were changed, deleted, removed and moved between them."""
    flags = (0, 0, 0, DELETED, REMOVED)
    for turn in range(3):
        batch = [(f"mix{(n + turn) % 2}", f"doc{n}", flags[(n * 7 + turn) % 5]) for n in range(2000, 2120)]
        documents.write(*batch)
    return ["mix0", "mix1"]


@given(steps=st.lists(ASKED, min_size=1, max_size=4))
@settings(max_examples=examples(0.25))
def test_any_mix_of_feeds_and_pages_tells_what_one_answer_tells(
    service: Service, mixed: list[str], steps: list[dict[str, Any]]
) -> None:
    channels = ",".join(mixed)
    for narrow in ({}, {"active_only": "true"}, {"filter": "_doc_ids", "doc_ids": json.dumps(IDS)}):
        whole = rows(service, channels=channels, **narrow)
        told: list[dict[str, Any]] = []
        since, turn = "0", 0
        while len(told) < len(whole):
            step = steps[turn % len(steps)]
            part = told_by(service, step, channels, since, narrow)
            assert part, "what is pending is told"
            told += part
            since = part[-1]["seq"]
            turn += 1
        assert [_without_seq(row) for row in told] == [_without_seq(row) for row in whole]
        assert told_by(service, {"feed": "normal", "limit": 5}, channels, since, narrow) == []


WRITTEN = st.tuples(
    st.sampled_from(["kept0", "kept1"]), st.integers(3000, 3009), st.sampled_from([0, 0, DELETED, REMOVED])
)
STEPS = st.lists(
    st.one_of(
        st.lists(WRITTEN, min_size=1, max_size=8),
        st.just("roll back"),
        st.fixed_dictionaries(
            {"feed": FEEDS, "limit": st.integers(1, 6), "active_only": st.sampled_from(["true", "false"])}
        ),
    ),
    min_size=2,
    max_size=12,
)


@given(steps=STEPS)
@settings(max_examples=examples(0.25))
def test_who_leaves_deletions_out_now_and_then_ends_with_what_is_there(
    service: Service, documents: Documents, steps: list[Any]
) -> None:
    """Whatever is written, deleted and rolled back between requests, of which each says anew if it wants deletions."""
    channels, since, newest = "kept0,kept1", "0", None
    has: dict[str, str] = {}
    to_the_end = [{"feed": "normal", "limit": 6, "active_only": "true"}] * 10
    for step in [*steps, *to_the_end]:
        if step == "roll back":
            if newest is not None:
                documents.roll_back(newest % len(documents.high), 1)
            newest = None
        elif isinstance(step, list):
            documents.write(*[(channel, f"doc{number}", flags) for channel, number, flags in step])
            newest = step[-1][1]
        else:
            told = told_by(service, step, channels, since, {"active_only": step["active_only"]})
            for row in told:
                is_gone = row.get("deleted") or row.get("removed")
                has.pop(row["id"], None) if is_gone else has.update({row["id"]: row["changes"][0]["rev"]})
            since = told[-1]["seq"] if told else since
    there = rows(service, channels=channels, active_only="true")
    assert has == {row["id"]: row["changes"][0]["rev"] for row in there}


IDS = [f"doc{n}" for n in range(2000, 2120, 3)]


def told_by(
    service: Service, step: dict[str, Any], channels: str, since: str, narrow: dict[str, str]
) -> list[dict[str, Any]]:
    asked = {"channels": channels, "since": since, "limit": step["limit"], "feed": step["feed"], **narrow}
    if "seq_interval" in step:
        asked["seq_interval"] = step["seq_interval"]
    if step["feed"] in {"normal", "longpoll"}:
        answer = service.changes(**asked, timeout=0).json
        assert answer["pending"] == 0 or len(answer["results"]) == step["limit"]
        found: list[dict[str, Any]] = answer["results"]
        return found
    body = service.changes(**asked, timeout=1).body.decode()
    if step["feed"] == "continuous":
        lines = [json.loads(line) for line in body.splitlines() if line]
        assert "last_seq" in lines[-1]
        return lines[:-1]
    events = [event for event in body.split("\n\n") if 'data: {"seq"' in event]
    return [json.loads(event.partition("data: ")[2]) for event in events]


def _without_seq(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seq"}


def test_a_service_that_stops_ends_its_feeds_in_good_order(
    store: EmbeddedRedis, documents: Documents, tmp_path
) -> None:
    with Service(tmp_path, store.url, documents.index.name).start() as service:
        asked: dict[str, Any] = {"channels": "b", "heartbeat": 60000}
        with (
            service.open(feed="continuous", **asked) as lines,
            service.open(feed="eventsource", **asked) as events,
            service.open(feed="longpoll", since="now", **asked) as poll,
        ):
            rows_told = [lines.row() for _ in range(3)]
            assert poll.line() == '{"results":['
            assert events.event() == {"retry": "2000"}
            assert service.stop(signal.SIGTERM) == 0
            assert lines.row() == {"last_seq": rows_told[-1]["seq"], "pending": 0}
            assert lines.rest() == b""
            assert events.rest().endswith(b"\n\n")
            assert json.loads('{"results":[' + poll.rest().decode())["results"] == []
        assert "Traceback" not in service.log.read_text()


def test_the_service_manager_is_notified_that_it_serves_and_that_its_loop_turns(
    store: EmbeddedRedis, documents: Documents, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        with Service(tmp_path, store.url, documents.index.name) as service:
            service.environ |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
            service.start()
            told = {manager.recv(4096).decode().splitlines()[0] for _ in range(4)}
            assert told == {"READY=1", "WATCHDOG=1"}
            assert service.stop() == 0
            while manager.recv(4096) != b"STOPPING=1":
                pass


def test_a_store_that_is_away_is_waited_for_by_feeds_and_reported_to_requests(tmp_path: Path) -> None:
    with (
        EmbeddedRedis() as store,
        closing(Documents(store.url)) as documents,
        Service(tmp_path, store.url, documents.index.name) as service,
    ):
        documents.write(("a", "doc1", 0))
        service.start()
        with service.open(channels="a", feed="continuous", heartbeat=1000) as stream:
            assert stream.row()["id"] == "doc1"
            store.kill()
            until(lambda: service.changes(channels="a").status == 503, "requests to be refused")
            refused = service.changes(channels="a", feed="longpoll")
            assert (refused.json["error"], refused.headers["retry-after"]) == ("unavailable", "5")
            assert service.ask("GET", "/_up").status == 503
            assert stream.line() == "", "the feed is alive"


def test_metrics_count_followers_rows_and_refusals(service: Service, documents: Documents) -> None:
    followers, n_rows, refused = (f"channelindex_serve_{name}" for name in ("followers", "rows_total", "refused_total"))
    until(lambda: service.metric(followers) == 0, "feeds of other tests to be noticed to be closed")
    before = service.metric(n_rows), service.metric(refused)
    with service.open(channels="b", feed="continuous") as stream:
        assert [stream.row() for _ in range(3)]
        assert service.metric(followers) == 1
    assert service.changes(limit="x").status == 400
    until(lambda: service.metric(followers) == 0, "the feed to be noticed to be closed")
    assert (service.metric(n_rows), service.metric(refused)) == (before[0] + 3, before[1] + 1)
    assert service.metric("channelindex_serve_wake_seconds_count") >= 0


def test_requests_that_come_at_once_are_answered_one_after_the_other(service: Service) -> None:
    paths = [f"/{service.db}/_changes?channels=b&limit={limit}" for limit in (1, 2, 3)]
    sent = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n" for path in paths]
    sent[-1] = sent[-1].replace("localhost", "localhost\r\nConnection: close")
    answers = raw(service.port, "".join(sent).encode()).split(b"HTTP/1.1 200 OK")[1:]
    assert [answer.count(b'"id"') for answer in answers] == [1, 2, 3]


def test_what_is_no_http_is_answered_and_closed(service: Service) -> None:
    assert raw(service.port, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    head = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"y" * 200_000
    assert raw(service.port, head).startswith(b"HTTP/1.1 431 ")
    assert http.client.HTTPConnection("127.0.0.1", service.port).host
