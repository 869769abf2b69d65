"""Documents that could not be decoded: listed, shown, and decoded again on demand by a real node."""

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from channelindex import exits
from channelindex.reading.changes_reader import ChangesReader
from channelindex.stores import open_reader
from channelindex.stores.base import Quarantined
from devbucket.bucket_config import DevBucketConfig
from devbucket.process import DevBucket
from devbucket.sync_gateway.layouts import InlineLayout
from devbucket.sync_gateway.loader import Loader
from devbucket.sync_gateway.revisions import Revision
from tests.support import moody_decoder
from tests.support.indexing import SmallIndex
from tests.support.node import Node
from tests.support.running import assert_verified, await_stable, cli, connect
from tests.support.stores import settings_of

FORGER = "forger\n\x1b[31mlevel=error event=forged"
KEYS = [*(f"doc-{number:02}" for number in range(40)), FORGER]
REFUSED = ["doc-07", "doc-21", FORGER]


class Moods:
    """Which documents the node's decoder refuses."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def refuse(self, keys: Iterable[str]) -> None:
        """Refuse these from now on, and no others."""
        self._file.write_text("".join(f"{key.encode()!r}\n" for key in keys))


@pytest.fixture
def bucket() -> Iterator[DevBucket]:
    with DevBucket(DevBucketConfig(n_vbuckets=16)) as opened:
        yield opened


@pytest.fixture
def moods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Moods:
    monkeypatch.setenv(moody_decoder.VARIABLE, str(tmp_path / "refused"))
    moods = Moods(tmp_path / "refused")
    moods.refuse(REFUSED)
    return moods


@pytest.fixture
def node(tmp_path: Path, redis_url: str, bucket: DevBucket, moods: Moods) -> Iterator[Node]:
    """A node that could not decode some of the documents."""
    decoder = "tests.support.moody_decoder:make"
    settings = {"coordination__ttl_s": 1.0, "index__partitions": 8, "source__decoder": decoder}
    load(bucket, 1, KEYS)
    with Node("n1", tmp_path, redis_url, bucket, **settings).start() as opened:
        await_stable(redis_url, bucket)
        yield opened


def load(bucket: DevBucket, generation: int, keys: Iterable[str]) -> None:
    with connect(bucket) as client:
        revisions = [Revision(key, f"{generation}-{'a' * 32}", ("a",)) for key in keys]
        Loader(client, InlineLayout()).load(revisions)


def quarantine(node: Node, *arguments: str, code: int = exits.OK) -> Any:
    done = cli("quarantine", *arguments, "--json", "--config", node.config)
    assert done.returncode == code, done.stderr or done.stdout
    return json.loads(done.stdout)


def listed(node: Node) -> set[str]:
    return {document["key"] for document in quarantine(node, "list")["newest"]}


def indexed(redis_url: str) -> set[str]:
    with closing(open_reader(settings_of(redis_url, "channels"))) as store:
        return {entry.id for entry in ChangesReader(store).changes(["a"]).entries}


def test_a_mended_decoder_gets_the_documents_once_more(
    node: Node, bucket: DevBucket, redis_url: str, moods: Moods
) -> None:
    assert listed(node) == set(REFUSED)
    assert indexed(redis_url) == set(KEYS) - set(REFUSED)
    moods.refuse(["doc-07"])
    forger = next(each for each in quarantine(node, "list")["newest"] if each["key"] == FORGER)
    outcome = quarantine(node, "retry", "doc-07", f"{forger['vb']}:{forger['seqno']}", "--yes", code=exits.DIFFERENCES)
    assert (outcome["retried"], outcome["back"]) == (2, True)
    assert [each["key"] for each in outcome["undecodable"]] == ["doc-07"]
    moods.refuse([])
    outcome = quarantine(node, "retry", "--yes", "--all")
    assert outcome["undecodable"] == []
    assert listed(node) == set()
    assert quarantine(node, "list")["total"] >= len(REFUSED) + 1
    assert indexed(redis_url) == set(KEYS)


def test_a_document_that_was_saved_again_leaves_with_the_next_retry(
    node: Node, bucket: DevBucket, redis_url: str, moods: Moods
) -> None:
    moods.refuse(["doc-21"])
    load(bucket, 2, REFUSED)
    await_stable(redis_url, bucket)
    assert indexed(redis_url) == set(KEYS) - {"doc-21"}
    assert listed(node) == set(REFUSED)
    outcome = quarantine(node, "retry", "--yes", "--all", code=exits.DIFFERENCES)
    assert [each["key"] for each in outcome["undecodable"]] == ["doc-21"]
    assert listed(node) == {"doc-21"}


def test_what_people_see_tells_what_to_do_and_cannot_be_forged(node: Node) -> None:
    done = cli("quarantine", "list", "--limit", "2", "--config", node.config)
    assert done.stdout.startswith("3 documents, the newest 2 of them; 3 records were written in all\n")
    assert done.stdout.count("not today\\u001b[2J\\u000alevel=error") == 2
    done = cli("quarantine", "show", FORGER, "--config", node.config)
    assert "reason: Undecodable: not today\\u001b[2J\\u000alevel=error" in done.stdout
    assert "channelindex quarantine retry" in done.stdout
    log = node.log.read_text()
    assert not any(line.startswith("level=error") or "\x1b" in line for line in (done.stdout + log).splitlines())
    assert '"_sync"' not in done.stdout


def test_a_document_that_was_damaged_on_its_way_is_retried(tmp_path: Path, redis_url: str) -> None:
    with (
        DevBucket(DevBucketConfig(n_vbuckets=4)) as bucket,
        Node("n1", tmp_path, redis_url, bucket, coordination__ttl_s=1.0, index__partitions=4).start() as node,
    ):
        load(bucket, 1, KEYS)
        await_stable(redis_url, bucket)
        assert bucket.flip_byte(-1, "channelindex") == 2  # on one of them, the counter of sequences will be damaged
        load(bucket, 2, KEYS)
        await_stable(redis_url, bucket)
        (damaged,) = listed(node)
        assert quarantine(node, "retry", damaged, "--yes")["undecodable"] == []
        assert listed(node) == set()
        assert_verified(node.config)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("retry",), exits.INPUT, "give --all"),
        (("retry", "doc", "--all"), exits.INPUT, "give --all"),
        (("show", "nobody"), exits.MISSING, "nobody is not in quarantine"),
        (("list", "doc"), exits.INPUT, "show does"),
        (("retry", "doc"), exits.INTERRUPTED, "--yes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_makes_no_sense_or_nobody_confirmed_changes_nothing(
    redis_url: str, arguments: tuple[str, ...], code: int, says: str
) -> None:
    with closing(SmallIndex(redis_url)) as small:
        document = Quarantined(0, 1, b"doc", "why", 1.0)
        small.owner.quarantine([document])
        before = small.reader.partition_records()
        settings = ("--set", f"index.store={redis_url}", "--set", f"index.name={small.name}")
        done = cli("quarantine", *arguments, *settings)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert says in done.stderr
        assert small.reader.partition_records() == before
        assert list(small.reader.quarantined()[1]) == [document]


def test_what_is_not_stable_yet_is_left_alone(redis_url: str) -> None:
    with closing(SmallIndex(redis_url)) as small:
        document = Quarantined(0, 1, b"doc", "why", 1.0)
        small.owner.quarantine([document])
        settings = ("--set", f"index.store={redis_url}", "--set", f"index.name={small.name}")
        done = cli("quarantine", "retry", "--all", "--yes", "--json", *settings)
        assert (done.returncode, json.loads(done.stdout)["retried"]) == (exits.OK, 0), done.stderr
        assert list(small.reader.quarantined()[1]) == [document]
