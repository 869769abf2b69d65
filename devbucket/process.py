"""A dev bucket as a process: this one, or a child with a handle to make it fail, for tests, benchmarks and the demo.

A child rather than a thread, so that the process that uses it may fork and does not share its interpreter's time.
"""

import asyncio
import contextlib
import gc
import inspect
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from channelindex import logs
from channelindex.errors import ConfigInvalid, SourceUnavailable
from devbucket.admin import AdminServer
from devbucket.bucket import Bucket
from devbucket.bucket_config import DevBucketConfig
from devbucket.controls import Controls
from devbucket.placement import address_of
from devbucket.server import DevBucketServer

STOP_TIMEOUT_S = 5.0
"""Time for a child to stop before it is killed: it only has to close sockets."""

STOP = "stop"

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end a child as its parent does."""

Load = Callable[[Bucket], None]

_log = logs.get("devbucket")


class DevBucket:
    """Runs a dev bucket while the context is open. Its child ends with this process, even if that is killed.

    All methods of `devbucket.controls.Controls` can be called on it; each returns when the server has done it.
    """

    def __init__(self, config: DevBucketConfig | None = None, load: Load | None = None) -> None:
        self.config = config or DevBucketConfig()
        self.user = self.config.user
        self.password = self.config.password
        self.ports: list[int] = []
        self.tls_ports: list[int] = []
        self._load = load
        self._child: multiprocessing.process.BaseProcess | None = None
        self._control: Connection | None = None

    @property
    def port(self) -> int:
        """Return the first node's port."""
        return self.ports[0]

    @property
    def url(self) -> str:
        """Return the bucket's URL, as source.url takes it: by all its nodes."""
        return f"{self.cluster_url}/{self.config.bucket}"

    @property
    def cluster_url(self) -> str:
        """Return what the official SDK takes: the same without the bucket, which it gets later."""
        return "couchbase://" + ",".join(address_of(self.config.host, port) for port in self.ports)

    @property
    def tls_url(self) -> str:
        """Return the bucket's URL by its TLS ports; they are in `tls_ports`."""
        hosts = ",".join(address_of(self.config.host, port) for port in self.tls_ports)
        return f"couchbases://{hosts}/{self.config.bucket}"

    def __enter__(self) -> Self:
        """Start the child; the server listens when this returns.

        Raises:
            ConfigInvalid: the server refused its configuration.
        """
        assert self._child is None, "one child at a time"
        context = multiprocessing.get_context("fork")
        self._control, theirs = context.Pipe()
        self._child = context.Process(
            target=_run_child, args=(self.config, self._load, self._control, theirs), daemon=True
        )
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # until the child has its own handlers
        try:
            self._child.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)
        theirs.close()
        self.ports, self.tls_ports = self._receive()
        assert len(self.ports) == len(self.tls_ports), "two ports of each node, or 0"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the child."""
        self.close()

    def close(self) -> None:
        """Stop the child; twice does no harm."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.send((STOP, (), {}))  # closing the pipe is not enough where a forked process has it too
            self._control.close()
            self._control = None
        if self._child is not None:
            self._child.join(STOP_TIMEOUT_S)
            if self._child.is_alive():
                self._child.kill()
                self._child.join()
            self._child = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method of `Controls`, to be called here and carried out in the child."""
        if name.startswith("_") or not hasattr(Controls, name):
            raise AttributeError(f"{type(self).__name__} has no {name!r}, and neither has Controls")

        def carry_out(*args: Any, **kwargs: Any) -> Any:
            return self._call(name, tuple(map(_picklable, args)), kwargs)

        return carry_out

    def kill(self) -> None:
        """End the child as kill -9 does. The next one, on the same file, lacks what was not written yet."""
        if self._child is not None:
            self._child.kill()
            self._child.join()

    def _call(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self._control is None:
            raise SourceUnavailable("the dev bucket is not running")
        self._control.send((name, args, kwargs))
        return self._receive()

    def _receive(self) -> Any:
        """Return the child's answer; an exception that it raised is raised here."""
        assert self._control is not None
        try:
            answer = self._control.recv()
        except EOFError as error:
            raise SourceUnavailable("the dev bucket's process has ended") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve(config: DevBucketConfig, ready: Callable[[str], None], load: Load | None = None) -> None:
    """Run a dev bucket in this process until SIGTERM or SIGINT: what `channelindex devbucket` does.

    *load* fills the bucket first; *ready* gets the URL.

    Raises:
        ConfigInvalid: the configuration cannot be served, or a port is taken.
    """

    async def until_signalled() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        async with _running(config, load) as server:
            ready(server.url)
            await stopped.wait()

    asyncio.run(until_signalled())
    _log.info("devbucket.stopped")


@contextlib.asynccontextmanager
async def _running(config: DevBucketConfig, load: Load | None) -> AsyncIterator[DevBucketServer]:
    """Serve while the context is open.

    Raises:
        ConfigInvalid: the configuration cannot be served, or a port is taken.
    """
    server = DevBucketServer(config)
    admin = AdminServer(Controls(server), config.admin)
    try:
        if load is not None:
            load(server.bucket)
        await server.start()
        await admin.start()
        yield server
    finally:
        admin.stop()
        server.stop()


def _run_child(config: DevBucketConfig, load: Load | None, parents: Connection, control: Connection) -> None:
    """Serve until the parent closes its end of the pipe or dies, or a signal: the child's main function."""
    gc.freeze()  # what the parent forgot must not be destroyed here: an SDK would wait for threads it has only there
    parents.close()
    os.setsid()  # a Ctrl-C in the terminal is for the parent, which then stops us

    async def until_asked() -> None:
        serving = asyncio.current_task()
        assert serving
        for number in _ENDING:
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        try:
            async with _running(config, load) as server:
                members = server.cluster.placement.members
                control.send(([member.port for member in members], [member.tls_port for member in members]))
                await _obey(control, Controls(server))
        except ConfigInvalid as error:
            control.send(error)

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(until_asked())


async def _obey(control: Connection, controls: Controls) -> None:
    """Carry out the parent's requests until it stops us; whatever one raises is the parent's to see."""
    waiting = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(control.fileno(), waiting.set)
    while True:
        await waiting.wait()
        waiting.clear()
        if not control.poll():
            continue  # the loop saw the request twice: before and while we took it
        try:
            name, args, kwargs = control.recv()
        except EOFError:
            name, args, kwargs = STOP, (), {}
        if name == STOP:
            break
        control.send(await _outcome(controls, name, args, kwargs))
    loop.remove_reader(control.fileno())


async def _outcome(controls: Controls, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    try:
        answer = getattr(controls, name)(*args, **kwargs)
        return await answer if inspect.isawaitable(answer) else answer
    except Exception as error:  # noqa: BLE001 - it is raised in the parent
        return error


def _picklable(argument: Any) -> Any:
    """Return *argument* as it can go to another process: what is iterated over only once as a list."""
    return list(argument) if isinstance(argument, Iterator | range) else argument
