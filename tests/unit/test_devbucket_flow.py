"""Flow control and no-ops of the dev bucket, on a clock of the test's own."""

import json

import pytest

from channelindex import mcbp
from channelindex.mcbp import Op
from devbucket.flow import FlowWindow, NoopKeeper
from devbucket.replies import HangUp
from tests.support.shared import shared_path


def read_noop_recording():
    with shared_path("golden/h_noop.jsonl").open() as file:
        return [json.loads(line) for line in file]


def opaque_of(raw: bytes) -> int:
    taken = mcbp.take_frame(raw)
    assert taken is not None
    assert taken[0].opcode == Op.DCP_NOOP
    return taken[0].opaque


@pytest.mark.parametrize("conn", ["dcp1", "dcp2"])
def test_noops_come_and_the_dead_are_found_when_the_recording_says(conn):
    """A real server looks at the time once a second, so it may be one late."""
    lines = [line for line in read_noop_recording() if line["conn"] == conn]
    keeper = NoopKeeper(idle_timeout_s=10, now=lines[0]["t"])
    keeper.set_interval(1)
    keeper.enable(lines[0]["t"], on=True)
    for line in lines:
        raw = bytes.fromhex(line["hex"])
        if line["dir"] == "s2c" and line["opcode"] == "0x5c":
            deadline = keeper.deadline()
            assert deadline == pytest.approx(line["t"], abs=1.1)
            assert keeper.tick(max(deadline or 0, line["t"])) == raw
        elif line["dir"] == "event":
            assert keeper.deadline() == pytest.approx(line["t"], abs=1.1)
            with pytest.raises(HangUp):
                keeper.tick(line["t"])
        elif line["dir"] == "c2s":
            assert keeper.tick(line["t"] - 0.5) == b""
            keeper.heard(line["t"])
            if line["opcode"] == "0x5c":
                keeper.answered(opaque_of(raw))


def test_no_noops_unless_enabled():
    keeper = NoopKeeper(idle_timeout_s=10, now=0)
    assert keeper.deadline() is None
    assert keeper.tick(1000) == b""


def test_unexpected_noop_response_hangs_up():
    keeper = NoopKeeper(idle_timeout_s=100, now=0)
    keeper.enable(0, on=True)
    with pytest.raises(HangUp):
        keeper.answered(1)
    opaque = opaque_of(keeper.tick(20))
    with pytest.raises(HangUp):
        keeper.answered(opaque + 1)
    keeper.answered(opaque)
    with pytest.raises(HangUp):
        keeper.answered(opaque)


def test_window_without_a_buffer_size_has_room_for_ever():
    window = FlowWindow()
    window.sent(1 << 40)
    assert window.room() > 1 << 40


def test_window_counts_and_tolerates_too_much_acknowledgement():
    window = FlowWindow()
    window.buffer_bytes = 1000
    window.sent(1084)
    assert window.room() < 0
    window.acknowledged(100)
    assert window.room() == 16
    window.acknowledged(5000)
    assert window.room() == 1000
