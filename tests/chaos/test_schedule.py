"""A schedule is the same for the same seed, is kept as it is, and gets smaller only where it goes on failing."""

from tests.chaos import schedule
from tests.chaos.faults import KINDS
from tests.chaos.schedule import Episode


def test_schedule_is_the_same_for_the_same_seed_and_survives_its_file(tmp_path):
    drawn = schedule.draw("7/1", 50)
    schedule.save(tmp_path / "schedule.jsonl", drawn)
    assert schedule.load(tmp_path / "schedule.jsonl") == drawn == schedule.draw("7/1", 50)
    assert drawn != schedule.draw("7/2", 50)


def test_long_schedule_has_all_kinds_and_one_at_most_that_takes_the_bucket_from_its_writers():
    drawn = schedule.draw("1/1", 400)
    possible = {name for name, kind in KINDS.items() if "redis" in kind.stores}
    assert {fault.kind for episode in drawn for fault in episode} == possible
    assert max(sum(KINDS[fault.kind].alone for fault in episode) for episode in drawn) == 1
    assert all(fault.for_s <= KINDS[fault.kind].longest_s for episode in drawn for fault in episode)


def test_shrinking_leaves_only_what_it_takes_to_fail():
    drawn = schedule.draw("3/1", 24)
    culprits = {drawn[5][0], drawn[17][-1]}
    tried = 0

    def fails(episodes: list[Episode]) -> bool:
        nonlocal tried
        tried += 1
        return culprits <= {fault for episode in episodes for fault in episode}

    assert schedule.shrink(drawn, fails) == [(drawn[5][0],), (drawn[17][-1],)]
    assert tried < 60


def test_shrinking_that_may_not_try_leaves_everything():
    drawn = schedule.draw("3/1", 4)
    assert schedule.shrink(drawn, lambda episodes: False) == drawn
