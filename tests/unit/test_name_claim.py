"""A second node of one name is told from the remains of the first, however late the answers come."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channelindex import exits
from coordinator.name_claim import NameClaim

TTL_S = 6.0


def codes(claim: NameClaim, answers: Sequence[tuple[float, float | None]]) -> list[int]:
    troubles = [claim.judge(remaining_s, now) for now, remaining_s in answers]
    return [trouble.exit_code if trouble else exits.OK for trouble in troubles]


def test_a_name_that_is_ours_is_no_trouble():
    assert NameClaim("a", TTL_S).judge(None, 5.0) is None


@given(
    first=st.floats(0.0, 600.0),
    ticks=st.lists(st.tuples(st.floats(0.1, 60.0), st.floats(0.0, TTL_S / 6 - 0.01)), max_size=50),
)
def test_the_lease_of_a_dead_process_only_runs_down_and_is_waited_for(
    first: float, ticks: list[tuple[float, float]]
) -> None:
    """Each answer comes up to a request timeout after Redis gave it; the other's lease may be long."""
    now, answers = 100.0, [(100.0, first)]
    for wait_s, late_s in ticks:
        now += wait_s
        answers.append((now + late_s, max(0.0, first - (now - 100.0))))
    within = [(at, left) for at, left in answers if left]
    assert set(codes(NameClaim("a", TTL_S), within)) <= {exits.COORDINATION}


@pytest.mark.parametrize("others_ttl_s", [1.0, TTL_S, 30.0])
def test_a_lease_that_is_renewed_ends_the_second_node_after_two_of_its_own(others_ttl_s: float) -> None:
    every_second = [(float(now), others_ttl_s - now % (others_ttl_s / 3)) for now in range(20)]
    expected = [exits.COORDINATION if now < 2 * TTL_S else exits.NAME_TAKEN for now in range(20)]
    assert codes(NameClaim("a", TTL_S), every_second) == expected


def test_the_wait_begins_anew_once_the_name_was_ours() -> None:
    claim = NameClaim("a", TTL_S)
    before = [(float(now), 5.0) for now in range(8)]
    after = [(float(now), 5.0) for now in range(10, 18)]
    assert set(codes(claim, [*before, (9.0, None), *after])) == {exits.OK, exits.COORDINATION}


def test_the_last_message_names_the_node_and_the_cure() -> None:
    claim = NameClaim("n1", TTL_S)
    troubles = [claim.judge(5.0, float(now)) for now in range(20)]
    assert troubles[-1]
    assert "'n1' belongs to another node" in troubles[-1].message
    assert "a name of its own" in troubles[-1].message
