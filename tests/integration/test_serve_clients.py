"""Real clients of CouchDB's changes feed follow an index over HTTP through whatever happens to it."""

import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import pytest

from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.history import Membership
from tests.support.node import Node, until
from tests.support.npm import CLIENTS, folder_with_packages
from tests.support.running import await_stable, cli, connect, indexed_channels
from tests.support.served import Service

N_VBUCKETS = 16
N_DOCUMENTS = 120
FOLLOW = {f"{name} {feed}" for name in ("follow", "cloudant-follow") for feed in ("continuous", "longpoll")}
IN_NODE = {"pouchdb", "nano", "nano spool", "cloudant", "eventsource"} | FOLLOW
IN_PYTHON = {"couchdb-python", "ibmcloudant", "aiocouch"}
SKIPPED = {"couchdb-python"} if sys.version_info >= (3, 13) else set()  # it needs the module cgi
CLIENT_NAMES = (IN_NODE | IN_PYTHON) - SKIPPED
WITHOUT_REMOVED = {"cloudant", "ibmcloudant"}
"""Their rows have only what CouchDB's rows have."""
Seen = dict[str, tuple[str, bool, bool]]
"""By document the last that a client was told of it: revision, removed, deleted."""


class Clients:
    """The programs that run the clients; `seen` is what each was told."""

    def __init__(self, service: Service, token: str, folder: Path) -> None:
        self.seen: dict[str, Seen] = defaultdict(dict)
        given = [service.url, service.db, token]
        packages = folder_with_packages()
        self._log = folder / "clients.log"
        self._processes = [
            self._start(["node", str(CLIENTS / "follow.mjs"), *given], packages),
            self._start([sys.executable, str(CLIENTS / "follow.py"), *given], folder),
        ]
        self._threads = [
            threading.Thread(target=self._read, args=(process.stdout,), daemon=True) for process in self._processes
        ]
        for thread in self._threads:
            thread.start()

    def _start(self, command: list[str], folder: Path) -> subprocess.Popen[str]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            row = json.loads(line)
            self.seen[row["client"]][row["id"]] = row["rev"], row["removed"], row["deleted"]

    def behind(self, expected: Membership, channel: str) -> dict[str, int]:
        """How many documents each client has yet to be told of, or was told something else of."""
        for process in self._processes:
            assert process.poll() is None, self._log.read_text()[-4000:]
        wanted = {document: tuple(what) for document, *what in expected[channel]}
        behind = {
            name: sum(1 for document in wanted if not self._knows(name, document, wanted)) for name in CLIENT_NAMES
        }
        more = {name: len(self.seen[name].keys() - wanted.keys()) for name in CLIENT_NAMES}
        return {name: behind[name] + more[name] for name in CLIENT_NAMES if behind[name] or more[name]}

    def _knows(self, name: str, document: str, wanted: Mapping[str, tuple[object, ...]]) -> bool:
        rev, removed, deleted = self.seen[name].get(document, ("", False, False))
        if name in WITHOUT_REMOVED:
            removed = bool(wanted[document][1])
        return (rev, removed, deleted) == wanted[document]

    def close(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)
        for thread in self._threads:
            thread.join(30)
        for process in self._processes:
            assert process.stdout is not None
            process.stdout.close()


def _revisions(generation: int, numbers: range) -> list[Revision]:
    """Of every document the *generation*; each third leaves the channel or is deleted with the last."""
    return [
        Revision(
            f"doc-{n:03}",
            f"{generation}-{generation:x}" + "f" * 31,
            ("b",) if generation == 4 and n % 3 == 1 else ("a",),
            deleted=generation == 4 and n % 3 == 2,
        )
        for n in numbers
    ]


@pytest.mark.slow
def test_every_client_ends_with_the_newest_of_its_channel(tmp_path: Path, redis_url: str) -> None:
    """Through a restart of the service, the death of both kinds of workers, and a rollback."""
    tokens = tmp_path / "tokens"
    token = cli("token", "new", "reader", "--channels", "a", "--file", tokens).stdout.strip()
    everything = range(N_DOCUMENTS)
    with (
        DevBucket(DevBucketConfig(n_vbuckets=N_VBUCKETS)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, coordination__ttl_s=1.0, index__partitions=8).start() as node,
        Service(
            tmp_path,
            redis_url,
            serve_tokens_file=tokens,
            source_url=bucket.url,
            source_user=bucket.user,
            source_password=bucket.password,
        ) as service,
        connect(bucket) as client,
    ):
        loader = Loader(client, InlineLayout())

        def told(clients: Clients) -> None:
            await_stable(redis_url, bucket)
            expected = indexed_channels(redis_url)
            try:
                until(lambda: not clients.behind(expected, "a"), "all clients to be told the newest")
            finally:
                print("behind:", clients.behind(expected, "a") or "nobody")

        loader.load(_revisions(1, everything))
        await_stable(redis_url, bucket)
        clients = Clients(service.start(), token, tmp_path)
        try:
            told(clients)
            assert service.stop() == 0
            loader.load(_revisions(2, everything))
            service.start()
            for role in ("feed_worker", "batch_writer"):
                for child in node.children(role):
                    child.kill()
            loader.load(_revisions(3, everything))
            now = service.changes(token=token, request_plus="true").json["results"]
            assert {row["changes"][0]["rev"].partition("-")[0] for row in now} == {"3"}, "all that the bucket has"
            told(clients)
            for vb in range(0, N_VBUCKETS, 2):
                bucket.failover(vb, lose=3)
            until(lambda: "feed.rolled_back" in node.log.read_text(), "the node to notice the rollback")
            loader.load(_revisions(4, everything))
            told(clients)
            assert {what[0].partition("-")[0] for what in clients.seen["nano"].values()} == {"4"}
        finally:
            clients.close()
