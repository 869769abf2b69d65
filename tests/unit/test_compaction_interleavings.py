"""Every interleaving of a small index that is compacted: the model of epochs, with compactors as actors.

Owners receive, append, advance, are replaced and go on as zombies; the source fails over once, and is streamed anew
where what it took back was compacted. A compactor takes a view, fences it, reads the directory, then the epochs and the
blocks, writes, switches; it may stop for good after any step, two may work at once, and one may go on by the view of
before. Blocks that left are gone at any time from then on, and so is output that no switch named. A reader takes a
view, reads the directory, then the blocks, with everything else between. In every state that can be reached:

* nothing is lost, and nothing is phantom, for who reads now from the beginning;
* what the token of the reader covers, it was told; deletions too, if it has the document;
* of each document that it has and that a rollback took back it is told that it is withdrawn, if nothing replaced it,
  and it comes within `dead_retention`; and of no document that is there;
* what it is told by a view that is not older than `min_lag` and `dead_retention` is what the source said then;
* the directory names what is there, and nothing else is there for good.

Each rule of docs/design/015-compaction.md is planted broken, and found. The larger worlds are cut off after so many
states, the nearest ones first; each day the smaller ones are, too.
"""

from dataclasses import replace

import pytest

from tests.support import model_compactor as compacting
from tests.support import model_owner as owners
from tests.support import model_reader as readers
from tests.support.model_compactor import Rules
from tests.support.model_index import World
from tests.support.model_source import Source
from tests.support.model_state import PromiseBroken

REPLACED = Source((("a", "a"), ("a", "b")), kept=1)
"""A document changes twice; the failover takes back the second change."""
DELETED = Source((("a", "-a", "b"), ("a", "-a", "c")), kept=2)
"""A document is deleted; the failover takes back what came later."""
WITHDRAWN = Source((("a", "b"), ("a", "c")), kept=1)
"""A document is taken back, and nothing replaces it."""
STILL = Source((("a", "-a", "b"),) * 2, kept=3)
APART = Source((("a", "b"),) * 2, kept=2)
LONG = Source((("a", "a", "b"), ("a", "b", "c")), kept=1)
FORGETTING = Rules(removals=True, parts=True)
NEAREST = 8_000
"""States that are visited each day; every night all of them are."""


WORLDS = pytest.mark.parametrize(
    ("world", "n_states"),
    [
        pytest.param(World(REPLACED, (0,), indexed=2), 15_000, id="a rollback and a reader"),
        pytest.param(World(DELETED, (0,), indexed=3, told=1), 20_000, id="a deletion that the source has purged"),
        pytest.param(World(DELETED, (0,), indexed=3, told=1, rules=FORGETTING), 20_000, id="removals and a rollback"),
        pytest.param(World(WITHDRAWN, (0,), indexed=2, told=2), 5_000, id="a document that is withdrawn"),
        pytest.param(World(REPLACED, (0,), (1, 1), fails_over=False, reads=False), 500, id="two compactors"),
        pytest.param(World(REPLACED, (0, 1), fails_over=False, indexed=1), 10_000, id="a zombie and a reader"),
    ],
)


@WORLDS
def test_the_nearest_states_keep_the_promises(world: World, n_states: int) -> None:
    assert world.walk(most=NEAREST) >= min(n_states, NEAREST)


@pytest.mark.nightly
@WORLDS
def test_every_reachable_state_keeps_the_promises(world: World, n_states: int) -> None:
    assert world.walk() > n_states


@pytest.mark.nightly
@pytest.mark.parametrize(
    "world",
    [
        pytest.param(World(REPLACED, (0,), (1, 1), indexed=2), id="two compactors, a rollback and a reader"),
        pytest.param(World(STILL, (0, 1), fails_over=False, indexed=2, told=1, rules=FORGETTING), id="removals"),
        pytest.param(World(REPLACED, (0, 0), indexed=2), id="zombies of one group, a rollback and a reader"),
        pytest.param(World(REPLACED, (0, 1), indexed=2), id="zombies of two groups, a rollback and a reader"),
        pytest.param(World(DELETED, (0, 0), indexed=3, told=1), id="two owners of a vbucket that is streamed anew"),
        pytest.param(
            World(WITHDRAWN, (0, 1), (1, 1), indexed=2, told=2), id="what is withdrawn, two owners, two compactors"
        ),
        pytest.param(World(LONG, (0,), (2, 1), indexed=2, full=2), id="two compactors, one by its view of before"),
    ],
)
def test_the_nearest_states_of_larger_worlds_keep_the_promises(world: World) -> None:
    assert world.walk(most=100_000) > 40_000


def _broken(fault: str, world: World) -> object:
    at_once = ", no reader in the middle" if world.reads_at_once else ""
    return pytest.param(replace(world, rules=world.rules._replace(fault=fault)), id=fault + at_once)


_ONE = World(REPLACED, (0,), indexed=2, reads=False)
_TWO = World(REPLACED, (0, 0), fails_over=False, indexed=1)
_TAKEN_BACK = World(WITHDRAWN, (0,), indexed=2, told=2, reads_at_once=True)
_FORGETS = World(STILL, (0,), fails_over=False, indexed=2, told=1, rules=FORGETTING)


@pytest.mark.parametrize(
    "world",
    [
        # 1: all groups of a channel, into a group of its own, by any number of compactors
        _broken(compacting.PRESENT_GROUPS, World(REPLACED, (0,), fails_over=False, reads=False, full=2)),
        _broken(compacting.EPOCHS_FIRST, World(REPLACED, (0, 0), fails_over=False, reads=False, full=3)),
        _broken(compacting.UNCHECKED, World(REPLACED, (0,), (1, 1), fails_over=False, reads=False)),
        # 2: which entries leave
        _broken(compacting.PENDING_SUPERSEDES, replace(_ONE, indexed=1)),
        _broken(compacting.DEAD_SUPERSEDES, _ONE),
        _broken(compacting.YOUNG_SUPERSEDES, World(REPLACED, (0,), fails_over=False, indexed=1)),
        _broken(compacting.YOUNG_DEAD, World(REPLACED, (0,), indexed=2)),
        _broken(compacting.PART_FORGETS, replace(_FORGETS, groups=(0, 1, 1), indexed=1, told=0, reads=False)),
        _broken(compacting.AGAIN_JUDGED, _ONE),
        # 3: each keeps its epoch
        _broken(compacting.NEWER_EPOCH, _TWO),
        _broken(compacting.LOW_HEADER, World(APART, (0, 0, 0), fails_over=False, zombies=False, indexed=1, told=1)),
        # 4: rollbacks
        _broken(compacting.UNFENCED, _ONE),
        _broken(compacting.FENCED_LATE, _ONE),
        _broken(compacting.FENCED_ANYHOW, _ONE),
        _broken(owners.HEEDLESS, _ONE),
        _broken(owners.ALL_ANEW, World(DELETED, (0,), indexed=3, told=1)),
        _broken(owners.FORGETS_RESTART, World(DELETED, (0, 0), indexed=3, told=1)),
        _broken(readers.REFUSES_RESTART, World(REPLACED, (0,), indexed=2, told=2)),
        # 5: readers and writers in the middle
        _broken(readers.NO_SECOND_LOOK, World(REPLACED, (0,), indexed=2)),
        _broken(owners.GIVES_UP, replace(_TWO, reads=False)),
        _broken(owners.REVIVES, replace(_TWO, reads=False)),
        _broken(owners.SAME_NUMBERS, _TWO),
        # 6: floors
        _broken(compacting.NO_FLOOR, _FORGETS),
        _broken(readers.NO_CHECK, _FORGETS),
        _broken(readers.REFUSES_ALL, _FORGETS),
        _broken(readers.HOLDS_NOTHING, World(DELETED, (0,), indexed=3, told=1, rules=FORGETTING)),
        # 7: withdrawn; no reader is in the middle, so none else misses what is dead
        _broken(compacting.YOUNG_DEAD, _TAKEN_BACK),
        _broken(readers.SAYS_NOTHING, _TAKEN_BACK),
    ],
)
def test_each_rule_that_is_planted_broken_is_found(world: World) -> None:
    with pytest.raises(PromiseBroken):
        world.walk()
