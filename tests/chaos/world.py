"""Whole nodes, two Redis, a bucket of three nodes, writers, readers: all that a fault can hit, and its healing."""

import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from channelindex import exits
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from devbucket import DevBucket, DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.sync_gateway.layouts import InlineLayout, Layout, XattrLayout
from tests.chaos.bucket_store import BucketStore
from tests.chaos.http_follower import Followed
from tests.chaos.jumping import JumpingNode
from tests.chaos.lost_key import LostKey
from tests.chaos.proxy import Link, Proxy
from tests.chaos.raw_layouts import RedisLayout
from tests.chaos.record import Record, Rollback
from tests.chaos.recorder import Recorder, StableClock
from tests.chaos.replicated import AddressStore, ClusterStore, ReplicatedStore, SentinelStore, Unfit
from tests.chaos.writer import KnownWriter
from tests.support.node import until

N_VBUCKETS = 32
N_PARTITIONS = 8
N_BUCKET_NODES = 3
NODES = ("n1", "n2", "n3")
FOLLOWED = ("*", "ch-000", "ch-001", "ch-002")
SLOWLY_FOLLOWED = "ch-003"
FOLLOWED_OVER_HTTP = (("*", "continuous"), ("ch-001", "continuous"), ("ch-002", "longpoll"))
TOLD_CHANNELS = (*FOLLOWED, SLOWLY_FOLLOWED)
WRITERS: tuple[tuple[str, Layout, int, float], ...] = (
    ("inline", InlineLayout(), 200, 60.0),
    ("xattr", XattrLayout(), 200, 60.0),
    ("once", XattrLayout(), 10_000, 40.0),
)
"""Name, layout, documents and revisions per second. Most documents of the last are written once: no later revision
makes good what is lost of them."""
OPERATOR_TIMEOUT_S = 10.0
OUT_OF_MEMORY = ("MemoryError", "Cannot allocate memory", "can't start new thread")
"""How a process says that it got no more memory."""
FATAL = frozenset((exits.INTERNAL, exits.CONFIG, exits.MISMATCH))
"""Exit codes that no fault explains. `AUTH` is none of them: a node that starts while logins are refused has it."""
RECOVERY_DEADLINE_S = 180.0
"""The longest that anything here may need once all faults are healed: a client's longest pause, a TTL, a start."""
REPAIRED = 1_000_000_000
"""Where `repair` makes a directory, its generation begins at the time, in seconds."""
SETTLE_DEADLINE_S = 10.0
"""How long a fault that no other one may meet waits for nodes that others have stopped."""


class RedisPart:
    """A redis-server in a folder that outlives it. With *save* it has on disk whatever it acknowledged."""

    def __init__(self, folder: Path, *, save: bool) -> None:
        folder.mkdir()
        self.folder = folder
        self._save = save
        self.limited = False
        """Whether it may have been told to take no more memory."""
        self.settings: dict[str, object] = {}
        """What nodes need to know besides the URL."""
        self._server = self._started()

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self._server.socket

    @property
    def url(self) -> str:
        """Where it listens, as a URL."""
        return self._server.url

    @property
    def process(self) -> psutil.Process:
        """The server."""
        return psutil.Process(self._server.pid)

    def client(self) -> redis.Redis:
        """A client of an operator, who does not wait: there are faults to heal."""
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=1.0, retry=Retry(NoBackoff(), 0))

    def kill(self) -> None:
        """SIGKILL, and start it again."""
        self._server.kill()
        self._server.close()
        self._server = self._started()

    def revive(self) -> None:
        """Start it again if it has ended by itself, and give it memory: it could not be told so while it was away."""
        if not self._server.running:
            self._server.close()
            self._server = self._started()
        self.lift_limit()

    def lift_limit(self) -> None:
        """Give it memory, if it can be told now."""
        if self.limited:
            with suppress(redis.RedisError), self.client() as client:
                client.config_set("maxmemory", 0)
                self.limited = False

    def close(self) -> None:
        """End it."""
        self._server.close()

    def _started(self) -> EmbeddedRedis:
        server = EmbeddedRedis(self.folder, save=self._save)
        if self._save:
            with redis.Redis(unix_socket_path=str(server.socket)) as client:
                until(lambda: _answers(client), "Redis to have read its file")
                client.config_set("appendfsync", "always")
        return server


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.BusyLoadingError:
        return False


class World:
    """Everything, running, while the context is open."""

    def __init__(self, folder: Path, store: str = "redis") -> None:
        self._store_kind = store
        self.record = Record()
        self.folder = folder
        self.nodes: dict[str, JumpingNode] = {}
        self.store_links: dict[str, Link] = {}
        self.leases_links: dict[str, Link] = {}
        self.writers: list[KnownWriter] = []
        self.drained: set[str] = set()
        self.lost_key: LostKey | None = None
        """What the store has lost and the product has to name, until an operator has repaired it."""
        self._has_lost_keys = False
        self._held = ExitStack()
        self._ends: list[tuple[str, int]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        self.bucket = stack.enter_context(DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS, n_nodes=N_BUCKET_NODES)))
        proxy = stack.enter_context(Proxy())
        self.store = self._new_store(proxy)
        stack.callback(self.store.close)
        self.leases = RedisPart(self.folder / "leases", save=False)
        stack.callback(self.leases.close)
        for number, name in enumerate(NODES):
            self._add_node(stack, proxy, name, number)
        self.operator = JumpingNode(
            "operator",
            self.folder,
            self.store.url,
            self.bucket,
            coordination__redis=self.leases.url,
            index__partitions=N_PARTITIONS,
            **self.store.settings,
        )
        self.readers_link = self._new_link(proxy)
        self._clock = StableClock(self.store.url)
        stack.callback(self._clock.close)
        for node in self.nodes.values():
            node.start()
        until(self._clock.read, "the index to be there")
        if self._store_kind == "cluster":
            self._await_moments([set()] * N_PARTITIONS)
        self._recorder = Recorder(
            self.readers_link.url if self.readers_link else self.store.url,
            waits_for_repair=lambda: self.lost_key is not None,
        )
        for channel in FOLLOWED:
            self._recorder.follow(channel)
        self._recorder.follow(SLOWLY_FOLLOWED, pause_s=2.0)
        self._serve(stack)
        self._recorder.start()
        for name, layout, n_documents, per_second in WRITERS:
            writer = KnownWriter(self.bucket, name, layout, n_documents, per_second)
            self.writers.append(writer)
            writer.start()

    def _new_store(self, proxy: Proxy) -> RedisPart | ReplicatedStore | BucketStore:
        if self._store_kind == "redis":
            return RedisPart(self.folder / "store", save=True)
        if self._store_kind == "couchbase":
            return BucketStore()
        if self._store_kind == "address":
            return AddressStore(proxy)
        return ClusterStore() if self._store_kind == "cluster" else SentinelStore()

    def _serve(self, stack: ExitStack) -> None:
        """Have some readers follow over HTTP, by a service that faults may kill."""
        url = self.readers_link.url if self.readers_link else self.store.url
        followed = Followed.of(self.folder, url, self.store.settings)
        self.service = stack.enter_context(followed.service)
        for channel, feed in FOLLOWED_OVER_HTTP:
            self._recorder.follow_over_http(followed, channel, feed)
        self.service.start()

    def hold_store(self) -> None:
        """Keep other faults from the store until the index has recovered, and can tell where it was complete.

        What hit the store before has to be over for the nodes, too: an owner looks at its servers each half second, and
        notes moments each two. Between two of them it would have noticed.

        Raises:
            Unfit: another one has it, or the nodes note nothing.
        """
        if isinstance(self.store, ReplicatedStore):
            self._held.enter_context(self.store.taken())
            for _ in range(2):
                try:
                    self._await_moments(self._moments(), SETTLE_DEADLINE_S)
                except AssertionError as error:
                    raise Unfit from error
            self._held.callback(self._await_moments, self._moments())

    def _moments(self) -> list[set[bytes]]:
        with closing(RedisLayout(self.store.url, "channels", OPERATOR_TIMEOUT_S)) as layout:
            return [layout.moments(partition) for partition in range(N_PARTITIONS)]

    def _await_moments(self, known: Sequence[set[bytes]], deadline_s: float = RECOVERY_DEADLINE_S) -> None:
        """Wait until each partition has a moment beyond *known*: who loses a master before is asked for a rebuild."""
        until(lambda: all(map(set.__sub__, self._moments(), known)), "a moment of each partition", deadline_s)

    @property
    def single_store(self) -> RedisPart:
        """The store, where it is one Redis."""
        assert isinstance(self.store, RedisPart)
        return self.store

    def _new_link(self, proxy: Proxy) -> Link | None:
        """A new link to the store; None for servers that tell each other's addresses: who has one finds all."""
        if isinstance(self.store, AddressStore):
            return self.store.new_link()
        return proxy.link(self.store.socket) if isinstance(self.store, RedisPart) else None

    def _store_url(self, proxy: Proxy, name: str) -> str:
        """Where node *name* finds the store: by a link of its own, where there can be one."""
        link = self._new_link(proxy)
        if link is None:
            return self.store.url
        self.store_links[name] = link
        return link.url

    def _add_node(self, stack: ExitStack, proxy: Proxy, name: str, number: int) -> None:
        store_url = self._store_url(proxy, name)
        self.leases_links[name] = proxy.link(self.leases.socket)
        node = JumpingNode(
            name,
            self.folder,
            store_url,
            self.bucket,
            coordination__redis=self.leases_links[name].url,
            coordination__ttl_s=2.0,
            index__partitions=N_PARTITIONS,
            index__block_bytes=4096,
            workers__feed_workers=1 + number % 2,
            workers__batch_writers=1 + number // 2,
            workers__heartbeat_timeout_s=6.0,
            workers__drain_timeout_s=5.0,
            compaction__min_lag_s=2.0,
            compaction__dead_retention_s=5.0,
            compaction__grace_s=5.0,
            compaction__interval_s=0.5,
            **self.store.settings,
        )
        self.nodes[name] = stack.enter_context(node)

    # -- what faults need

    def node(self, rnd: random.Random) -> JumpingNode:
        """Any node, running or not."""
        return self.nodes[rnd.choice(NODES)]

    def child(self, rnd: random.Random, role: str) -> psutil.Process | None:
        """A live process of *role* on any node."""
        found = [child for node in self.nodes.values() if node.running for child in node.children(role)]
        return rnd.choice(sorted(found, key=lambda child: child.pid)) if found else None

    def operate(self, *arguments: object) -> int:
        """Run `channelindex`, as an operator who does not wait; its exit code."""
        words = [str(argument) for argument in arguments]
        command = [sys.executable, "-m", "channelindex", *words, "--no-wait", "--config", str(self.operator.config)]
        try:
            done = subprocess.run(command, check=False, capture_output=True, timeout=OPERATOR_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return exits.INTERRUPTED
        return done.returncode

    def unexpected_ends(self) -> list[str]:
        """Ends of nodes and of their processes that no fault explains."""
        nodes = [f"node {name} ended with exit code {code}" for name, code in self._ends if code in FATAL]
        return nodes + [line for line in self._log_lines() if _tells_a_crash(line)]

    def _log_lines(self) -> Iterator[str]:
        return (line for node in self.nodes.values() for line in node.log.read_text().splitlines())

    @contextmanager
    def losing(self, vbs: Iterable[int]) -> Iterator[None]:
        """In here the bucket may be made to lose the newest seqnos of *vbs*; afterwards it is known what it lost."""
        vbs = tuple(vbs)
        with ExitStack() as stack:
            for writer in self.writers:
                stack.enter_context(writer.paused())
            begun = time.monotonic()
            yield
            high_seqnos = self.bucket.high_seqnos()
            kept = tuple(high_seqnos[vb] for vb in vbs)
            rollback = Rollback(begun, time.monotonic(), vbs, kept)
            is_lost = any(not each.kept and not each.returns for each in self._rollbacks_to_follow())
            self.record.rollbacks += [rollback, rollback.once_more(rollback.ended)] if is_lost else [rollback]
            for writer in self.writers:
                writer.find_what_was_taken_back(vbs)

    def note_loss(self) -> None:
        """The store may lose the newest of what it has acknowledged.

        That sends index and readers back twice: with the store, and once more by the epoch that begins where the index
        was surely complete. A rollback of the bucket in the same episode is followed once more by a store that has lost
        that it was.
        """
        now = time.monotonic()
        again = [
            rollback.once_more(now) for rollback in self._rollbacks_to_follow() if rollback.kept and not rollback.again
        ]
        self.record.rollbacks += [Rollback(now, now, tuple(range(N_VBUCKETS)), ())] * 2 + again

    def _rollbacks_to_follow(self) -> list[Rollback]:
        """Those of this episode."""
        return [rollback for rollback in self.record.rollbacks if rollback.followed == math.inf]

    def note_return(self) -> None:
        """The store is handed over and loses nothing; the index may go back a little, and readers with it."""
        now = time.monotonic()
        self.record.rollbacks += [Rollback(now, now, tuple(range(N_VBUCKETS)), (), returns=True)] * 2

    # -- healing

    def start(self, node: JumpingNode) -> None:
        """Start a node that has ended, unless it was started since."""
        if not node.running:
            self._ends.append((node.name, node.wait()))
            node.start()

    def revive(self) -> None:
        """Start whatever has ended, as a service manager would."""
        self.store.revive()
        self.leases.revive()
        if not self.service.running:  # it ends where the store is away when it starts
            self.service.launch()
        for node in self.nodes.values():
            self.start(node)

    def await_recovery(self) -> float:
        """Wait until the index has all that the bucket has now, and nothing beyond; the seconds that took."""
        begun = time.monotonic()
        high_seqnos = self.bucket.high_seqnos()
        self._clock.close()  # a master that was replaced while it hung serves its connections until it is told so
        if self.lost_key is not None:
            self._has_lost_keys = True
            self.lost_key.await_repair(self.store.url, self.operator.config, self.revive)

        def complete() -> bool:
            assert not self._damage(), "what is damaged does not become complete"
            self.revive()
            self.drained -= {name for name in self.drained if self.operate("undrain", name) == 0}
            stable = self._clock.read()
            if stable is None or any(stable[vb] < high for vb, high in enumerate(high_seqnos)):
                return False
            return all(stable[vb] <= high for vb, high in enumerate(self.bucket.high_seqnos()))

        until(complete, "the index to be complete again", RECOVERY_DEADLINE_S)
        if self.lost_key is not None:
            self.lost_key.await_refill(self.operator.config, self.revive)
            self.lost_key = None
        self._held.close()
        ended = time.monotonic()
        rollbacks = self.record.rollbacks
        rollbacks[:] = [rollback._replace(followed=min(rollback.followed, ended)) for rollback in rollbacks]
        return ended - begun

    def _damage(self) -> list[str]:
        """The log lines by which nodes tell that stored bytes are lost: where one Redis keeps all, no fault excuses it.

        Another store may lose its newest writes, and a node that finds a gap then makes good for it.
        """
        if self._has_lost_keys or not isinstance(self.store, RedisPart):
            return []
        return [line for line in self._log_lines() if "event=child.failed " in line and f"code={exits.CORRUPT}" in line]

    def come_to_rest(self) -> None:
        """No more faults: write what readers need to converge, and wait until the index and its readers are done."""
        with ExitStack() as stack:
            stack.callback(self._recorder.finish, self.record)
            for writer in self.writers:
                stack.callback(writer.finish, self.record)
            for writer in self.writers:
                writer.heal()
            self.await_recovery()

    def n_events(self) -> int:
        """How many revisions the bucket took."""
        return sum(writer.n_written for writer in self.writers)

    def n_switches(self) -> int:
        """Times that a compactor switched a channel to what it wrote, but for those that were repaired."""
        settings = IndexSettings(store=self.store.url)
        if isinstance(self.store, BucketStore):
            settings = replace(settings, user=self.store.bucket.user, password=self.store.bucket.password)
        with closing(open_reader(settings)) as reader:
            states = reader.channel_states(list(reader.channels()))
        generations = [state.compacted.generation for state in states if state]
        return sum(generation for generation in generations if generation < REPAIRED)

    def n_lost_tails(self) -> int:
        """How many times a replica took the place of a master of the store without its newest writes."""
        return self.store.n_lost_tails if isinstance(self.store, ReplicatedStore) else 0


def _tells_a_crash(line: str) -> bool:
    """Whether a line of a node's log tells of a fault of the program, other than that it got no memory."""
    failed = "event=child.failed " in line and f"code={exits.INTERNAL}" in line
    return (failed or "event=child.crashed " in line) and not any(word in line for word in OUT_OF_MEMORY)


def send(process: psutil.Process | None, signum: signal.Signals) -> None:
    """Signal a process that may have ended."""
    if process is not None:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signum)


def descendants(pid: int) -> list[psutil.Process]:
    """A process and its children."""
    with suppress(psutil.NoSuchProcess):
        return [psutil.Process(pid), *psutil.Process(pid).children()]
    return []
