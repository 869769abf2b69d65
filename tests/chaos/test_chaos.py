"""A short run of the fault suite finds nothing; one that loses something says so, with all that it takes to see why."""

import json
import random
from collections.abc import Iterator

import pytest

from tests.chaos import __main__ as chaos
from tests.chaos import faults, schedule
from tests.chaos.faults import Missed
from tests.chaos.schedule import Fault
from tests.chaos.world import World

SEED = 20
MINUTES = 1.0
FEWEST_KINDS = 12


@pytest.mark.timeout(600)
def test_short_run_of_many_faults_loses_and_invents_nothing(tmp_path, capsys):
    code = chaos.main(
        ["--seed", str(SEED), "--minutes", str(MINUTES), "--bundle", str(tmp_path), "--shrink-minutes", "0"]
    )
    told = capsys.readouterr().out
    print(told)
    assert code == 0
    n_kinds = int(told.split("faults injected, of ")[1].split(" kinds")[0])
    assert n_kinds >= FEWEST_KINDS
    assert list(tmp_path.iterdir()) == [], "a world that is in order leaves nothing behind"


def lose_blocks(world: World, rnd: random.Random) -> Iterator[None]:
    """What no fault can do: blocks that were acknowledged are gone."""
    with world.store.client() as client:
        blocks = list(client.scan_iter("ci:channels:*:b:*"))
        if not blocks:
            raise Missed
        client.delete(*blocks)
    yield


@pytest.mark.timeout(600)
def test_run_that_loses_something_says_so_and_shrinks_its_schedule(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(faults.KINDS, "lose_blocks", faults.Kind(lose_blocks, 0.0, alone=False))
    culprit = Fault("lose_blocks", 1, 1.0, 0.0)
    harmless = [Fault("cut_link", 1, 0.1, 0.0), Fault("forget_scripts", 1, 0.1, 0.0)]
    schedule.save(tmp_path / "given.jsonl", [(harmless[0],), (harmless[1], culprit)])
    given = ["--schedule", str(tmp_path / "given.jsonl"), "--bundle", str(tmp_path / "worlds")]
    assert chaos.main([*given, "--seed", "1", "--minutes", "1"]) == 1
    told = capsys.readouterr().out
    assert "seed 1" in told
    assert "lose_blocks(1)" in told.split("shrunk schedule")[1]
    (bundle,) = (tmp_path / "worlds").iterdir()
    assert schedule.load(bundle / "shrunk.jsonl") == [(culprit,)]
    assert (bundle / "findings.txt").read_text()
    assert json.loads((bundle / "written.jsonl").read_text().splitlines()[0])["id"]
    assert {"n1.log", "n2.log", "n3.log"} <= {path.name for path in bundle.iterdir()}
