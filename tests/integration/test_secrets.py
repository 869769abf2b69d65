"""A node and the commands with unmistakable secrets: nothing that others can read holds one of them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import redis

from devbucket.bucket_config import DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node, until
from tests.support.ports import free_port
from tests.support.running import await_stable, cli, connect
from tests.support.scrape import get

pytestmark = pytest.mark.real_start

REDIS_PASSWORD = "r3d1s-5ecret"
BUCKET_PASSWORD = "buck3t-5ecret"
WRONG_PASSWORD = "wr0ng-5ecret"
COMMON = "5ecret"
"""In each of them, in nothing else."""

COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("top", "--once"),
    ("nodes", "--json"),
    ("partitions",),
    ("events",),
    ("changes", "a"),
    ("verify",),
    ("quarantine", "list"),
    ("config", "show"),
    ("config", "show", "--json"),
    ("config", "check"),
    ("size", "--documents", "10", "--debug"),
)


@pytest.fixture
def secured() -> Iterator[EmbeddedRedis]:
    """A Redis whose one useful user has a password."""
    with EmbeddedRedis() as server:
        admin = redis.Redis(unix_socket_path=str(server.socket))
        admin.execute_command("ACL", "SETUSER", "node", "on", f">{REDIS_PASSWORD}", "allkeys", "allchannels", "+@all")
        yield server


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=16, password=BUCKET_PASSWORD)) as opened:
        yield opened


def url_of(server: EmbeddedRedis, password: str = REDIS_PASSWORD) -> str:
    return f"unix://node:{password}@{server.socket}"


def told_by_kernel(node: Node) -> str:
    """Command lines and names of all the node's processes, as any user of the machine sees them."""
    told = ""
    for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]:
        with suppress(OSError):
            told += Path(f"/proc/{process.pid}/cmdline").read_text() + Path(f"/proc/{process.pid}/comm").read_text()
    return told


def told_by_commands(config: Path) -> str:
    told = ""
    for command in COMMANDS:
        done = cli(*command, "--config", config)
        told += done.stdout + done.stderr
    return told


def test_a_working_node_tells_nobody_its_secrets(tmp_path: Path, secured: EmbeddedRedis, bucket: DevBucket) -> None:
    port = free_port()
    settings = {"log__level": "debug", "metrics__listen": f"127.0.0.1:{port}", "index__partitions": 8}
    with Node("n1", tmp_path, url_of(secured), bucket, coordination__ttl_s=1.0, **settings).start() as node:
        with connect(bucket) as client:
            Loader(client, InlineLayout()).load(Revision(f"doc-{number}", "1-a", ("a",)) for number in range(200))
        await_stable(url_of(secured), bucket)  # so that every worker has streamed: it would end where it is refused
        bucket.refuse_logins(on=True)
        bucket.drop_connections()
        secured_client = redis.Redis(unix_socket_path=str(secured.socket))
        secured_client.execute_command("ACL", "SETUSER", "node", "resetpass")
        secured_client.execute_command("CLIENT", "KILL", "USER", "node")
        until(lambda: "leases.trouble" in node.log.read_text(), "trouble with the leases")
        secured_client.execute_command("ACL", "SETUSER", "node", f">{REDIS_PASSWORD}")
        bucket.refuse_logins(on=False)
        until(lambda: get(port, "/metrics")[0] == 200, "the metrics")
        told = told_by_kernel(node) + told_by_commands(node.config) + get(port, "/metrics")[1]
    stored = repr([(key, secured_client.dump(key)) for key in secured_client.scan_iter()])
    assert "redis.sock" in told
    assert COMMON not in told
    assert COMMON not in node.log.read_text()
    assert COMMON not in stored


@pytest.mark.parametrize(
    "settings",
    [
        {"source__password": WRONG_PASSWORD},
        {"index__store": f"redis://node:{WRONG_PASSWORD}@127.0.0.1:1/0"},
        {"index__store": f"redis://node:{WRONG_PASSWORD}/x@127.0.0.1:1/0"},
        {"index__store": f"redis://node:with blank {WRONG_PASSWORD}@127.0.0.1:port"},
        {
            "index__store": f"rediss://node:{WRONG_PASSWORD}@127.0.0.1:1/0?ssl_certfile=/nowhere&x_password={WRONG_PASSWORD}"
        },
        {"index__store": f"redis+sentinel://node:{WRONG_PASSWORD}@127.0.0.1:1/s?sentinel_password={WRONG_PASSWORD}"},
        {"index__store": f"redis+cluster://node:{WRONG_PASSWORD}@127.0.0.1:1"},
        {"index__store": f"couchbase://user:{WRONG_PASSWORD}@127.0.0.1/b"},
        {"coordination__redis": f"redis://:{WRONG_PASSWORD}@127.0.0.1:1/0"},
        {"source__url": f"couchbase://user:{WRONG_PASSWORD}@127.0.0.1:1/b"},
        {"source__pasword": WRONG_PASSWORD},
        {"source__password_file": "/nowhere", "source__password": WRONG_PASSWORD},
    ],
    ids=" ".join,
)
def test_a_node_that_fails_tells_nobody_its_secrets(
    tmp_path: Path, secured: EmbeddedRedis, bucket: DevBucket, settings: dict[str, object]
) -> None:
    node = Node("n1", tmp_path, url_of(secured), bucket, log__level="debug", index__partitions=8, **settings)
    command = [sys.executable, "-m", "channelindex", "run", "--debug", "--config", str(node.config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=3)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate(timeout=60)
    shown = cli("config", "show", "--debug", "--config", node.config)
    checked = cli("config", "check", "--debug", "--json", "--config", node.config)
    told = output + shown.stdout + shown.stderr + checked.stdout + checked.stderr
    assert told
    assert COMMON not in told
