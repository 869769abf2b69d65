"""A dev bucket in a child process of its own, with a handle to make it fail: for tests, benchmarks and the demo.

A child rather than a thread, so that the process that uses it may fork and does not share its interpreter's time.
"""

import asyncio
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from channelindex.devbucket.bucket import STATE_CHANGED, Bucket
from channelindex.devbucket.server import DevBucketConfig, DevBucketServer
from channelindex.devbucket.vbucket import State
from channelindex.errors import ConfigInvalid, SourceUnavailable

STOP_TIMEOUT_S = 5.0
"""How long a child may take to stop before it is killed: it only has to close sockets."""

STOP = "stop"

Load = Callable[[Bucket], None]


class DevBucket:
    """Runs a dev bucket while the context is open. Its child ends with this process, even if that is killed.

    Every control method returns when the server has done it.
    """

    def __init__(self, config: DevBucketConfig | None = None, load: Load | None = None) -> None:
        self.config = config or DevBucketConfig()
        self.user = self.config.user
        self.password = self.config.password
        self.port = 0
        self._load = load
        self._child: multiprocessing.process.BaseProcess | None = None
        self._control: Connection | None = None

    @property
    def url(self) -> str:
        """The bucket's URL, as source.url takes it."""
        return f"couchbase://{self.config.host}:{self.port}/{self.config.bucket}"

    @property
    def cluster_url(self) -> str:
        """What the official SDK takes: the same without the bucket, which it is told later."""
        return f"couchbase://{self.config.host}:{self.port}"

    def __enter__(self) -> Self:
        """Start the child; the server listens when this returns.

        Raises:
            ConfigInvalid: the server refused its configuration.
        """
        context = multiprocessing.get_context("fork")
        self._control, theirs = context.Pipe()
        self._child = context.Process(target=_run, args=(self.config, self._load, self._control, theirs), daemon=True)
        self._child.start()
        theirs.close()
        self.port = self._receive()
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
                self._control.send((STOP, ()))  # closing the pipe is not enough where a forked process has it too
            self._control.close()
            self._control = None
        if self._child is not None:
            self._child.join(STOP_TIMEOUT_S)
            if self._child.is_alive():
                self._child.kill()
                self._child.join()
            self._child = None

    def bulk_load(self, documents: Iterable[tuple[int, int, bytes, bytes]]) -> None:
        """Store documents (vbucket, seqno, key, value); per vbucket the seqnos rise above those that are there."""
        self._call("bulk_load", list(documents))

    def failover(self, vb: int, lose_last_n: int = 0) -> None:
        """Lose the last seqnos of a vbucket and begin a new history; its streams end."""
        self._call("failover", vb, lose_last_n)

    def set_vbucket_state(self, vb: int, state: State) -> None:
        """Move a vbucket away or back; its streams end, clients that asked for it are sent the new map."""
        self._call("set_vbucket_state", vb, state)

    def purge(self, vb: int) -> int:
        """Forget a vbucket's tombstones; returns the purge seqno."""
        return int(self._call("purge", vb))

    def settle(self, vb: int) -> None:
        """Let a vbucket be as after a clean restart: what it holds is streamed from disk."""
        self._call("settle", vb)

    def new_checkpoint(self, vb: int) -> None:
        """Close the open source checkpoint of a vbucket."""
        self._call("new_checkpoint", vb)

    def close_stream(self, vb: int, reason: int = STATE_CHANGED) -> int:
        """End all streams of a vbucket with a STREAM_END; returns how many there were."""
        return int(self._call("close_stream", vb, reason))

    def drop_connections(self) -> None:
        """Cut all connections."""
        self._call("drop_connections")

    def stall(self, *, on: bool) -> None:
        """Send no stream messages on the connections there are, or go on."""
        self._call("stall", on)

    def high_seqnos(self) -> list[int]:
        """The high seqno of each vbucket."""
        return list(self._call("high_seqnos"))

    def _call(self, name: str, *args: Any) -> Any:
        if self._control is None:
            raise SourceUnavailable("the dev bucket is not running")
        self._control.send((name, args))
        return self._receive()

    def _receive(self) -> Any:
        """The child's answer; an exception that it raised is raised here."""
        assert self._control is not None
        try:
            answer = self._control.recv()
        except EOFError as error:
            raise SourceUnavailable("the dev bucket's process has ended") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Controls:
    """What the parent may ask of the server, by name."""

    def __init__(self, server: DevBucketServer) -> None:
        self._server = server
        self._bucket = server.bucket
        self.bulk_load = self._bucket.bulk_load
        self.failover = self._bucket.failover
        self.set_vbucket_state = self._bucket.set_vbucket_state
        self.drop_connections = server.drop_connections
        self.close_stream = server.end_stream

    def purge(self, vb: int) -> int:
        return self._bucket.vbuckets[vb].purge()

    def settle(self, vb: int) -> None:
        self._bucket.vbuckets[vb].settle()

    def new_checkpoint(self, vb: int) -> None:
        self._bucket.vbuckets[vb].new_checkpoint()

    def stall(self, on: bool) -> None:
        self._server.stall(on=on)

    def high_seqnos(self) -> list[int]:
        return [vbucket.high_seqno for vbucket in self._bucket.vbuckets]


def _run(config: DevBucketConfig, load: Load | None, parents: Connection, control: Connection) -> None:
    """The child's main function: serve until the parent closes its end of the pipe or dies."""
    parents.close()
    os.setsid()  # a Ctrl-C in the terminal is for the parent, which then stops us
    asyncio.run(_serve(config, load, control))


async def _serve(config: DevBucketConfig, load: Load | None, control: Connection) -> None:
    try:
        server = DevBucketServer(config)
        if load is not None:
            load(server.bucket)
        await server.start()
    except ConfigInvalid as error:
        control.send(error)
        return
    control.send(server.port)
    stopped = asyncio.Event()
    controls = _Controls(server)
    asyncio.get_running_loop().add_reader(control.fileno(), _obey, control, controls, stopped)
    await stopped.wait()
    asyncio.get_running_loop().remove_reader(control.fileno())
    await server.stop()


def _obey(control: Connection, controls: _Controls, stopped: asyncio.Event) -> None:
    """Carry out one request of the parent; whatever it raises is the parent's to see."""
    try:
        name, args = control.recv()
    except EOFError:
        name, args = STOP, ()
    if name == STOP:
        stopped.set()
        return
    try:
        answer = getattr(controls, name)(*args)
    except Exception as error:  # noqa: BLE001
        answer = error
    control.send(answer)
