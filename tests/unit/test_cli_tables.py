"""Tables of commands: colours for terminals alone, ranges of partitions, clocks in columns."""

import pytest

from coordinator.cluster_state import MemberState, PartitionState
from workers.cli.inspect import clock_lines
from workers.cli.node_state import describe_node, tinted
from workers.cli.output import RED, Tinted, table_lines
from workers.cli.partitions import _alike, _row


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "running"),
        ({"status": ""}, "starting"),
        ({"status": '{"state":"reloading"}'}, "reloading"),
        ({"draining": True}, "draining"),
        ({"draining": True, "drained": True, "n_partitions": 0}, "drained"),
        ({"silent_s": 5.1}, "silent"),
        ({"alive": False, "draining": True}, "dead"),
    ],
)
def test_every_command_has_one_word_for_a_state(changes, state):
    member = MemberState("a", True, False, 9.0, 1.0, 4, '{"state":"running"}')._replace(**changes)
    assert describe_node(member, 10.0)["state"] == state


def test_a_colour_is_around_the_padded_cell_and_only_on_a_terminal():
    rows = [(Tinted("dead", RED), "x"), (tinted("running"), "y")]
    assert table_lines(("state", "n"), rows, 0) == ["state    n", "dead     x", "running  y"]
    coloured = table_lines(("state", "n"), rows, 0, colours=True)
    assert coloured == ["state    n", "\x1b[31mdead   \x1b[0m  x", "running  y"]


def test_a_coloured_cell_cannot_smuggle_anything_into_the_terminal():
    (line,) = table_lines(("a",), [(Tinted("\x1b[2J", RED),)], 0, colours=True)[1:]
    assert line.count("\x1b") == 2


def test_partitions_of_one_fate_are_one_row():
    states = [PartitionState("a", 10.0 + number) for number in range(4)]
    states += [PartitionState("", None), PartitionState("a", 3.0, last="b", reason="died")]
    rows = [_row(numbers, alike) for numbers, alike in _alike(list(enumerate(states)))]
    assert rows == [
        ("0-3", 4, "a", "10 to 13 s", "-", "-"),
        ("4", 1, "NOBODY", "?", "-", "-"),
        ("5", 1, "a", "3 s", "b", "died"),
    ]


def test_a_clock_is_shown_in_columns_that_fit():
    clock = {vb: vb * 1000 for vb in range(1024)}
    lines = clock_lines(clock, 80)
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["vb", "0:", "0", "vb", "1:", "1000", "vb", "2:", "2000", "vb", "3:", "3000"]
    assert len({len(line) for line in lines}) == 1
    assert clock_lines({}, 80) == ["  its clock is empty"]
