"""Which feed worker of a node takes which partitions: pure, sticky, fewest moves."""

from collections.abc import Iterable, Sequence


def spread(leased: Iterable[int], current: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """Return the partitions of each feed worker, given those *leased* to the node and what each worker has now.

    Invariants: every leased partition is in exactly one set, no other is in any; sizes differ by at most one; a
    partition stays where it is unless its worker has too many; the same input gives the same output. A worker whose
    set does not change is not disturbed.
    """
    assert current, "there is a worker"
    partitions = sorted(leased)
    sets = [set(mine).intersection(partitions) for mine in current]
    low, extra = divmod(len(partitions), len(sets))
    by_size = sorted(range(len(sets)), key=lambda number: (-len(sets[number]), number))
    size_by_number = {number: low + (1 if rank < extra else 0) for rank, number in enumerate(by_size)}
    free = set(partitions).difference(*sets)
    for number, mine in enumerate(sets):
        for partition in sorted(mine, reverse=True)[: max(0, len(mine) - size_by_number[number])]:
            mine.discard(partition)
            free.add(partition)
    waiting = sorted(free)
    for number, mine in enumerate(sets):
        missing = size_by_number[number] - len(mine)
        mine.update(waiting[:missing])
        waiting = waiting[missing:]
    assert not waiting, "every leased partition has a worker"
    assert sum(map(len, sets)) == len(partitions), "and one only"
    assert max(map(len, sets)) - min(map(len, sets)) <= 1, "sizes differ by at most one"
    return [frozenset(mine) for mine in sets]
