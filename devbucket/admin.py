"""The admin interface: operations as JSON, one object a line, over a Unix socket or a loopback port.

A request is `{"do": "failover", "vb": 3, "lose": 2}`; its answer `{"answer": …}` or `{"error": "…"}`, in order.
"""

import asyncio
import inspect
import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from channelindex import logs
from channelindex.errors import ConfigInvalid, SourceUnavailable
from devbucket.controls import Controls
from devbucket.ctl import carry_out

TIMEOUT_S = 30.0
"""Time for an answer to a client: some operations touch every vbucket."""

MAX_LINE_BYTES = 1024 * 1024

_SOCKET_MODE = 0o600

_log = logs.get("devbucket")


class AdminServer:
    """Listens for operators. Stop before start and stop twice do no harm."""

    def __init__(self, controls: Controls, address: str) -> None:
        self.address = address
        self._controls = controls
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, unless the address is empty; it then has the port that was free if its port was 0.

        Raises:
            ConfigInvalid: the address cannot be listened on, or is not loopback.
        """
        if not self.address:
            return
        where = parse_address(self.address)
        try:
            if isinstance(where, Path):
                self._server = await asyncio.start_unix_server(
                    self._serve, sock=_owners_socket(where), limit=MAX_LINE_BYTES
                )
            else:
                self._server = await asyncio.start_server(self._serve, *where, limit=MAX_LINE_BYTES)
                self.address = f"{where[0]}:{self._server.sockets[0].getsockname()[1]}"
        except OSError as error:
            raise ConfigInvalid(f"cannot listen on {self.address}: {error.strerror}") from error
        _log.info("devbucket.admin", address=self.address)

    def stop(self) -> None:
        """Listen no longer, and leave no socket file."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        where = parse_address(self.address)
        if isinstance(where, Path):
            where.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(orjson.dumps(await self._answer(line), option=orjson.OPT_APPEND_NEWLINE))
                await writer.drain()
        except (OSError, ValueError):
            pass  # the operator is gone, or sent a line without end
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = orjson.loads(line)
            if not isinstance(request, dict) or not isinstance(request.get("do"), str):
                raise ConfigInvalid('a request is an object with a text "do"')
            answer = carry_out(self._controls, request.pop("do"), request)
            return {"answer": await answer if inspect.isawaitable(answer) else answer}
        except (ConfigInvalid, ValueError) as error:  # a line that is no JSON is a ValueError too
            return {"error": str(error)}


def _owners_socket(path: Path) -> socket.socket:
    """Return a socket at *path* that only its owner can connect to; one that a killed server left is replaced."""
    if path.is_socket():
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(_SOCKET_MODE)  # nobody can connect before it listens
    except OSError:
        listener.close()
        raise
    return listener


def ask(address: str, operation: str, arguments: Mapping[str, Any]) -> Any:
    """Return the answer of the dev bucket that has *address* as its admin interface.

    Raises:
        ConfigInvalid: the operation was refused.
        SourceUnavailable: nobody answers there.
    """
    request = orjson.dumps({"do": operation, **arguments}, option=orjson.OPT_APPEND_NEWLINE)
    where = parse_address(address)
    try:
        with socket.socket(socket.AF_UNIX if isinstance(where, Path) else socket.AF_INET) as link:
            link.settimeout(TIMEOUT_S)
            link.connect(str(where) if isinstance(where, Path) else where)
            link.sendall(request)
            with link.makefile("rb") as lines:
                line = lines.readline()
    except OSError as error:
        raise SourceUnavailable(f"no dev bucket answers at {address}: {error.strerror or error}") from error
    if not line:
        raise SourceUnavailable(f"the dev bucket at {address} hung up")
    reply = orjson.loads(line)
    if "error" in reply:
        raise ConfigInvalid(reply["error"])
    return reply.get("answer")


def parse_address(text: str) -> Path | tuple[str, int]:
    """Return a socket's path, which has a slash, or a loopback address and port; the address may be left out.

    Raises:
        ConfigInvalid: it is neither.
    """
    if "/" in text:
        return Path(text)
    host, _, port = text.rpartition(":")
    host = host or "127.0.0.1"
    try:
        loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback or not port.isdigit() or int(port) > 65535:
        raise ConfigInvalid(f"admin address {text!r} is neither a path with a slash nor a port of 127.0.0.1")
    return host, int(port)
