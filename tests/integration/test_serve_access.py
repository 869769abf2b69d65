"""Who may read what over HTTP: tokens, cookies, proxies, certificates, and clients that mean harm."""

import base64
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from channelindex.reading.since_token import ANYTHING, encode
from channelindex.reading.snapshot import IndexSnapshot
from channelindex.settings import ServeSettings
from devbucket.embedded_redis import EmbeddedRedis
from tests.support.certificates import Certificates
from tests.support.node import DEADLINE_S, until
from tests.support.ports import free_port
from tests.support.running import cli
from tests.support.served import Documents, Service, raw
from workers.serving.feed_connection import Door
from workers.serving.service import doors


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


@pytest.fixture(scope="module")
def documents(store: EmbeddedRedis) -> Iterator[Documents]:
    with closing(Documents(store.url)) as made:
        made.write(("orders", "doc1", 0), ("team-x", "doc2", 0), ("other", "doc3", 0), ("*", "doc4", 0))
        yield made


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens"


def new(path: Path, name: str, *channels: str, arguments: tuple[str, ...] = ()) -> str:
    """A new token, made as an operator does."""
    done = cli("token", "new", name, "--file", path, "--channels", *channels, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def token(tokens_file: Path) -> dict[str, str]:
    return {
        "some": new(tokens_file, "some", "orders", "team-*"),
        "all": new(tokens_file, "all", "*"),
        "exact": new(tokens_file, "exact", "orders", "other"),
        "slow": new(tokens_file, "slow", "orders", arguments=("--rate", "0.001")),
        "proxy": new(tokens_file, "gateway", "*", arguments=("--proxy",)),
    }


@pytest.fixture(scope="module")
def service(
    store: EmbeddedRedis,
    documents: Documents,
    tokens_file: Path,
    token: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    settings = {
        "serve_tokens_file": tokens_file,
        "serve_operator_listen": f"127.0.0.1:{free_port()}",
        "serve_origins": "https://app.example.com",
        "serve_max_feeds_per_token": 20,
        "serve_max_connections": 60,
        "serve_slow_client_s": 2,
    }
    folder = tmp_path_factory.mktemp("serve")
    with Service(folder, store.url, documents.index.name, **settings).start() as running:
        yield running


@pytest.fixture(scope="module")
def open_service(
    store: EmbeddedRedis, documents: Documents, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Without tokens."""
    with Service(tmp_path_factory.mktemp("open"), store.url, documents.index.name).start() as running:
        yield running


def operator_port(service: Service) -> int:
    return int(service.environ["CHANNELINDEX_SERVE_OPERATOR_LISTEN"].rpartition(":")[2])


def ids(answer: Any) -> set[str]:
    assert answer.status == 200, answer.body
    return {row["id"] for row in answer.json["results"]}


def test_a_token_reads_its_channels_and_learns_which_are_not_its_own(service: Service, token: dict[str, str]) -> None:
    assert ids(service.changes(token=token["some"], channels="orders,team-x")) == {"doc1", "doc2"}
    assert ids(service.changes(token=token["exact"])) == {"doc1", "doc3"}, "by default all that are granted"
    assert ids(service.changes(token=token["all"])) == {"doc4"}
    assert ids(service.changes(token=token["all"], channels="other")) == {"doc3"}
    for channels, forbidden in (("orders,other", "'other'"), ("*", "'*'"), ("team", "'team'"), ("ORDERS", "'ORDERS'")):
        answer = service.changes(token=token["some"], channels=channels)
        assert (answer.status, answer.json["error"]) == (403, "forbidden")
        assert forbidden in answer.json["reason"]
    cannot_list = service.changes(token=token["some"])
    assert cannot_list.status == 400
    assert "name channels" in cannot_list.json["reason"]


def test_a_token_comes_as_bearer_as_password_or_as_cookie(service: Service, token: dict[str, str]) -> None:
    path = f"/{service.db}/_changes?channels=orders"
    basic = base64.b64encode(f"anybody:{token['some']}".encode()).decode()
    assert ids(service.ask("GET", path, Authorization=f"Basic {basic}")) == {"doc1"}
    body = json.dumps({"name": "x", "password": token["some"]}).encode()
    logged_in = service.ask("POST", "/_session", body, Content_Type="application/json")
    cookie = logged_in.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    sent = cookie.partition(";")[0]
    assert ids(service.ask("GET", path, Cookie=f"other=1; {sent}")) == {"doc1"}
    assert service.ask("GET", "/_session", Cookie=sent).json["userCtx"]["name"] == "some"
    assert "Max-Age=0" in service.ask("DELETE", "/_session").headers["set-cookie"]
    assert service.ask("POST", "/_session", b'{"password":"cix_wrong"}').status == 401


def test_nobody_without_a_token_reads_anything(service: Service) -> None:
    db = service.db
    forged = "cix_" + "A" * 43
    for header in (
        None,
        "Bearer ",
        f"Bearer {forged}",
        "Basic !!!",
        "Basic Og==",
        "Digest x",
        "Bearer " + "y" * 10_000,
    ):
        headers: dict[str, Any] = {"Authorization": header} if header else {}
        for path in (f"/{db}", f"/{db}/_changes", f"/{db}/_channels", f"/{db}/doc", f"/{db}/_changes?feed=longpoll"):
            answer = service.ask("GET", path, **headers)
            assert answer.status == 401, path
            assert "Bearer" in answer.headers["www-authenticate"]
    for path in ("/_up", "/metrics"):
        assert service.ask("GET", path).status == 404
    assert "uuid" not in service.ask("GET", "/").json
    foreign = service.ask("GET", f"/{db}/_changes", Channelindex_Channels="orders")
    assert foreign.status == 401


def test_only_who_may_read_all_sees_the_names_of_channels(service: Service, token: dict[str, str]) -> None:
    path = f"/{service.db}/_channels?prefix=o"
    listed = service.ask("GET", path, Authorization=f"Bearer {token['all']}").json
    assert [channel["name"] for channel in listed["channels"]] == ["orders", "other"]
    assert all(channel["counter"] > 0 for channel in listed["channels"])
    assert service.ask("GET", path, Authorization=f"Bearer {token['some']}").status == 403


def test_operators_have_an_address_of_their_own(service: Service) -> None:
    assert service.metric("channelindex_serve_connections", operator_port(service)) >= 1
    answer = raw(operator_port(service), b"GET /_up HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_the_address_of_operators_is_distinguished_from_the_others_by_more_than_its_port(
    store: EmbeddedRedis, documents: Documents, tokens_file: Path, token: dict[str, str], tmp_path: Path
) -> None:
    service = Service(tmp_path, store.url, documents.index.name, serve_tokens_file=tokens_file)
    service.environ["CHANNELINDEX_SERVE_OPERATOR_LISTEN"] = f"127.0.0.2:{service.port}"
    with service.start():
        assert service.changes(channels="orders").status == 401
        assert service.ask("GET", "/metrics").status == 404
        assert ids(service.changes(token=token["some"], channels="orders")) == {"doc1"}


def test_operators_who_are_not_on_loopback_read_no_channel_without_a_token() -> None:
    given = ServeSettings(operator_listen="10.0.0.1:4995", tokens_file="/etc/channelindex/tokens")
    assert [door for _, door in doors(given)] == [
        Door(is_operators=False, is_trusted=False),
        Door(is_operators=True, is_trusted=False),
    ]
    on_loopback = doors(ServeSettings(operator_listen="[::1]:4995", tokens_file="/etc/channelindex/tokens"))
    assert on_loopback[1][1] == Door(is_operators=True, is_trusted=True)
    assert doors(ServeSettings())[0][1] == Door(is_operators=True, is_trusted=True)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:4994", 200),
        ("evil.example.com", 403),
        ("127.0.0.1.evil.example.com:80", 403),
        ("[::1", 403),
    ],
)
def test_a_web_page_does_not_read_what_needs_no_token_by_a_name_of_its_own(
    store: EmbeddedRedis, documents: Documents, open_service: Service, host: str, status: int
) -> None:
    assert open_service.ask("GET", f"/{open_service.db}/_changes?channels=orders", Host=host).status == status


def test_where_no_token_is_needed_none_becomes_a_cookie(open_service: Service) -> None:
    body = json.dumps({"password": "x\r\nset-cookie: other=1"}).encode()
    answer = open_service.ask("POST", "/_session", body, Content_Type="application/json")
    assert answer.status == 200
    assert answer.headers["set-cookie"].startswith("ChannelindexSession=;")


def test_a_proxy_names_the_channels_of_its_user(service: Service, token: dict[str, str]) -> None:
    def asked(channels: str, named: str | None) -> Any:
        headers: dict[str, Any] = {"Authorization": f"Bearer {token['proxy']}"}
        headers |= {"Channelindex_Channels": named} if named else {}
        return service.ask("GET", f"/{service.db}/_changes{channels}", **headers)

    assert ids(asked("", "orders, other")) == {"doc1", "doc3"}
    assert ids(asked("?channels=orders", '["orders"]')) == {"doc1"}
    assert asked("?channels=other", "orders").status == 403
    assert asked("?channels=orders", None).status == 403
    assert asked("?channels=orders", "[broken").status == 400


def test_a_token_has_so_many_feeds_open_and_no_more(service: Service, token: dict[str, str]) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            opened = stack.enter_context(service.open(token=token["all"], feed="continuous", channels="orders"))
            assert opened.status == 200
        for path in (f"/{service.db}/_changes?feed=longpoll&channels=orders", "/_events"):
            refused = service.ask("GET", path, Authorization=f"Bearer {token['all']}")
            assert (refused.status, refused.json["error"]) == (429, "too_many_requests"), path
        assert service.changes(token=token["some"], channels="orders").status == 200


def test_a_token_asks_no_oftener_than_it_may(service: Service, token: dict[str, str]) -> None:
    assert service.changes(token=token["slow"], channels="orders").status == 200
    refused = service.changes(token=token["slow"], channels="orders")
    assert (refused.status, refused.json["error"]) == (429, "too_many_requests")
    assert int(refused.headers["retry-after"]) > 0


def test_a_token_has_no_more_feeds_open_than_it_may(service: Service, token: dict[str, str]) -> None:
    with ExitStack() as stack:
        asked: dict[str, Any] = {"channels": "orders", "feed": "continuous", "heartbeat": 60000}
        feeds = [stack.enter_context(service.open(token=token["exact"], **asked)) for _ in range(20)]
        assert [feed.row()["id"] for feed in feeds] == ["doc1"] * 20
        assert service.changes(token=token["exact"], **asked).status == 429
        assert ids(service.changes(token=token["some"], channels="orders")) == {"doc1"}, "others are not disturbed"


def test_feeds_of_a_token_that_is_revoked_end_and_those_of_others_go_on(
    service: Service, documents: Documents, tokens_file: Path
) -> None:
    ended, stays = new(tokens_file, "ended", "fired"), new(tokens_file, "stays", "fired")
    until(lambda: service.changes(token=stays, channels="fired").status == 200, "the new tokens to be known")
    asked: dict[str, Any] = {"channels": "fired", "feed": "continuous", "heartbeat": 60000}
    with service.open(token=ended, **asked) as gone, service.open(token=stays, **asked) as other:
        documents.write(("fired", "doc5", 0))
        assert gone.row()["id"] == other.row()["id"] == "doc5"
        assert cli("token", "revoke", "ended", "--file", tokens_file).returncode == 0
        assert set(gone.row()) == {"last_seq", "pending"}
        assert gone.rest() == b""
        documents.write(("fired", "doc6", 0))
        assert other.row()["id"] == "doc6"
    assert service.changes(token=ended, channels="fired").status == 401
    listed = json.loads(cli("token", "list", "--json", "--file", tokens_file).stdout)
    assert {each["name"] for each in listed} >= {"some", "all", "stays"}
    assert "ended" not in {each["name"] for each in listed}


def test_who_waits_for_the_index_counts_and_is_not_let_in_once_its_token_is_revoked(
    service: Service, documents: Documents, tokens_file: Path
) -> None:
    waits = new(tokens_file, "waits", "waited")
    until(lambda: service.changes(token=waits, channels="waited").status == 200, "the new token to be known")
    there = IndexSnapshot.take(documents.index.reader).position
    seqnos = tuple(seqno + (vb == 7) for vb, seqno in enumerate(there.seqnos))
    ahead = encode(there._replace(seqnos=seqnos, horizons=seqnos), documents.index.meta, ANYTHING)
    asked = f"channels=waited&feed=continuous&heartbeat=60000&timeout=600000&at_least=1-{ahead}"
    head = f"GET /{service.db}/_changes?{asked} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {waits}\r\n\r\n".encode()
    with ExitStack() as stack:
        links = [
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), DEADLINE_S)) for _ in range(20)
        ]
        for link in links:
            link.sendall(head)

        def more() -> int:
            return service.changes(token=waits, channels="waited", at_least=f"1-{ahead}", timeout=0).status

        assert more() in {503, 429}
        until(lambda: more() == 429, "all of them to wait")
        assert cli("token", "revoke", "waits", "--file", tokens_file).returncode == 0
        until(lambda: more() == 401, "the token to be forgotten")
        documents.write(("waited", "doc7", 0))
        assert {link.recv(12) for link in links} == {b"HTTP/1.1 401"}


def test_a_file_that_is_broken_changes_nothing(service: Service, tokens_file: Path, token: dict[str, str]) -> None:
    before = tokens_file.read_text()
    try:
        _replace(tokens_file, "nonsense\n")
        until(lambda: "serve.tokens_refused" in service.log.read_text(), "the file to be refused")
        assert service.changes(token=token["some"], channels="orders").status == 200
    finally:
        _replace(tokens_file, before)


def _replace(path: Path, text: str) -> None:
    """Change a file at once, so that nobody reads half of it."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.chmod(0o600)
    other.replace(path)


def test_scripts_of_known_origins_may_ask(service: Service, token: dict[str, str]) -> None:
    path = f"/{service.db}/_changes?channels=orders"
    preflight = service.ask("OPTIONS", path, Origin="https://app.example.com")
    assert preflight.status == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    known = service.ask("GET", path, Origin="https://app.example.com", Authorization=f"Bearer {token['some']}")
    assert known.headers["access-control-allow-origin"] == "https://app.example.com"
    other = service.ask("GET", path, Origin="https://evil.example.com", Authorization=f"Bearer {token['some']}")
    assert "access-control-allow-origin" not in other.headers
    assert service.ask("OPTIONS", path, Origin="https://evil.example.com").status == 405


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"serve_listen": "0.0.0.0:0"}, "without serve.tokens_file everybody may read everything"),
        ({"serve_listen": "[::]:0"}, "not on loopback"),
        ({"serve_listen": ""}, "nothing to serve on"),
        ({"serve_tokens_file": "/nowhere/tokens"}, "cannot be read"),
        ({"serve_tls_key_file": "/nowhere/key"}, "without serve.tls_cert_file"),
        ({"serve_tls_cert_file": "/nowhere/cert"}, "tls_cert_file"),
    ],
)
def test_a_service_that_would_let_strangers_in_or_nobody_does_not_start(
    store: EmbeddedRedis, documents: Documents, tmp_path: Path, settings: dict[str, str], why: str
) -> None:
    service = Service(tmp_path, store.url, documents.index.name, **settings)
    command = [sys.executable, "-m", "channelindex", "serve"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=DEADLINE_S, env=service.environ, cwd=tmp_path
    )
    assert done.returncode == 64, done.stderr
    assert why in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("channelindex: ")


def test_a_service_whose_address_is_taken_says_so_and_ends(
    store: EmbeddedRedis, documents: Documents, tmp_path: Path
) -> None:
    service = Service(tmp_path, store.url, documents.index.name)
    taken = service.port
    with socket.create_server(("127.0.0.1", taken)), service.start():
        assert service.port != taken, "it was begun anew elsewhere"
        assert service.changes(channels="orders").status == 200
    assert f"cannot listen on 127.0.0.1:{taken}: Address already in use" in service.log.read_text()


def test_a_file_of_tokens_that_others_could_read_is_refused(
    store: EmbeddedRedis, documents: Documents, tmp_path: Path
) -> None:
    path = tmp_path / "tokens"
    new(path, "some", "orders")
    path.chmod(0o644)
    done = cli("token", "list", "--file", path)
    assert done.returncode == 64
    assert "chmod 0600" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("new", "a b", "--channels", "c"), "letters, digits"),
        (("new", "some", "--channels", "c"), "a token some already: revoke it first"),
        (("new", "star", "--channels", "a*b"), "one * at its end"),
        (("new", "none"), "no channel: name some with --channels"),
        (("revoke", "nobody"), "no token nobody"),
        (("revoke",), "needs a NAME"),
    ],
)
def test_orders_about_tokens_that_make_no_sense_change_nothing(
    tokens_file: Path, token: dict[str, str], arguments: tuple[str, ...], why: str
) -> None:
    before = tokens_file.read_text()
    done = cli("token", *arguments, "--file", tokens_file)
    assert done.returncode != 0
    assert why in done.stderr
    assert tokens_file.read_text() == before


def test_channels_with_odd_names_can_be_granted(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    odd = ["a,b", "with space", "100%", "straße", "ünï*"]
    new(path, "odd", *odd)
    (listed,) = json.loads(cli("token", "list", "--json", "--file", path).stdout)
    assert sorted(listed["channels"]) == sorted(odd)


def test_over_tls_a_client_needs_a_certificate_where_one_is_asked_for(
    store: EmbeddedRedis, documents: Documents, tokens_file: Path, token: dict[str, str], tmp_path: Path
) -> None:
    certificates = Certificates.make(tmp_path)
    settings = {
        "serve_tokens_file": tokens_file,
        "serve_tls_cert_file": certificates.path("server.pem"),
        "serve_tls_key_file": certificates.path("server.key"),
        "serve_tls_client_ca_file": certificates.path("ca.pem"),
    }
    with Service(tmp_path, store.url, documents.index.name, **settings).start() as service:
        request = (
            f"GET /{service.db}/_changes?channels=orders HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Authorization: Bearer {token['some']}\r\n\r\n"
        ).encode()
        assert b'"id":"doc1"' in _over_tls(service.port, request, certificates, with_certificate=True)
        assert _over_tls(service.port, request, certificates, with_certificate=False) == b""


def _over_tls(port: int, request: bytes, certificates: Certificates, *, with_certificate: bool) -> bytes:
    context = ssl.create_default_context(cafile=certificates.path("ca.pem"))
    if with_certificate:
        context.load_cert_chain(certificates.path("client.pem"), certificates.path("client.key"))
    with (
        socket.create_connection(("127.0.0.1", port), DEADLINE_S) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
    ):
        received = b""
        with suppress(ssl.SSLError, ConnectionError):
            link.sendall(request)
            while part := link.recv(65536):
                received += part
    return received


def test_hostile_clients_are_bounded_and_disturb_nobody(
    service: Service, documents: Documents, token: dict[str, str]
) -> None:
    """Slow heads, bodies without end, readers that do not read, and more connections than there may be."""
    authorization = f"Authorization: Bearer {token['some']}\r\n".encode()
    path = f"/{service.db}/_changes?channels=orders".encode()
    with ExitStack() as stack:

        def link() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", service.port), DEADLINE_S))

        slow_heads = [link() for _ in range(10)]
        for each in slow_heads:
            each.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        endless = link()
        endless.sendall(
            b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + authorization + b"\r\n"
        )
        answer = _sent_for_ever(endless)
        assert answer.startswith(b"HTTP/1.1 413 ")
        mute = [link() for _ in range(10)]
        for each in mute:
            each.sendall(
                b"GET " + path + b"&feed=continuous&heartbeat=1000 HTTP/1.1\r\nHost: x\r\n" + authorization + b"\r\n"
            )
        assert ids(service.changes(token=token["exact"], channels="orders")) == {"doc1"}, "others are served"
        for each in slow_heads:
            assert _end_of(each) == b"", "cut off"
    with ExitStack() as stack:
        many = [
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), DEADLINE_S)) for _ in range(70)
        ]
        refused: list[socket.socket] = []

        def are_refused() -> bool:
            refused.extend(each for each in many if each not in refused and _is_refused(each))
            return len(refused) >= 10

        until(are_refused, "connections to be refused")
    until(lambda: service.changes(token=token["some"], channels="orders").status == 200, "connections to be free again")


def test_a_reader_that_does_not_read_is_cut_off_and_finds_the_rest_by_its_token(
    service: Service, documents: Documents, token: dict[str, str]
) -> None:
    """Nobody queues for it: others are told meanwhile, and what it lacks is read again from the index."""
    cut = partial(service.metric, "channelindex_serve_cut_total", operator_port(service))
    before, n_written = cut(), 0
    request = (
        f"GET /{service.db}/_changes?channels=team-flood&feed=continuous&heartbeat=60000 HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {token['some']}\r\n\r\n"
    ).encode()
    with (
        socket.socket() as mute,
        service.open(token=token["all"], channels="team-flood", feed="continuous", heartbeat=60000) as reader,
    ):
        mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        mute.connect(("127.0.0.1", service.port))
        mute.sendall(request)
        deadline = time.monotonic() + DEADLINE_S
        while cut() == before:
            assert time.monotonic() < deadline, "it was not cut off"
            documents.write(*[("team-flood", f"doc{n}", 0) for n in range(n_written, n_written + 2000)])
            assert {reader.row()["id"] for _ in range(2000)} == {f"doc{n}" for n in range(n_written, n_written + 2000)}
            n_written += 2000
        told = _rows_in(mute)
    assert 0 < len(told) < n_written
    rest = service.changes(token=token["some"], channels="team-flood", since=told[-1]["seq"]).json["results"]
    assert {row["id"] for row in [*told, *rest]} == {f"doc{n}" for n in range(n_written)}
    assert len(told) + len(rest) <= n_written + 100, "at most a hundred come again"


def _rows_in(link: socket.socket) -> list[dict[str, Any]]:
    """The whole rows of a continuous feed that was cut off."""
    received = b""
    with suppress(ConnectionError):
        while part := link.recv(1 << 20):
            received += part
    lines = received.partition(b"\r\n\r\n")[2].split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith(b'{"seq"')]


def _sent_for_ever(link: socket.socket) -> bytes:
    """Send chunks until the other side answers; its answer."""
    link.setblocking(False)
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            return link.recv(65536)
        except BlockingIOError:
            pass
        try:
            link.send(chunk)
        except BlockingIOError:
            time.sleep(0.01)
    raise AssertionError("no answer")


def _end_of(link: socket.socket) -> bytes:
    try:
        return link.recv(65536)
    except ConnectionError:
        return b""


def _is_refused(link: socket.socket) -> bool:
    link.settimeout(0.01)
    try:
        return link.recv(65536).startswith(b"HTTP/1.1 503 ")
    except TimeoutError:
        return False
    except ConnectionError:
        return True
