"""`channelindex compact`: what it takes out, what it reports, what it refuses."""

import json
from collections.abc import Callable, Iterator

import pytest
import redis

from channelindex import exits
from channelindex.reading.changes_reader import ChangesReader
from channelindex.stores.base import BlockRef
from channelindex.stores.redis.keys import Keys
from tests.support.indexing import Row, SmallIndex
from workers.cli import main

Cli = Callable[..., tuple[int, str, str]]
N_CHANGES = 40


@pytest.fixture
def index(redis_url: str) -> Iterator[SmallIndex]:
    """Channel A: a document that changed often, long ago, and one that changed just now."""
    opened = SmallIndex(redis_url, block_bytes=1024)
    epoch = opened.begin()
    for seqno in range(1, N_CHANGES + 1):
        opened.write(epoch, [Row("A", 0, seqno, "doc", f"{seqno}-x")])
    opened.write(epoch, [Row("A", 2, 1, "other"), Row("B", 2, 2, "other")])
    opened.advance(epoch, {0: N_CHANGES, 2: 2})
    opened.owner.note_moments(epoch, [0, 1], 1000.0)
    opened.begin()
    yield opened
    opened.close()


@pytest.fixture
def cli(index: SmallIndex, redis_url: str, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs the command on the index: its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["compact", *arguments, "--set", f"index.store={redis_url}", "--set", f"index.name={index.name}"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def _told(index: SmallIndex) -> set[tuple[str, int]]:
    return {(change.id, change.seqno) for change in ChangesReader(index.reader).changes(["A"]).entries}


def test_a_dry_run_reports_and_a_run_takes_out_what_is_superseded(index: SmallIndex, cli: Cli) -> None:
    before = _told(index)
    code, dry, _ = cli("--channel", "A", "--dry-run")
    assert code == exits.OK
    assert "dry run" in dry
    assert f"{N_CHANGES - 1} superseded" in dry
    (state,) = index.reader.channel_states(["A"])
    assert state is not None
    assert state.compacted.generation == 0
    code, done, _ = cli("--channel", "A")
    assert code == exits.OK
    assert done.splitlines()[1:] == dry.splitlines()[1:]
    (state,) = index.reader.channel_states(["A"])
    assert state is not None
    assert state.compacted.generation == 1
    assert _told(index) == before == {("doc", N_CHANGES), ("other", 1)}


def test_without_arguments_only_what_is_due_is_compacted(index: SmallIndex, cli: Cli) -> None:
    code, out, _ = cli("--set", "compaction.max_lag_s=100000000")
    assert code == exits.OK
    assert out.splitlines() == ["channels  none is due"]
    code, out, _ = cli("--now", "--json")
    report = json.loads(out)
    assert report["channels"] == 2
    assert report["superseded"] == N_CHANGES - 1
    assert report["bytes_after"] < report["bytes_before"]


def test_a_channel_that_nobody_wrote_is_named(index: SmallIndex, cli: Cli) -> None:
    code, out, err = cli("--channel", "a")
    assert code == exits.OK
    assert out.splitlines()[0] == "channels  1 gone"
    assert "channel a: the index has nothing of it" in err


def test_a_damaged_channel_is_left_as_it_is(index: SmallIndex, cli: Cli, redis_url: str) -> None:
    key = Keys(index.name).block(*next(_blocks(index)))
    client = redis.Redis.from_url(redis_url)
    client.setrange(key, client.strlen(key) - 6, b"damage")
    damaged = client.get(key)
    code, out, err = cli("--channel", "A")
    assert code == exits.CORRUPT
    assert "1 damaged" in out
    assert "checksum differs" in err
    assert client.get(key) == damaged
    client.close()


def _blocks(index: SmallIndex) -> Iterator[BlockRef]:
    (state,) = index.reader.channel_states(["A"])
    assert state is not None
    for name, group in state.groups.items():
        yield BlockRef("A", name, group.directory.number)


def test_a_store_that_forgets_by_itself_is_not_compacted(capsys) -> None:
    assert main(["compact", "--set", "index.store=memory://"]) == exits.CONFIG
    assert "is not compacted" in capsys.readouterr().err
