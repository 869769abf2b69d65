"""The monitor: the process of a node that serves HTTP, so that the supervisor need not.

It reads only the board. `/metrics` is for Prometheus, `/healthz` and `/readyz` for tools that restart nodes: 200 or
503, with one line per problem. If it fails, the node continues without it and starts another one.
"""

import http.server
import socket
import sys
import threading
import time
from contextlib import suppress
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from channelindex import exits, logs
from channelindex.polling import wait_readable
from channelindex.settings import MetricsSettings
from workers.signals import StopFlag
from workers.telemetry.board import Board, ProcessStats
from workers.telemetry.exposition import BoardCollector
from workers.telemetry.health import Health, liveness, readiness

NOT_LISTENING = 13
"""Exit code: the address of `metrics.listen` is taken or not ours."""
MAX_REQUESTS = 16
"""At the same time. More are closed unanswered: a flood of requests must not cost the node its memory."""
REQUEST_TIMEOUT_S = 5.0
"""For a request as a whole: a client that sends it byte by byte must not block others for longer."""
BEAT_S = 0.25

_TEXT = "text/plain; charset=utf-8"
_log = logs.get("monitor")


def listen_address(value: str) -> tuple[str, int]:
    """Host and port of `metrics.listen`, which has been validated."""
    host, _, port = value.rpartition(":")
    return host.strip("[]"), int(port)


class Monitor:
    """Serves one node's board on *address*. `run` in a process of its own."""

    def __init__(
        self, address: tuple[str, int], board: Board, stats: ProcessStats, info: dict[str, str], limits: MetricsSettings
    ) -> None:
        self._address = address
        self._board = board
        self._stats = stats
        self._limits = limits
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(BoardCollector(board, info, limits))

    def run(self, stop: StopFlag) -> int:
        """Serve until *stop* is set; return the exit code of the process."""
        try:
            server = _HttpServer(self._address, self)
        except OSError as error:
            host, port = self._address
            _log.error("monitor.not_listening", msg=f"metrics.listen = {host}:{port}: {error.strerror}; no metrics")
            return NOT_LISTENING
        with server:
            _log.info("monitor.listening", host=self._address[0], port=server.server_port)
            while not stop.is_set():
                self._stats.beat()
                if wait_readable([server, stop], BEAT_S):
                    server.handle_request()
                server.cut_late(time.monotonic())
        return exits.OK

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body of the answer to a GET of *path*."""
        match path.partition("?")[0]:
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry)
            case "/healthz":
                return _verdict(liveness(self._board, time.monotonic_ns()))
            case "/readyz":
                return _verdict(readiness(self._board, time.monotonic_ns(), self._limits))
            case _:
                return HTTPStatus.NOT_FOUND, _TEXT, b"/metrics, /healthz and /readyz are served here\n"


def _verdict(health: Health) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.OK if health.is_ok else HTTPStatus.SERVICE_UNAVAILABLE
    return status, _TEXT, ("".join(f"{problem}\n" for problem in health.problems) or "ok\n").encode()


class _HttpServer(http.server.ThreadingHTTPServer):
    """Answers each request in a thread of its own, a bounded number at a time."""

    timeout = 0  # of handle_request: the caller has polled
    daemon_threads = True

    def __init__(self, address: tuple[str, int], monitor: Monitor) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.monitor = monitor
        self._slots = threading.BoundedSemaphore(MAX_REQUESTS)
        self._deadline_by_request: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, _HttpHandler)

    def cut_late(self, now: float) -> None:
        """Close the connections of requests that take too long. Their threads see it as the client's end."""
        with self._lock:
            late = [request for request, deadline in self._deadline_by_request.items() if deadline <= now]
            for request in late:
                del self._deadline_by_request[request]
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Start a thread, or close the connection where all are busy."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Answer one request under a deadline; runs in a thread."""
        assert isinstance(request, socket.socket)
        with self._lock:
            self._deadline_by_request[request] = time.monotonic() + REQUEST_TIMEOUT_S
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._deadline_by_request.pop(request, None)
            self._slots.release()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 socketserver's names
        """Log an error, except of a client that went away."""
        if isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            return
        _log.exception("monitor.request_failed", client=str(client_address))


class _HttpHandler(http.server.BaseHTTPRequestHandler):
    server: _HttpServer
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        """Answer a GET."""
        status, content_type, body = self.server.monitor.answer(self.path)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        try:
            self.end_headers()
            self.wfile.write(body)
        except (ConnectionError, TimeoutError):  # a client that goes away, or does not read, is no event
            self.close_connection = True

    def version_string(self) -> str:
        """The Server header, without the versions of Python and its library."""
        return "channelindex"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 http.server's names
        """Log nothing: scrapes come every few seconds."""
