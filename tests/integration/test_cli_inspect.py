"""`channelindex inspect`, and `changes --skip-corrupt`: what people see of a block, a clock, a partition, of damage."""

import json
from collections.abc import Callable, Iterator

import pytest
import redis

from channelindex import epochs, exits
from channelindex.model import Checkpoint
from channelindex.stores.base import BlockRef
from channelindex.stores.redis.keys import Keys
from tests.support.indexing import Row, SmallIndex
from workers.cli import main

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def index(redis_url: str) -> Iterator[SmallIndex]:
    """Channel A: some blocks of partitions 0 and 1, the last one of an epoch that took something back."""
    opened = SmallIndex(redis_url)
    first = opened.begin()
    opened.write(first, [Row("A", 0, 1, "one"), Row("A", 2, 1, "two")])
    opened.write(first, [Row("A", 0, 2, "three")])
    opened.write(first, [Row("A", 0, 3, "lost")])
    opened.advance(first, {0: 3, 2: 1})
    second = opened.begin(rollback={0: 2})
    opened.write(second, [Row("A", 0, 3, "found", "7-x"), Row("A", 0, 4, "late")])
    opened.advance(second, {0: 3})
    yield opened
    opened.close()


@pytest.fixture
def cli(index: SmallIndex, redis_url: str, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command on the index: its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        settings = ("--set", f"index.store={redis_url}", "--set", f"index.name={index.name}")
        code = main([*arguments, *settings])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def newest_block(index: SmallIndex) -> BlockRef:
    (state,) = index.reader.channel_states(["A"])
    assert state
    ((group, number),) = state.active_by_group.items()
    return BlockRef("A", group, number)


def damage(index: SmallIndex, redis_url: str, ref: BlockRef, change: Callable[[bytes], bytes]) -> None:
    key = Keys(index.name).block(*ref)
    with redis.Redis.from_url(redis_url) as client:
        block = client.get(key)
        assert block
        client.set(key, change(block))


def test_a_block_shows_each_entry_and_what_readers_make_of_it(index: SmallIndex, cli: Cli) -> None:
    ref = newest_block(index)
    first, second = (start.epoch for start in index.reader.partition_records()[0].history)
    found: dict[tuple[int, int, str], str] = {}
    for number in range(ref.number + 1):
        code, out, _ = cli("inspect", "block", ref._replace(number=number).key, "--json")
        assert code == exits.OK
        block = json.loads(out)
        assert block["key"] == f"{ref.group}:{number}:A"
        found |= {(entry["epoch"], entry["seqno"], entry["id"]): entry["visibility"] for entry in block["entries"]}
    assert found == {
        (first, 1, "one"): "visible",
        (first, 1, "two"): "visible",
        (first, 2, "three"): "visible",
        (first, 3, "lost"): "dead",
        (second, 3, "found"): "visible",
        (second, 4, "late"): "pending",
    }
    code, out, _ = cli("inspect", "block", ref.key)
    assert "0:" in out.splitlines()[1]
    assert "found" in out
    assert "7-x" in out


def test_the_clocks_of_a_channel_name_its_newest_blocks(index: SmallIndex, cli: Cli) -> None:
    code, out, _ = cli("inspect", "clock", "A", "--json")
    assert code == exits.OK
    (group,) = json.loads(out)["groups"]
    assert group["active_block"] == newest_block(index).key
    assert group["clock"] == {"0": 4, "2": 1}
    _, out, _ = cli("inspect", "clock", "A")
    assert "\n  vb 0: 4  vb 2: 1\n" in out


def test_a_partition_shows_its_checkpoints_and_epochs(index: SmallIndex, cli: Cli, monkeypatch) -> None:
    monkeypatch.setattr(epochs, "HISTORY_BYTES", 0)
    epoch = index.begin([0])
    code, out, _ = cli("inspect", "partition", "0", "--json")
    assert code == exits.OK
    partition = json.loads(out)
    assert partition["clock"] == {"0": 3, "1": 0}
    assert partition["checkpoints"][0] == Checkpoint(1, 3, 3, 3)._asdict()
    assert (partition["epoch"], partition["owner"]) == (epoch, "test")
    assert partition["history"] == [{"epoch": epoch, "starts": [3, 0], "reaches": [3, 0]}]
    assert partition["n_archived"] == 2
    _, out, _ = cli("inspect", "partition", "0")
    assert f"epoch {epoch} of test" in out
    assert "2 older epochs in the archive" in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("block", "group:1"), exits.INPUT, "GROUP:NUMBER:CHANNEL"),
        (("block", "group:x:A"), exits.INPUT, "GROUP:NUMBER:CHANNEL"),
        (("block", "group:0:A"), exits.MISSING, "no block group:0:A"),
        (("clock", "nothing"), exits.MISSING, "no channel 'nothing'"),
        (("partition", "2"), exits.MISSING, "0 to 1"),
        (("partition", "-"), exits.INPUT, "no number"),
    ],
)
def test_a_key_of_nothing_is_one_line(cli: Cli, arguments: tuple[str, ...], code: int, says: str) -> None:
    got, out, err = cli("inspect", *arguments)
    assert (got, out) == (code, "")
    assert says in err


def test_damage_is_named_by_inspect_and_changes_and_skipped_only_if_asked(
    index: SmallIndex, cli: Cli, redis_url: str
) -> None:
    ref = newest_block(index)
    damage(index, redis_url, ref, lambda block: block[:-1])
    code, out, _ = cli("inspect", "block", ref.key)
    assert code == exits.CORRUPT
    assert "damaged: frame at byte" in out
    code, out, err = cli("changes", "A", "--json")
    assert (code, out) == (exits.CORRUPT, "")
    assert f"block {ref.key}: frame at byte" in err
    code, out, err = cli("changes", "A", "--json", "--skip-corrupt")
    assert code == exits.OK
    assert f"skipped: block {ref.key}: frame at byte" in err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["id"] for line in lines[:-1]] == ["one", "three", "two"]


def test_a_damaged_clock_is_named(index: SmallIndex, cli: Cli, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.hset(Keys(index.name).channel("A"), f"k{newest_block(index).group}", bytes(17))
    code, out, _ = cli("inspect", "clock", "A")
    assert code == exits.CORRUPT
    assert "damaged: frame at byte" in out
