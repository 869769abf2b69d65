"""How far the index is behind: counted where it can be, unknown where it cannot, never 0 by silence."""

from typing import Any

import pytest

from workers.cli.index_lag import describe_lag, lag_line, problems
from workers.cli.node_state import is_heard

STABLE = (10, 10, 20, 20)
"""Of four vbuckets in two partitions."""


def node(name: str, *, heard: bool = True, silent_s: float = 0.5, **status: float) -> dict[str, Any]:
    return {
        "node": name,
        "heard": heard,
        "alive": True,
        "silent_s": silent_s,
        "status": {"lag": 0, "lag_s": 0.0} | status,
    }


def partitions(*owners: str | None, since_s: float | None = 40.0) -> list[dict[str, Any]]:
    return [{"partition": number, "owner": owner, "since_s": since_s} for number, owner in enumerate(owners)]


def test_the_bucket_counts_what_waits() -> None:
    lag = describe_lag([node("a", lag_s=2.5)], partitions("a", "a"), STABLE, {0: 13, 1: 10, 2: 20, 3: 21})
    assert (lag["changes"], lag["seconds"], lag["of"], lag["counted_by"]) == (4, 2.5, 64, "bucket")


def test_a_stable_clock_ahead_of_the_answer_is_no_negative_lag() -> None:
    assert describe_lag([node("a")], partitions("a", "a"), STABLE, dict.fromkeys(range(4), 5))["changes"] == 0


def test_what_waits_for_a_silent_owner_has_waited_as_long_as_it_is_silent() -> None:
    nodes = [node("a", lag_s=1.0), node("b", heard=False, silent_s=8.0)]
    lag = describe_lag(nodes, partitions("a", "b"), STABLE, {0: 10, 1: 10, 2: 25, 3: 20})
    assert (lag["changes"], lag["seconds"], lag["unheard"], lag["unheard_s"]) == (5, 8.0, [1], 8.0)


def test_a_silent_owner_without_anything_waiting_makes_no_lag() -> None:
    nodes = [node("a"), node("b", heard=False, silent_s=8.0)]
    assert describe_lag(nodes, partitions("a", "b"), STABLE, dict(enumerate(STABLE)))["seconds"] == 0.0


@pytest.mark.parametrize("owner", [None, "dead"])
def test_without_the_bucket_a_partition_that_nobody_reports_is_unknown(owner: str | None) -> None:
    lag = describe_lag([node("a", lag=7, lag_s=1.0)], partitions("a", owner), STABLE, None)
    assert (lag["changes"], lag["seconds"], lag["counted_by"]) == (None, None, "nodes")
    assert "unknown" in lag_line(lag, 0)
    state = {"lag": lag, "nodes": [node("a")]}
    assert len(problems(state, 60)) == 2


def test_without_the_bucket_the_reports_of_all_owners_are_the_lag() -> None:
    lag = describe_lag([node("a", lag=7, lag_s=1.0), node("b", lag=2)], partitions("a", "b"), STABLE, None)
    assert (lag["changes"], lag["seconds"]) == (9, 1.0)
    assert problems({"lag": lag, "nodes": [node("a")]}, 0.5) == [
        "the index is 1.0 s behind, more than 0.5 s (--max-lag)"
    ]
    assert problems({"lag": lag, "nodes": [node("a")]}, 5.0) == []


def test_progress_is_a_share_and_a_time() -> None:
    lag = describe_lag([node("a", lag_s=3.0)], partitions("a", "a"), STABLE, {0: 10, 1: 10, 2: 20, 3: 70})
    assert lag_line(lag, 10.0) == "lag 50 changes, 3.0 s; 54.5 % of 110, 5 s left"
    assert lag_line(lag, 0.0).endswith("not moving")
    nearly = lag | {"changes": 1, "of": 10**9}
    assert "99.9 %" in lag_line(nearly, 0.0)


def test_a_node_is_silent_after_a_tick_and_a_half() -> None:
    assert is_heard({"alive": True, "silent_s": 4.9}, 10.0)
    assert not is_heard({"alive": True, "silent_s": 5.1}, 10.0)
    assert not is_heard({"alive": False, "silent_s": 0.0}, 10.0)
