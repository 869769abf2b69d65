"""A node's partitions are spread over its feed workers evenly and with the fewest moves."""

from hypothesis import given
from hypothesis import strategies as st

from workers.node.spread import spread

partitions = st.frozensets(st.integers(0, 63))


@st.composite
def currents(draw):
    """What some workers have now: disjoint sets, of which some may no longer be held."""
    slots = draw(st.integers(1, 8))
    owner_by_partition = draw(st.dictionaries(st.integers(0, 63), st.integers(0, slots - 1)))
    return [frozenset(p for p, owner in owner_by_partition.items() if owner == slot) for slot in range(slots)]


@given(partitions, currents())
def test_every_held_partition_is_in_exactly_one_set_and_sizes_differ_by_at_most_one(held, current):
    sets = spread(held, current)
    assert sorted(p for mine in sets for p in mine) == sorted(held)
    sizes = [len(mine) for mine in sets]
    assert max(sizes) - min(sizes) <= 1


@given(partitions, currents())
def test_what_is_balanced_stays_as_it_is(held, current):
    once = spread(held, current)
    assert spread(held, once) == once


@given(partitions, currents())
def test_only_as_many_move_as_the_balance_asks_for(held, current):
    sets = spread(held, current)
    kept = sum(len(mine & before) for mine, before in zip(sets, current, strict=True))
    low, extra = divmod(len(held), len(current))
    sizes = sorted((len(before & held) for before in current), reverse=True)
    best = sum(min(size, low + (1 if rank < extra else 0)) for rank, size in enumerate(sizes))
    assert kept == best
