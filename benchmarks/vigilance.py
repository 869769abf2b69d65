"""What it costs to notice a store that lost something: a node that does beside one that does not, pair by pair.

    python -m benchmarks.vigilance [--store redis --store cluster] [--case c1000] [--documents 100000] [--pairs 8]

A is a node without the identity of servers, marks and moments (`benchmarks.careless`), B the product. Both of a pair
run at the same time, each with a bucket and a store of its own, so that all that the machine does besides meets both
alike. Counted is what comes after the first tenth of the documents is stable: starting is left out. CPU is that of the
node and of all servers of the store. A ratio is of the two of one pair, the median of the ratios is what to quote.

How large the batches are depends on who gets the processor when, and moves the CPU of a document by more than the
mechanism, whose cost is by the second: so the calls of an owner are also measured one by one, each as often as a busy
node makes it, and set against what the node uses in a second.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.console import Console

from benchmarks.cases import CASES, N_VBUCKETS, Case, documents
from benchmarks.compare import Run, table_of
from benchmarks.machine import write_results
from benchmarks.node import running_node
from channelindex.blocks import FORMAT_VERSION
from channelindex.errors import ChannelIndexError, StoreUnavailable
from channelindex.model import Checkpoint, IndexMeta
from channelindex.settings import IndexSettings
from channelindex.stores import open_reader
from channelindex.stores.base import IndexReader
from channelindex.stores.redis.owner import ASK_INTERVAL_S, HISTORY_INTERVAL_S, RedisOwner
from channelindex.stores.redis.servers import ask_histories, ask_servers
from channelindex.stores.redis.store_link import open_link
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket
from tests.support.redis_cluster import N_MASTERS, ClusterOfThree

CARELESS = "benchmarks.careless"
PRODUCT = "channelindex"
BEGUN_SHARE = 0.1
"""Of the documents, when counting begins."""
POLL_S = 0.02
DEADLINE_S = 300.0
FEED_WORKERS = 2
"""Of a node of default configuration; each makes the calls of an owner for its part of the partitions."""
ROUNDS = 100
META = IndexMeta(FORMAT_VERSION, N_VBUCKETS, 64, "bucket", "index")


class Store(NamedTuple):
    """Where an index is, and the processes of its servers."""

    url: str
    pids: Sequence[int]


@contextmanager
def one_redis() -> Iterator[Store]:
    """A private Redis."""
    with EmbeddedRedis() as server:
        yield Store(server.url, [server.pid])


@contextmanager
def three_masters() -> Iterator[Store]:
    """A private Redis Cluster."""
    with ClusterOfThree() as cluster:
        yield Store(cluster.url, [cluster.process(number).pid for number in range(N_MASTERS)])


STORES = {"redis": one_redis, "cluster": three_masters}


class Reading(NamedTuple):
    """What was indexed and used up to a moment."""

    at: float
    documents: int
    cpu_ns: int
    store_ns: int

    @classmethod
    def now(cls, documents: int, node: psutil.Process, store: Store) -> "Reading":
        """Read what is used now."""
        store_ns = _cpu_ns(store.pids)
        pids = [node.pid, *(child.pid for child in node.children())]
        return cls(time.perf_counter(), documents, _cpu_ns(pids) + store_ns, store_ns)

    def until(self, later: "Reading") -> Run:
        """Compute what a document cost between two readings."""
        n_documents = later.documents - self.documents
        return Run(
            n_documents / (later.at - self.at),
            (later.cpu_ns - self.cpu_ns) / n_documents / 1000,
            (later.store_ns - self.store_ns) / n_documents / 1000,
        )


def _cpu_ns(pids: Iterable[int]) -> int:
    """CPU time of all threads of processes, exactly: psutil's is in hundredths of a second."""
    files = [file for pid in pids for file in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(file.read_text().split()[0]) for file in files)


def measure(case: Case, n_documents: int, store_kind: str, module: str, both: threading.Barrier) -> Run:
    """Run a node of *module* once, from when *both* of the pair are ready."""
    with (
        tempfile.TemporaryDirectory() as folder,
        STORES[store_kind]() as store,
        DevBucket(load=lambda bucket: bucket.bulk_load(documents(case, n_documents))) as bucket,
    ):
        both.wait(DEADLINE_S)
        with (
            running_node(folder, store.url, bucket, module=module) as node,
            closing(open_reader(IndexSettings("channels", store.url))) as reader,
        ):
            begun = Reading.now(_await_stable(reader, int(n_documents * BEGUN_SHARE)), node, store)
            return begun.until(Reading.now(_await_stable(reader, n_documents), node, store))


def _await_stable(reader: IndexReader, n_documents: int) -> int:
    """Wait until so many documents are stable; how many are."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            stable = sum(reader.stable_view().stable)  # each document has one seqno
        except ChannelIndexError:
            stable = 0  # the node has not made the index yet
        if stable >= n_documents:
            return stable
        time.sleep(POLL_S)
    raise TimeoutError(f"{n_documents} documents were not stable after {DEADLINE_S:.0f} s")


def measure_pair(case: Case, n_documents: int, store_kind: str) -> tuple[Run, Run]:
    """Run both at the same time: without, and with."""
    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(measure, case, n_documents, store_kind, module, both) for module in (CARELESS, PRODUCT)]
        without, vigilant = (run.result() for run in runs)
    return without, vigilant


class Calls(NamedTuple):
    """CPU of single calls, caller and servers together, in µs: medians. `history` is 0 where no cluster is asked."""

    note: float
    ask: float
    history: float

    def ms_per_s(self, note_interval_s: float) -> float:
        """What a node pays in a second in which its stable clock moves all the time."""
        a_second = self.note / note_interval_s + self.ask / ASK_INTERVAL_S + self.history / HISTORY_INTERVAL_S
        return FEED_WORKERS * a_second / 1000


def measure_calls(store_kind: str) -> tuple[Calls, float]:
    """Measure what an owner of half of an index's partitions does from time to time, while all vbuckets move.

    Also returns what that is in ms a second.
    """
    partitions = range(META.n_partitions // FEED_WORKERS)
    used_ns: dict[str, list[int]] = {name: [] for name in Calls._fields}
    with (
        STORES[store_kind]() as store,
        open_link(store.url, StoreUnavailable) as link,
        closing(RedisOwner(store.url, "channels")) as owner,
    ):
        owner.create_or_check(META)
        epoch = owner.next_epoch()
        owner.begin_all({partition: {} for partition in partitions}, epoch, "bench")

        def cpu_ns(act: Callable[[], object]) -> int:
            before = _cpu_ns(store.pids) + time.thread_time_ns()
            act()
            return _cpu_ns(store.pids) + time.thread_time_ns() - before

        def measured(name: str, act: Callable[[], object]) -> None:
            used_ns[name].append(cpu_ns(act) - cpu_ns(lambda: None))  # less what it costs to measure

        for seqno in range(1, ROUNDS):
            owner.advance(epoch, _moved(partitions, seqno))
            measured("note", partial(owner.note_moments, epoch, partitions, time.time() + seqno))
            measured("ask", partial(ask_servers, link))
            measured("history", partial(ask_histories, link) if not link.spans_slots else lambda: None)
        calls = Calls(**{name: statistics.median(values) / 1000 for name, values in used_ns.items()})
        return calls, calls.ms_per_s(owner.note_interval_s)


def _moved(partitions: Iterable[int], seqno: int) -> dict[int, dict[int, Checkpoint]]:
    checkpoint = Checkpoint(1, seqno, seqno, seqno)
    return {partition: dict.fromkeys(META.vbuckets_of(partition), checkpoint) for partition in partitions}


def main() -> None:
    """Measure, print a table for each store, keep the figures in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vigilance", description=__doc__)
    parser.add_argument("--store", action="append", choices=STORES)
    parser.add_argument("--case", choices=[case.name for case in CASES], default="c1000")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=8)
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    (case,) = (case for case in CASES if case.name == args.case)
    found = {}
    for store in args.store or STORES:
        calls, ms_per_s = measure_calls(store)
        rounded = ", ".join(f"{name} {us:,.0f}" for name, us in calls._asdict().items())
        console.print(f"{store}: {ms_per_s:.1f} ms of CPU a second; calls in µs: {rounded}")
        pairs = [measure_pair(case, args.documents, store) for _ in range(args.pairs)]
        console.print(table_of(f"{store}, {args.case}: A without, B with", pairs))
        busy_ms_per_s = statistics.median(a.cpu_us * a.documents_per_s for a, _ in pairs) / 1000
        console.print(
            f"of {busy_ms_per_s:.0f} ms that the node and its store use in a second without: "
            f"{ms_per_s / busy_ms_per_s:.1%}"
        )
        runs = [{"without": a._asdict(), "with": b._asdict()} for a, b in pairs]
        found[store] = {"calls_us": calls._asdict(), "ms_per_s": ms_per_s, "pairs": runs}
    print(f"figures of every run: {write_results('vigilance', {'case': args.case, 'stores': found})}")


if __name__ == "__main__":
    main()
