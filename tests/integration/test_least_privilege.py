"""The accounts that docs/security.md recommends suffice, and do not suffice for more."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from channelindex import exits
from channelindex.blocks import FORMAT_VERSION
from channelindex.errors import AuthenticationFailed
from channelindex.model import IndexMeta
from channelindex.settings import IndexSettings
from channelindex.stores import open_owner, open_reader, open_writer
from channelindex.stores.base import ChannelAppend, Quarantined
from devbucket.accounts import Account
from devbucket.bucket_config import DevBucketConfig
from devbucket.embedded_redis import EmbeddedRedis
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support.node import Node, until
from tests.support.running import await_stable, cli, connect
from tests.support.unforgiving import UnforgivingNode

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "security.md"
INDEX = "orders"
PASSWORDS = {"ci-node": "node-secret", "ci-reader": "reader-secret", "ci-operator": "operator-secret"}
N_DOCUMENTS = 30
REFUSAL = "(?i)no permissions|can't run this command|can't access|DEBUG command not allowed"
"""What servers of different versions say. From 7.0 on, DEBUG is off before anybody's rights are looked at."""


class Accounts:
    """A Redis with the users of the document, and what each says to it."""

    def __init__(self, server: EmbeddedRedis) -> None:
        self._server = server
        self.admin = redis.Redis(unix_socket_path=str(server.socket), decode_responses=True)
        (rules,) = re.findall(r"```acl\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
        for rule in rules.replace("\\\n", " ").splitlines():
            word, user, *rest = rule.split()
            assert word == "user"
            self.admin.execute_command(
                "ACL", "SETUSER", user, *(each.replace("PASSWORD", PASSWORDS[user]) for each in rest)
            )

    def url(self, user: str) -> str:
        return f"unix://{user}:{PASSWORDS[user]}@{self._server.socket}"

    def client(self, user: str) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self._server.socket), username=user, password=PASSWORDS[user])

    def refused(self) -> list[str]:
        """What was refused to whom so far."""
        return [f"{entry['username']}: {entry['object']}" for entry in self.admin.acl_log(128)]


@pytest.fixture
def accounts() -> Iterator[Accounts]:
    """The users. What a rule may name differs among versions of the server: `make test-servers` tries each."""
    with EmbeddedRedis() as server:
        yield Accounts(server)


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    config = DevBucketConfig(
        n_vbuckets=16,
        more_accounts=(
            Account("ci-source", "source-secret", frozenset({"default"}), may_write=False),
            Account("no-stream", "x", frozenset({"default"}), may_stream=False),
            Account("elsewhere", "x", frozenset({"another"})),
        ),
    )
    with DevBucket(config) as opened, connect(opened) as client:
        revisions = [Revision(f"doc-{number}", f"1-{'a' * 32}", ("a",)) for number in range(N_DOCUMENTS)]
        Loader(client, InlineLayout()).load(revisions)
        yield opened


@pytest.fixture
def node(tmp_path: Path, accounts: Accounts, bucket: DevBucket) -> Iterator[Node]:
    settings = {
        "source__user": "ci-source",
        "source__password": "source-secret",
        "index__name": INDEX,
        "index__partitions": 8,
        "coordination__ttl_s": 1.0,
    }
    with Node("n1", tmp_path, accounts.url("ci-node"), bucket, **settings).start() as opened:
        yield opened


def as_user(accounts: Accounts, user: str, *command: object) -> tuple[int, str]:
    settings = ("--set", f"index.store={accounts.url(user)}", "--set", f"index.name={INDEX}")
    done = cli(*command, *settings)
    return done.returncode, done.stdout + done.stderr


def test_node_reader_and_operator_do_their_work_and_are_refused_nothing(
    node: Node, accounts: Accounts, bucket: DevBucket
) -> None:
    def indexed(user: str) -> int:
        code, text = as_user(accounts, user, "changes", "a", "--json")
        return text.count('"id"') if code == exits.OK else 0

    until(lambda: indexed("ci-reader") == N_DOCUMENTS, "the reader to be told all documents")
    for command in (
        ("status",),
        ("nodes",),
        ("partitions",),
        ("events",),
        ("top", "--once"),
        ("inspect", "clock", "a"),
        ("quarantine", "list"),
    ):
        code, text = as_user(accounts, "ci-reader", *command)
        assert code == exits.OK, text
    for order in (
        ("drain", "n1", "--no-wait"),
        ("undrain", "n1"),
        ("rebalance",),
        ("rewind", "--partition", "1", "--to", "BEGINNING", "--yes"),
        ("compact", "--now"),
        ("rebuild", "--yes"),
        ("quarantine", "retry", "--all", "--yes"),
    ):
        code, text = as_user(accounts, "ci-operator", *order)
        assert code == exits.OK, f"{order}: {text}"
    tuned = cli("tune", "--config", node.config)
    assert tuned.returncode == exits.OK, tuned.stderr
    until(lambda: indexed("ci-reader") == N_DOCUMENTS, "all documents after the rebuild")
    assert node.drain() == exits.OK
    assert accounts.refused() == []


def test_a_reader_changes_nothing(accounts: Accounts) -> None:
    make_index(accounts, "ci-node")
    settings = IndexSettings(INDEX, accounts.url("ci-reader"))
    with closing(open_owner(settings)) as owner, pytest.raises(AuthenticationFailed, match="rights"):
        owner.next_epoch()
    with closing(open_writer(settings)) as writer, pytest.raises(AuthenticationFailed):
        writer.write([ChannelAppend("a", "g", 1, b"")])
    with closing(open_owner(settings)) as owner, pytest.raises(AuthenticationFailed):
        owner.quarantine([Quarantined(0, 1, b"k", "why", 1.0)])
    code, text = as_user(accounts, "ci-reader", "rebuild", "--yes")
    assert code == exits.AUTH, text
    drain = ("EVAL", "return redis.call('HSET', KEYS[1], 'n1', '1')", 1, f"ci:{INDEX}:{{coordination}}:drained")
    with closing(accounts.client("ci-reader")) as client, pytest.raises(redis.ResponseError, match=REFUSAL):
        client.execute_command(*drain)


@pytest.mark.parametrize("user", ["ci-node", "ci-operator"])
def test_who_writes_begins_channels_and_the_next_block_where_one_is_full(accounts: Accounts, user: str) -> None:
    """An operator does so with `repair`."""
    make_index(accounts, "ci-node")
    settings = IndexSettings(INDEX, accounts.url(user), block_bytes=1)
    with closing(open_writer(settings)) as writer, closing(open_reader(settings)) as reader:
        for _ in range(2):
            writer.write([ChannelAppend("a", "g", 1, b"")])
        (state,) = reader.channel_states(["a"])
        assert state is not None
        assert state.active_by_group == {"g": 1}
    assert accounts.refused() == []


def test_a_reader_learns_from_redis_what_has_changed(accounts: Accounts) -> None:
    make_index(accounts, "ci-node")
    with closing(open_reader(IndexSettings(INDEX, accounts.url("ci-reader")))) as reader:
        watch = reader.watch()
        assert watch is not None
        with closing(watch):
            assert watch.changed(0) == set()
    assert accounts.refused() == []


def make_index(accounts: Accounts, user: str) -> None:
    with closing(open_owner(IndexSettings(INDEX, accounts.url(user)))) as owner:
        owner.create_or_check(IndexMeta(FORMAT_VERSION, 16, 8, "source", "index"))


BEYOND_THE_INDEX: tuple[tuple[object, ...], ...] = (
    ("GET", "ci:invoices:{i}:meta"),
    ("SET", "ci:invoices:{i}:meta", "x"),
    ("GET", "session:1"),
    ("EVAL", "return redis.call('GET', 'session:1')", 0),
    ("EVAL", "return redis.call('FLUSHALL')", 0),
    ("SUBSCRIBE", "ci:invoices:{i}:stable"),
    ("PUBLISH", "ci:invoices:{i}:stable", "1"),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("ACL", "LIST"),
    ("MODULE", "LIST"),
    ("DEBUG", "SLEEP", "0"),
    ("SHUTDOWN",),
    ("MONITOR",),
    ("CLIENT", "LIST"),
    ("REPLICAOF", "NO", "ONE"),
    ("SCRIPT", "FLUSH"),
)


@pytest.mark.parametrize("user", PASSWORDS)
def test_nobody_reaches_what_is_not_the_index(accounts: Accounts, user: str) -> None:
    for command in BEYOND_THE_INDEX:
        with closing(accounts.client(user)) as client, pytest.raises(redis.ResponseError, match=REFUSAL):
            client.execute_command(*command)
    assert accounts.admin.dbsize() == 0


@pytest.mark.parametrize("user", ["no-stream", "elsewhere"])
def test_an_account_of_the_bucket_that_may_not_stream_ends_the_node(
    tmp_path: Path, redis_url: str, bucket: DevBucket, user: str
) -> None:
    settings = {"source__user": user, "source__password": "x", "index__partitions": 8}
    with UnforgivingNode("n1", tmp_path, redis_url, bucket, **settings).start() as node:
        assert node.wait() == exits.AUTH
        assert "Traceback" not in node.log.read_text()


def test_an_account_that_may_stream_and_nothing_else_suffices(
    tmp_path: Path, redis_url: str, bucket: DevBucket
) -> None:
    settings = {"source__user": "ci-source", "source__password": "source-secret", "index__partitions": 8}
    with Node("n1", tmp_path, redis_url, bucket, **settings).start() as node:
        await_stable(redis_url, bucket)
        assert node.drain() == exits.OK
