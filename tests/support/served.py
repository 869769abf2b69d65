"""`channelindex serve` in a process of its own, for tests, and a small index that it serves."""

import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

from tests.support.indexing import Row, SmallIndex
from tests.support.node import DEADLINE_S, until
from tests.support.ports import free_port
from tests.support.starting import Started, start

N_VBUCKETS = 16
PARTITIONS = range(4)


class Answer(NamedTuple):
    """A whole answer; `json` of its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Service:
    """`channelindex serve` with *settings* beside those of the index; `start` may be called again after `stop`."""

    def __init__(self, folder: Path, store_url: str, index: str = "channels", **settings: object) -> None:
        self.port = free_port()
        self.db = index
        self.log = folder / f"serve-{self.port}.log"
        self.environ = {
            "CHANNELINDEX_INDEX_STORE": store_url,
            "CHANNELINDEX_INDEX_NAME": index,
            "CHANNELINDEX_SERVE_LISTEN": f"127.0.0.1:{self.port}",
            **{f"CHANNELINDEX_{key.upper()}": str(value) for key, value in settings.items()},
        }
        self._process: Started | None = None
        self._has_listened = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self) -> Self:
        """Start it, and wait until it says that it listens; another program may have that port of ours by then."""
        while not self._has_started():
            assert not self._has_listened, f"port {self.port} was taken while the service was away"
            self._listen_on(free_port())
        self._has_listened = True
        return self

    def _listen_on(self, port: int) -> None:
        self.port = port
        self.environ["CHANNELINDEX_SERVE_LISTEN"] = f"127.0.0.1:{port}"

    def _has_started(self) -> bool:
        """False if its port is taken. What it says is waited for: whoever has the port would answer, too."""
        begin = self.log.stat().st_size if self.log.exists() else 0
        process = self.launch()

        def said() -> str:
            return self.log.read_bytes()[begin:].decode()

        try:
            until(lambda: "event=serve.started" in said() or process.poll() is not None, "the service to listen")
            if "event=serve.started" in said():
                return True
            assert f"cannot listen on 127.0.0.1:{self.port}: Address already in use" in said(), said()[-6000:]
        except BaseException:
            self._end()
            raise
        return False

    def launch(self) -> Started:
        """Start it and wait for nothing."""
        with self.log.open("ab") as log:
            environ = {**os.environ, **self.environ}
            self._process = start("serve", output=log, environ=environ, cwd=self.log.parent)
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self, signum: signal.Signals = signal.SIGTERM) -> int:
        assert self._process
        self._process.send_signal(signum)
        return self._process.wait(DEADLINE_S)

    def _end(self) -> None:
        if self._process and self._process.poll() is None:
            if "COVERAGE_PROCESS_CONFIG" in os.environ:  # what is killed has measured nothing
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(DEADLINE_S)
            self._process.kill()
            self._process.wait(DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if error is not None and self.log.exists():
            print(f"--- log of the service, last lines\n{self.log.read_text()[-6000:]}")

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: Any) -> Answer:
        """The answer to one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            sent: dict[str, str] = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def changes(self, *, token: str | None = None, **parameters: Any) -> Answer:
        """The answer to a GET of `_changes`."""
        headers: dict[str, Any] = {"Authorization": f"Bearer {token}"} if token else {}
        return self.ask("GET", f"/{self.db}/_changes?{urlencode(parameters)}", **headers)

    @contextmanager
    def open(self, *, token: str | None = None, last_event_id: str = "", **parameters: Any) -> Iterator["Stream"]:
        """A feed that stays open."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            headers |= {"Last-Event-ID": last_event_id} if last_event_id else {}
            connection.request("GET", f"/{self.db}/_changes?{urlencode(parameters)}", headers=headers)
            yield Stream(connection.getresponse())
        finally:
            connection.close()

    def metric(self, name: str, port: int | None = None) -> float:
        """The sum of a metric over its labels; 0 where it is not there."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        lines = [line for line in text.splitlines() if line.partition(" ")[0].partition("{")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


class Stream:
    """The lines of an answer as they come."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = {key.lower(): value for key, value in answer.getheaders()}
        self._answer = answer

    def line(self) -> str:
        """The next line, without its end; "" at the end of the answer, too."""
        return self._answer.readline().decode().removesuffix("\n")

    @property
    def has_ended(self) -> bool:
        """True once all of the answer was read."""
        return self._answer.isclosed()

    def row(self) -> dict[str, Any]:
        """The next line that is JSON: a row, or what ends a continuous feed."""
        while not (line := self.line()):
            assert not self._answer.isclosed(), "the answer has ended"
        value: dict[str, Any] = json.loads(line)
        return value

    def event(self) -> dict[str, str]:
        """The next event of an event stream, by field."""
        fields: dict[str, str] = {}
        while (line := self.line()) or not fields:
            assert line or not self._answer.isclosed(), "the answer has ended"
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
        return fields

    def rest(self) -> bytes:
        """All until the end; raises IncompleteRead where the answer was cut off."""
        return self._answer.read()


class Documents:
    """Writes to a small index of its own, each batch stable at once. A document `docN` is in vbucket N % 16."""

    def __init__(self, url: str) -> None:
        self.index = SmallIndex(url, n_vbuckets=N_VBUCKETS, n_partitions=len(PARTITIONS), block_bytes=2000)
        self.high = [0] * N_VBUCKETS
        self.epoch = self.index.begin(PARTITIONS)

    def write(self, *rows: tuple[str, str, int]) -> None:
        """Each row: channel, document, flags."""
        written: dict[int, int] = {}
        packed: list[Row] = []
        for channel, document, flags in rows:
            vb = int(document[3:]) % N_VBUCKETS
            self.high[vb] += 1
            written[vb] = self.high[vb]
            packed.append(Row(channel, vb, self.high[vb], document, f"{self.high[vb]}-aa", flags))
        self.index.write(self.epoch, packed, PARTITIONS)
        self.index.advance(self.epoch, written)

    def roll_back(self, vb: int, n: int) -> None:
        self.high[vb] = max(0, self.high[vb] - n)
        self.epoch = self.index.begin(PARTITIONS, rollback={vb: self.high[vb]})
        self.index.advance(self.epoch, {vb: self.high[vb]})

    def close(self) -> None:
        self.index.close()


def raw(port: int, request: bytes, timeout_s: float = DEADLINE_S) -> bytes:
    """All that is answered to bytes that need not be HTTP, until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout_s) as link:
        link.sendall(request)
        received = b""
        with suppress(ConnectionError):
            while part := link.recv(65536):
                received += part
    return received
