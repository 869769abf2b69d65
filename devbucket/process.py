"""A dev bucket in a child process of its own, with a handle to make it fail: for tests, benchmarks and the demo.

A child rather than a thread, so that the process that uses it may fork and does not share its interpreter's time.
"""

import asyncio
import contextlib
import gc
import inspect
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from channelindex.errors import ConfigInvalid, SourceUnavailable
from devbucket.admin import AdminServer
from devbucket.bucket import STATE_CHANGED, Bucket
from devbucket.controls import Controls
from devbucket.server import DevBucketServer
from devbucket.setup import DevBucketConfig
from devbucket.vbucket import State

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
        self.ports: list[int] = []
        self.tls_ports: list[int] = []
        self._load = load
        self._child: multiprocessing.process.BaseProcess | None = None
        self._control: Connection | None = None

    @property
    def port(self) -> int:
        """The first node's port."""
        return self.ports[0]

    @property
    def url(self) -> str:
        """The bucket's URL, as source.url takes it: by all its nodes."""
        return f"{self.cluster_url}/{self.config.bucket}"

    @property
    def cluster_url(self) -> str:
        """What the official SDK takes: the same without the bucket, which it is told later."""
        return "couchbase://" + ",".join(f"{self.config.host}:{port}" for port in self.ports)

    @property
    def tls_url(self) -> str:
        """The bucket's URL by its TLS ports; they are in `tls_ports`."""
        hosts = ",".join(f"{self.config.host}:{port}" for port in self.tls_ports)
        return f"couchbases://{hosts}/{self.config.bucket}"

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
        self.ports, self.tls_ports = self._receive()
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
        """Take a vbucket from its node or give it back; its streams end, clients that asked are sent the new map."""
        self._call("set_state", vb, state.name)

    def purge(self, vb: int) -> int:
        """Forget a vbucket's tombstones; returns the purge seqno."""
        return int(self._call("purge", vb))

    def settle(self, vb: int) -> None:
        """Let a vbucket be as after a clean restart: what it holds is streamed from disk."""
        self._call("settle", vb)

    def new_checkpoint(self, vb: int) -> None:
        """Close the open source checkpoint of a vbucket."""
        self._call("new_checkpoint", vb)

    def close_stream(self, vb: int, reason: int = STATE_CHANGED, name: str = "") -> int:
        """End all streams of a vbucket with a STREAM_END; returns how many there were."""
        return int(self._call("close_stream", vb, reason, name))

    def high_seqnos(self) -> list[int]:
        """The high seqno of each vbucket."""
        return list(self._call("high_seqnos"))

    def nodes(self) -> list[dict[str, Any]]:
        """Each node's ports, state, and number of vbuckets and connections."""
        return list(self._call("nodes"))

    def owners(self) -> list[int]:
        """The node of each vbucket."""
        return list(self._call("owners"))

    def move(self, vbs: Sequence[int], node: int) -> None:
        """Move vbuckets with their data and history to a node; their old node ends its streams."""
        self._call("move", list(vbs), node)

    def rebalance(self) -> None:
        """Spread the vbuckets evenly over the running nodes, and let these be the cluster."""
        self._call("rebalance")

    def stop_node(self, node: int) -> None:
        """Stop a node as SIGTERM does: it keeps what it has, and its place in the map."""
        self._call("stop_node", node)

    def crash_node(self, node: int, lose_last_n: int = 0) -> None:
        """Stop a node as kill -9 does: the last seqnos of each of its vbuckets are lost, new histories begin."""
        self._call("crash_node", node, lose_last_n)

    def start_node(self, node: int) -> None:
        """Start a node that was stopped, under the same ports: what it has comes from disk."""
        self._call("start_node", node)

    def failover_node(self, node: int, lose_last_n: int = 0) -> None:
        """Stop a node and give its vbuckets to their replicas, or to all others; the last seqnos of each are lost."""
        self._call("failover_node", node, lose_last_n)

    def drop_connections(self, name: str = "", node: int | None = None) -> int:
        """Cut connections: of which the DCP name begins with *name*, of one node, or all. Returns how many."""
        return int(self._call("drop_connections", name, node))

    def stall(self, *, on: bool, name: str = "", node: int | None = None) -> int:
        """Send no stream messages on the connections there are, or go on. Returns how many connections."""
        return int(self._call("stall", on, name, node))

    def connections(self, name: str = "", node: int | None = None) -> list[dict[str, Any]]:
        """Of each connection its peer, DCP name, user and open streams."""
        return list(self._call("connections", name, node))

    def half_open(self, name: str = "", node: int | None = None) -> int:
        """Let connections stand without a word, for ever: what comes is not read, nothing is sent."""
        return int(self._call("half_open", name, node))

    def delay(self, ms: int, name: str = "", node: int | None = None) -> int:
        """Send everything so many milliseconds late, on the connections there are; 0 ends it."""
        return int(self._call("delay", ms, name, node))

    def fragment(self, size: int, name: str = "", node: int | None = None) -> int:
        """Send everything in pieces of so many bytes, on the connections there are; 0 ends it."""
        return int(self._call("fragment", size, name, node))

    def cut_frame(self, name: str = "", node: int | None = None) -> int:
        """Send half of the next document's frame and hang up."""
        return int(self._call("cut_frame", name, node))

    def flip_byte(self, offset: int = -1, name: str = "", node: int | None = None) -> int:
        """Invert a byte of the next document's frame: 0 is its first, -1 its last."""
        return int(self._call("flip_byte", offset, name, node))

    def refuse_logins(self, *, on: bool) -> None:
        """Refuse every login, whatever the password, or be as before."""
        self._call("refuse_logins", on)

    def create_collection(self, path: str) -> None:
        """Create a collection (`scope.collection`) in a bucket that has some: every vbucket has an event of it."""
        self._call("create_collection", path)

    def warm_up(self, *, on: bool) -> None:
        """Be as just after a start: no client can select the bucket yet, or be done with it."""
        self._call("warm_up", on)

    def stall_disk(self, *, on: bool) -> None:
        """Write no more changes to the file, or go on: what `kill` loses. Durable writes are written all the same."""
        self._call("stall_disk", on)

    def stall_replicas(self, *, on: bool) -> None:
        """Let all replicas stand still, or follow again: what a failover of a node then loses."""
        self._call("stall_replicas", on)

    def drop_bucket(self) -> None:
        """Delete the bucket with all its data: its connections are cut, nobody can select it."""
        self._call("drop_bucket")

    def create_bucket(self) -> None:
        """Create the bucket anew after it was dropped: empty, with another UUID and other histories."""
        self._call("create_bucket")

    def kill(self) -> None:
        """End the child as kill -9 does. The next one, on the same file, lacks what was not written yet."""
        if self._child is not None:
            self._child.kill()
            self._child.join()

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


def _run(config: DevBucketConfig, load: Load | None, parents: Connection, control: Connection) -> None:
    """The child's main function: serve until the parent closes its end of the pipe or dies."""
    gc.freeze()  # what the parent forgot must not be destroyed here: an SDK would wait for threads it has only there
    parents.close()
    os.setsid()  # a Ctrl-C in the terminal is for the parent, which then stops us
    asyncio.run(_serve(config, load, control))


async def _serve(config: DevBucketConfig, load: Load | None, control: Connection) -> None:
    try:
        server = DevBucketServer(config)
    except ConfigInvalid as error:
        control.send(error)
        return
    controls = Controls(server)
    admin = AdminServer(controls, config.admin)
    try:
        if load is not None:
            load(server.bucket)
        await server.start()
        await admin.start()
        members = server.cluster.topology.members
        control.send(([member.port for member in members], [member.tls_port for member in members]))
        await _obey(control, controls)
    except ConfigInvalid as error:
        control.send(error)
    finally:
        admin.stop()
        server.stop()


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
            name, args = control.recv()
        except EOFError:
            name, args = STOP, ()
        if name == STOP:
            break
        control.send(await _outcome(controls, name, args))
    loop.remove_reader(control.fileno())


async def _outcome(controls: Controls, name: str, args: tuple[Any, ...]) -> Any:
    try:
        answer = getattr(controls, name)(*args)
        return await answer if inspect.isawaitable(answer) else answer
    except Exception as error:  # noqa: BLE001
        return error
