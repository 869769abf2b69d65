"""Dozens of nodes on simulated clocks and the real scripts: what happens to them moves as little as it can."""

import pytest
import redis

from benchmarks.coordination import Run
from benchmarks.simulation import World
from coordinator.lease_redis import connect

N_NODES = 40
N_PARTITIONS = 128
SETTLING = 3
"""Moves beyond the fewest that nodes may need that come back one after the other: what is fair changes on the way."""


@pytest.mark.parametrize("seed", [1, 2])
def test_restarts_crashes_and_the_loss_of_a_zone_move_what_they_must_and_then_all_is_quiet(redis_url, seed):
    with redis.Redis.from_url(redis_url) as client, connect(redis_url, 5.0) as link:
        run = Run(World(client, link, N_PARTITIONS, seed), N_NODES)
        run.all(at_once=4)
    outcomes = {outcome.event: outcome for outcome in run.outcomes}
    assert outcomes["nothing"].moves == 0
    assert outcomes["nothing"].wakes == 0
    for event in ("a third is lost at once", "a zone is lost"):
        assert outcomes[event].moves == outcomes[event].fewest
        assert outcomes[event].simulated_s < run.world.ttl_s + 2
        back = outcomes[f"{event}: all back"]
        assert back.moves <= back.fewest + SETTLING * (N_NODES // 3)
    rolling = outcomes["rolling restart, 4 at once"]
    assert rolling.moves <= rolling.fewest
    assert run.world.n_doubly_owned == 0
