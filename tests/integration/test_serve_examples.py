"""What docs/changes-feed.md shows to copy, run as it is: programs that follow, and proxies in front of the service."""

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.node import until
from tests.support.npm import CLIENTS, folder_with_packages
from tests.support.ports import free_port
from tests.support.programs import program
from tests.support.running import cli
from tests.support.served import Documents, Service, raw

ADDRESS = "127.0.0.1:4994"
GO = """package main

import (
    "bufio"
    "encoding/json"
    "fmt"
    "log"
    "net/http"
)

func main() {
%s
}
"""


def examples(language: str, service: Service) -> list[str]:
    """The blocks of the document in *language*, with the address of *service*."""
    document = (CLIENTS.parents[1] / "docs" / "changes-feed.md").read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", document, re.DOTALL)
    return [block.replace(ADDRESS, f"127.0.0.1:{service.port}") for block in found]


class Program(NamedTuple):
    """A program that follows."""

    command: list[str]
    environ: dict[str, str]


def nano(folder: Path, service: Service) -> Program:
    return _in_node(folder, f"const save = () => {{}}\n{examples('js', service)[0]}")


def event_source(folder: Path, service: Service) -> Program:
    """In Node.js; a page of the service itself asks the same without the service's address."""
    code = examples("js", service)[1].replace("'/channels", f"'{service.url}/channels")
    return _in_node(folder, f"const {{EventSource}} = require('eventsource')\n{code}")


def _in_node(folder: Path, code: str) -> Program:
    path = folder / "example.cjs"
    path.write_text(code)
    return Program(["node", str(path)], {"NODE_PATH": str(folder_with_packages() / "node_modules")})


def python(folder: Path, service: Service) -> Program:
    path = folder / "example.py"
    path.write_text(examples("python", service)[0])
    return Program([sys.executable, "-u", str(path)], {})


def go(folder: Path, service: Service) -> Program:
    path, built = folder / "example.go", folder / "example"
    path.write_text(GO % examples("go", service)[0])
    compiler = Path(program("go", package="golang-go")).resolve()
    environ = {**os.environ, "GOCACHE": str(folder / "cache"), "GOPATH": str(folder / "go"), "GOTOOLCHAIN": "local"}
    if "tools" in compiler.parts:  # it was taken out of its package and does not know where it is
        environ["GOROOT"] = str(compiler.parents[1])
    command = [str(compiler), "build", "-o", str(built), str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Program([str(built)], {})


@pytest.fixture
def documents(redis_url: str) -> Iterator[Documents]:
    with closing(Documents(redis_url)) as made:
        made.write(("orders", "doc1", 0), ("orders", "doc2", 0), ("other", "doc3", 0))
        yield made


@pytest.mark.parametrize("make", [nano, event_source, python, go], ids=lambda make: make.__name__)
def test_the_programs_of_the_document_tell_the_changes(
    tmp_path: Path, redis_url: str, documents: Documents, make: Callable[[Path, Service], Program]
) -> None:
    with Service(tmp_path, redis_url, documents.index.name, serve_db="channels").start() as service:
        command, environ = make(tmp_path, service)
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env={**os.environ, **environ}
        )
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(2)]
            assert [line.split()[0] for line in lines] == ["doc1", "doc2"]
            documents.write(("orders", "doc4", 0))
            assert process.stdout.readline().split()[0] == "doc4"
        finally:
            process.kill()
            process.communicate()


def nginx(folder: Path, service: Service, port: int) -> list[str]:
    """All that is not about the service has to be in our folder; a master that is root lets its workers be so."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""
    (server,) = examples("nginx", service)
    listening = re.sub(r"listen [^;]*;|server_name [^;]*;", "", server)
    assert listening != server
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; {user}\nevents {{}}\nhttp {{\naccess_log off;\n{folders}\n"
        f"{listening.replace('server {', f'server {{ listen 127.0.0.1:{port};')}\n}}\n"
    )
    command = program("nginx", package="nginx")
    return [command, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, service: Service, port: int) -> list[str]:
    """Without a certificate, which it would ask the internet for."""
    (site,) = examples("caddy", service)
    here = site.replace("feed.example.com {", f"http://127.0.0.1:{port} {{\nbind 127.0.0.1")
    assert here != site
    (folder / "Caddyfile").write_text(f"{{\nadmin off\n}}\n{here}")
    return [program("caddy", package="caddy"), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@contextmanager
def proxied(service: Service, folder: Path, make: Callable[[Path, Service, int], list[str]]) -> Iterator[Service]:
    """*service* as it is reached through a proxy."""
    through = copy.copy(service)
    through.port = free_port()
    environ = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    log = folder / "proxy.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(make(folder, service, through.port), stdout=errors, stderr=errors, env=environ)

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return bool(raw(through.port, b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"))
        except ConnectionRefusedError:
            return False

    try:
        until(listens, "the proxy to listen")
        yield through
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("make", [nginx, caddy], ids=lambda make: make.__name__)
def test_behind_the_proxies_of_the_document_feeds_flow_and_long_tokens_fit(
    tmp_path: Path, redis_url: str, documents: Documents, make: Callable[[Path, Service, int], list[str]]
) -> None:
    tokens = tmp_path / "tokens"
    token = cli("token", "new", "reader", "--file", tokens, "--channels", "*").stdout.strip()
    with (
        Service(tmp_path, redis_url, documents.index.name, serve_tokens_file=tokens).start() as service,
        proxied(service, tmp_path, make) as through,
        through.open(token=token, channels="orders", feed="continuous", heartbeat=1000) as rows,
        through.open(token=token, channels="orders", feed="eventsource", heartbeat=1000) as events,
    ):
        assert through.changes(channels="orders").status == 401
        assert [rows.row()["id"] for _ in range(2)] == ["doc1", "doc2"]
        kinds: list[str] = []
        while kinds[-1:] != ["up-to-date"]:
            kinds += [kind for kind in (events.event().get("event", "retry"),) if kind != "heartbeat"]
        assert kinds == ["retry", "message", "message", "up-to-date"]
        assert rows.line() == "", "a heartbeat comes when it is sent"
        documents.write(("orders", "doc4", 0))
        assert rows.row()["id"] == "doc4"
        many = ",".join(["orders", *[f"channel-{number:05}" for number in range(900)]])
        answer = through.changes(token=token, channels=many)
        assert answer.status == 200, "a URL as long as those with a token of 1,024 vbuckets, and longer"
        assert {row["id"] for row in answer.json["results"]} == {"doc1", "doc2", "doc4"}
