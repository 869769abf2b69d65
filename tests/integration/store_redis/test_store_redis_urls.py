"""Index stores behind Sentinels and behind TLS."""

import json
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
import redis

from channelindex import exits
from channelindex.errors import AuthenticationFailed, OwnershipLost, StoreUnavailable
from devbucket.embedded_redis import EmbeddedRedis
from tests.support.node import until
from tests.support.ports import free_port
from tests.support.redis_servers import answers, launch
from tests.support.running import cli
from tests.support.stores import META, Backend, all_entries, append, checkpoints, entry


class _Servers:
    """redis-server processes on free ports of loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, lines: str = "", *, sentinel: bool = False) -> int:
        """Start one with a configuration of *lines*; its port, once it answers."""
        port = free_port()
        self._processes.append(launch(self._folder / str(port), port, lines, sentinel=sentinel))
        until(lambda: answers(redis.Redis(port=port)), "the server to answer")
        return port

    def close(self) -> None:
        """Stop all."""
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[_Servers]:
    with closing(_Servers(tmp_path)) as started:
        yield started


def test_store_behind_sentinels_is_followed_to_another_master_and_a_new_epoch_is_asked_for(servers):
    password = 'requirepass secret\nmasterauth secret\nsave ""'
    masters = [servers.start(password), servers.start(password)]
    watched = f"sentinel monitor main 127.0.0.1 {masters[0]} 1\nsentinel auth-pass main secret"
    sentinel = servers.start(watched, sentinel=True)
    url = f"redis+sentinel://:secret@127.0.0.1:1,127.0.0.1:{sentinel}/main/1"
    backend = Backend(url)
    owner, writer, reader = backend.owner(), backend.writer(), backend.reader()
    owner.create_or_check(META)
    epoch = owner.next_epoch()
    owner.begin(0, epoch, "n1")
    writer.write([append("A", epoch, entry(0, 1))])
    owner.advance(epoch, checkpoints({0: 1}))
    with redis.Redis(port=masters[0], password="secret", db=1) as client:
        assert client.exists("ci:test:{i}:meta")
    with redis.Redis(port=sentinel) as client:
        client.execute_command("SENTINEL", "REMOVE", "main")
        client.execute_command("SENTINEL", "MONITOR", "main", "127.0.0.1", masters[1], 1)
        client.execute_command("SENTINEL", "SET", "main", "auth-pass", "secret")
    with redis.Redis(port=masters[0], password="secret") as client:
        client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(StoreUnavailable):
        owner.advance(epoch, checkpoints({0: 2}))
    with pytest.raises(OwnershipLost):
        owner.advance(epoch, checkpoints({0: 2}))
    with redis.Redis(port=masters[1], password="secret", db=1) as client:
        assert client.get("ci:test:{i}:epoch") is None
    owner.create_or_check(META)
    assert reader.meta() == META
    backend.close()


def test_a_server_that_is_no_node_of_a_cluster_is_a_wrong_setting(servers):
    port = servers.start()
    done = cli("changes", "A", "--set", f"index.store=redis+cluster://127.0.0.1:{port}")
    assert done.returncode == exits.CONFIG
    assert "this is no node of a cluster: redis:// instead of redis+cluster://" in done.stderr


def test_no_sentinel_that_knows_the_service_is_unavailable(servers):
    sentinel = servers.start(sentinel=True)
    backend = Backend(f"redis+sentinel://127.0.0.1:{sentinel}/nobody")
    with pytest.raises(StoreUnavailable, match="nobody"):
        backend.reader().meta()


class _TlsProxy:
    """Takes TLS connections on loopback and passes them on to a unix socket."""

    def __init__(self, context: ssl.SSLContext, target: Path) -> None:
        self._target = target
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                raw, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        with suppress(OSError), server, self._context.wrap_socket(raw, server_side=True) as client:
            server.connect(str(self._target))
            answers = threading.Thread(target=_copy, args=(server, client), daemon=True)
            answers.start()
            _copy(client, server)
            server.shutdown(socket.SHUT_RDWR)
            answers.join()

    def close(self) -> None:
        """Take no further connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while received := source.recv(65536):
            target.sendall(received)


@pytest.fixture
def tls_port(redis_server: EmbeddedRedis, redis_url: str, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The port of a TLS server in front of the private Redis, and the file of the authority that vouches for it."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    with closing(_TlsProxy(context, redis_server.socket)) as proxy:
        yield proxy.port, file


def test_store_behind_tls_is_written_and_read(tls_port):
    port, authority = tls_port
    backend = Backend(f"rediss://127.0.0.1:{port}/2?ssl_ca_certs={authority}")
    owner = backend.owner()
    owner.create_or_check(META)
    epoch = owner.next_epoch()
    backend.writer().write([append("A", epoch, entry(0, 1))])
    assert [each.seqno for _, each in all_entries(backend.reader(), "A")] == [1]
    backend.close()


def test_authorities_in_a_file_vouch_for_the_index_store_and_the_leases(tls_port):
    port, authority = tls_port
    settings = [f"index.store=rediss://127.0.0.1:{port}/2", f"index.ca_file={authority}"]
    given = [argument for setting in settings for argument in ("--set", setting)]
    shown = cli("config", "show", "--json", *given)
    assert json.loads(shown.stdout)["index.ca_file"] == {"value": str(authority), "origin": "the command line"}
    asked = cli("nodes", *given)
    assert (asked.returncode, "there is no index" in asked.stderr) == (exits.MISSING, True), asked.stderr
    own = ["--set", f"coordination.redis=rediss://127.0.0.1:{port}/3", "--set", "source.url=couchbase://127.0.0.1:1/b"]
    unknown = cli("config", "check", "--connect", *given, *own).stdout
    assert re.search(r"coordination\.redis.*certificate", unknown), unknown
    known = cli("config", "check", "--connect", *given, *own, "--set", f"coordination.ca_file={authority}").stdout
    assert "coordination.redis" not in known, known
    assert "certificate" not in known


def test_certificate_that_nobody_vouches_for_is_refused(tls_port):
    backend = Backend(f"rediss://127.0.0.1:{tls_port[0]}/0")
    with pytest.raises(StoreUnavailable, match="certificate"):
        backend.reader().meta()


def test_wrong_password_behind_tls_is_an_authentication_failure(tls_port):
    port, authority = tls_port
    backend = Backend(f"rediss://nobody:hunter2@127.0.0.1:{port}/0?ssl_ca_certs={authority}")
    with pytest.raises(AuthenticationFailed) as raised:
        backend.reader().meta()
    assert "hunter2" not in str(raised.value)
