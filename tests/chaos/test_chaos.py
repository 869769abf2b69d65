"""A short run of the fault suite finds nothing; one that loses something says so, with all that it takes to see why."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from channelindex import exits
from tests.chaos import __main__ as chaos
from tests.chaos import faults, http_follower, recorder, schedule
from tests.chaos.schedule import Fault
from tests.chaos.world import World
from tests.support.node import until

pytestmark = pytest.mark.slow

SEED = "20/1"
EPISODES = 9
DENSEST = slice(5, EPISODES)
"""Those whose faults are of twenty kinds."""
FEWEST_KINDS = 12
CATCH_UP_IN_VAIN_S = 5.0
"""How long followers wait for what is lost for good."""
BLOCKS = "ci:channels:*:b:*"


@pytest.fixture
def worlds() -> Iterator[Path]:
    """A folder for worlds whose path is short: a Redis in it listens on a unix socket, which takes 107 characters."""
    with TemporaryDirectory(prefix="worlds-") as folder:
        yield Path(folder)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", [DENSEST, pytest.param(slice(EPISODES), marks=pytest.mark.nightly)], ids=str)
def test_short_run_of_many_faults_loses_and_invents_nothing(tmp_path, worlds, capsys, part):
    schedule.save(tmp_path / "given.jsonl", schedule.draw(SEED, EPISODES)[part])
    code = chaos.main([*_given(tmp_path), "--bundle", str(worlds), "--minutes", "0.01", "--tries", "0"])
    told = capsys.readouterr().out
    print(told)
    assert code == 0
    n_kinds = int(told.split("faults injected, of ")[1].split(" kinds")[0])
    assert n_kinds >= FEWEST_KINDS
    assert list(worlds.iterdir()) == [], "a world that is in order leaves nothing behind"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", ["cluster", "sentinel"])
@pytest.mark.parametrize("n_times", [1, pytest.param(4, marks=pytest.mark.nightly)])
def test_planned_failovers_of_a_replicated_store_lose_and_invent_nothing(tmp_path, worlds, capsys, store, n_times):
    episodes = [(Fault("hand_over", seed, 0.1, 0.0), Fault("pause_leases", seed, 0.2, 0.5)) for seed in range(n_times)]
    schedule.save(tmp_path / "given.jsonl", episodes)
    arguments = ["--bundle", str(worlds), "--minutes", "0.01", "--tries", "0", "--store", store]
    code = chaos.main([*_given(tmp_path), *arguments])
    told = capsys.readouterr().out
    print(told)
    assert code == 0
    assert "hand_over" in told


@pytest.mark.timeout(600)
def test_an_address_that_moves_loses_and_invents_nothing(tmp_path, worlds, capsys):
    kinds = ("hand_over", "move_address", "promote_stale_replica")
    schedule.save(tmp_path / "given.jsonl", [(Fault(kind, 1, 0.1, 0.5),) for kind in kinds])
    arguments = ["--bundle", str(worlds), "--minutes", "0.01", "--tries", "0", "--store", "address"]
    code = chaos.main([*_given(tmp_path), *arguments])
    told = capsys.readouterr().out
    print(told)
    assert code == 0
    assert all(kind in told.split("injected")[1] for kind in kinds)
    assert "| failovers to a replica that lacked acknowledged writes | 1 |" in told


@pytest.mark.timeout(600)
def test_keys_that_are_evicted_are_named_and_repaired_or_heal(tmp_path, worlds, capsys):
    healing = ("evict_key_that_heals", "evict_key_that_vouches", "evict_lease_key")
    missed = Fault("evict_key_that_is_missed", 1, 0.1, 0.0)
    episodes = [(missed,), tuple(Fault(kind, 1, 0.1, 0.0) for kind in healing)]
    schedule.save(tmp_path / "given.jsonl", episodes)
    code = chaos.main([*_given(tmp_path), "--bundle", str(worlds), "--minutes", "0.01", "--tries", "0"])
    told = capsys.readouterr().out
    print(told)
    assert code == 0
    assert all(kind in told.split("injected")[1] for kind in (*healing, missed.kind))


@pytest.mark.timeout(600)
def test_failovers_and_crashes_of_a_bucket_that_holds_the_index_lose_and_invent_nothing(tmp_path, worlds, capsys):
    kinds = ("fail_over_index_node", "crash_index_node", "cut_index_connections", "take_index_vbuckets_away")
    episodes = [(Fault(kind, 1, 0.1, 0.3), Fault("kill_batch_writer", 1, 0.2, 0.0)) for kind in kinds]
    schedule.save(tmp_path / "given.jsonl", episodes)
    arguments = ["--bundle", str(worlds), "--minutes", "0.01", "--tries", "0", "--store", "couchbase"]
    code = chaos.main([*_given(tmp_path), *arguments])
    told = capsys.readouterr().out
    print(told)
    assert code == 0
    assert all(kind in told.split("injected")[1] for kind in kinds)


def test_run_that_injects_nothing_shows_nothing(tmp_path, worlds, capsys):
    schedule.save(tmp_path / "given.jsonl", [])
    assert chaos.main([*_given(tmp_path), "--bundle", str(worlds), "--minutes", "0"]) == 1
    assert "nothing was shown" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["no JSON", "[1]", '[["reboot_the_world", 1, 0, 0]]', '[["cut_link"]]'])
def test_file_that_is_no_schedule_is_refused_in_a_line(text, tmp_path, capsys):
    (tmp_path / "given.jsonl").write_text(text)
    with pytest.raises(SystemExit) as ended:
        chaos.main(_given(tmp_path))
    assert ended.value.code == exits.USAGE
    assert capsys.readouterr().err.count("given.jsonl") == 1


def _given(folder: Path) -> list[str]:
    return ["--schedule", str(folder / "given.jsonl")]


def lose_blocks(world: World, rnd: random.Random) -> Iterator[None]:
    """What no fault can do: blocks that were acknowledged are gone."""
    with world.single_store.client() as client:
        until(lambda: list(client.scan_iter(BLOCKS)), "a block to be written")
        client.delete(*client.scan_iter(BLOCKS))
    yield


@pytest.mark.timeout(600)
def test_run_that_loses_something_says_so_and_shrinks_its_schedule(tmp_path, worlds, capsys, monkeypatch):
    monkeypatch.setitem(faults.KINDS, "lose_blocks", faults.Kind(lose_blocks, 0.0, alone=False))
    for module in (recorder, http_follower):
        monkeypatch.setattr(module, "CATCH_UP_S", CATCH_UP_IN_VAIN_S)
    culprit = Fault("lose_blocks", 1, 1.0, 0.0)
    harmless = Fault("cut_link", 1, 0.1, 0.0)
    schedule.save(tmp_path / "given.jsonl", [(harmless, culprit)])
    given = [*_given(tmp_path), "--bundle", str(worlds)]
    assert chaos.main([*given, "--seed", "1", "--minutes", "1", "--tries", "10"]) == 1
    told = capsys.readouterr().out
    assert "seed 1" in told
    assert "lose_blocks(1)" in told.split("shrunk schedule")[1]
    (bundle,) = worlds.iterdir()
    assert schedule.load(bundle / "shrunk.jsonl") == [(culprit,)]
    assert "what is damaged does not become complete" in (bundle / "findings.txt").read_text()
    assert json.loads((bundle / "written.jsonl").read_text().splitlines()[0])["id"]
    assert {"n1.log", "n2.log", "n3.log"} <= {path.name for path in bundle.iterdir()}
