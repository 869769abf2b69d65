"""Brief collections: what has survived one is left alone, and dead cycles are collected in the end."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from workers.serving.garbage import WHOLE_EVERY_S, brief_collections


class Cycle:
    """Refers to itself, so that references alone never free it."""

    def __init__(self) -> None:
        self.itself = self


class Clock:
    """Moved by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with brief_collections(clock):
        yield clock
    gc.freeze()  # as tests/conftest.py did


@pytest.mark.usefixtures("clock")
def test_what_survived_a_full_collection_is_not_looked_at_again() -> None:
    cycle = Cycle()
    gc.collect()
    assert gc.is_tracked(cycle)
    assert not any(each is cycle for each in gc.get_objects()), "the collector looks at it"


@pytest.mark.usefixtures("clock")
def test_a_cycle_that_is_new_is_collected() -> None:
    gc.collect()
    cycle = weakref.ref(Cycle())
    gc.collect()
    assert cycle() is None


def test_an_old_cycle_is_collected_once_all_is_looked_at(clock: Clock) -> None:
    cycle = Cycle()
    gc.collect()
    known = weakref.ref(cycle)
    del cycle
    gc.collect()
    assert known() is not None, "it was left alone"
    clock.now += WHOLE_EVERY_S
    gc.collect()
    assert known() is None


def test_young_collections_leave_nothing_else_alone_and_bring_nothing_back(clock: Clock) -> None:
    old = Cycle()
    gc.collect()
    young = Cycle()
    clock.now += WHOLE_EVERY_S
    gc.collect(1)
    looked_at = gc.get_objects()
    assert any(each is young for each in looked_at)
    assert not any(each is old for each in looked_at)


def test_everything_is_looked_at_again_at_the_end() -> None:
    cycle = Cycle()
    with brief_collections():
        gc.collect()
    assert gc.get_freeze_count() == 0
    assert any(each is cycle for each in gc.get_objects())
