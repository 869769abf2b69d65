"""The ring between real processes: killed at every step, and in full flow."""

import itertools
import mmap
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.support.leaks import no_leaks
from tests.support.lean import lean
from tests.support.processes import DEADLINE_S, end_of
from workers.node.child import Child, spawn
from workers.pipeline import ring as ring_module
from workers.pipeline.ring import Bell, Ring
from workers.signals import StopFlag

N_FRAMES = 20_000
N_KILLS = 15


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with no_leaks():
        yield


def killed_at_step(step: int, work: Callable[[], None]) -> bool:
    """Run *work* in a child that kills itself before the bytecode instruction number *step* within the ring's module.

    Returns whether it was killed; False once *step* is past the last instruction.
    """
    seen = itertools.count()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != ring_module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(seen) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def main(_stop: StopFlag) -> int:
        sys._getframe().f_trace_opcodes = True  # Python 3.12 reports instructions only if one frame asked for it before
        sys.settrace(trace)
        work()
        sys.settrace(None)
        return 0

    code = end_of(spawn("victim", main))
    assert code in {0, -signal.SIGKILL}
    return code != 0


def take_all(ring: Ring) -> list[bytes]:
    return [bytes(payload) for payload in ring.take(1 << 30)]


def ring_before_its_end() -> Ring:
    """A ring of 128 bytes that is empty at position 104: the next frame of more than 16 bytes is moved to the front."""
    ring = Ring(128)
    for length in (40, 40):
        ring.try_publish(bytes(length))
    ring.try_publish(b"")
    take_all(ring)
    ring.commit()
    assert ring.written == ring.committed == 104
    return ring


@lean
def test_producer_killed_at_every_step_leaves_whole_frames_and_a_ring_to_go_on_with():
    payloads = [b"short", b"too long for the end"]
    outcomes = []
    for step in itertools.count():
        ring = ring_before_its_end()

        def publish(ring: Ring = ring) -> None:
            for payload in payloads:
                ring.try_publish(payload)

        killed = killed_at_step(step, publish)
        survived = take_all(ring)
        assert survived == payloads[: len(survived)]
        outcomes.append(len(survived))
        for payload in payloads[len(survived) :]:
            assert ring.try_publish(payload)
        assert survived + take_all(ring) == payloads
        ring.commit()
        assert ring.free == ring.capacity
        if not killed:
            break
    assert len(outcomes) > 100
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {0, 1, 2}


@lean
def test_consumer_killed_at_every_step_loses_nothing_and_repeats_nothing_committed():
    payloads = [b"first", b"second, which is longer", b"third"]
    outcomes = []
    for step in itertools.count():
        ring = ring_before_its_end()
        for payload in payloads:
            assert ring.try_publish(payload)
        n_written_out = memoryview(mmap.mmap(-1, 8)).cast("Q")

        def consume(ring: Ring = ring, n_written_out: memoryview = n_written_out) -> None:
            while taken := ring.take(len(payloads[0] + payloads[1])):
                n_written_out[0] += len(taken)
                ring.commit()

        killed = killed_at_step(step, consume)
        ring.reset_consumer()
        rest = take_all(ring)
        n_committed = len(payloads) - len(rest)
        assert rest == payloads[n_committed:]
        assert n_committed <= n_written_out[0]
        outcomes.append(n_committed)
        if not killed:
            break
    assert len(outcomes) > 100
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {0, 2, 3}


def payload_of(number: int) -> bytes:
    return number.to_bytes(4, "big") * (1 + number * 7919 % 500)


def publish_all(ring: Ring, data: Bell, space: Bell) -> int:
    for number in range(N_FRAMES):
        payload = payload_of(number)
        space.clear()
        while ring.try_publish(payload) is None:
            if not select.select([space], [], [], DEADLINE_S)[0]:
                return 1
            space.clear()
        data.ring()
    return 0


def test_frames_pass_between_two_processes_that_sleep_on_bells():
    ring, data, space = Ring(1 << 16), Bell(), Bell()
    producer = spawn("producer", lambda _stop: publish_all(ring, data, space), [data, space])
    number = 0
    while number < N_FRAMES:
        data.clear()
        payloads = ring.take(1 << 14)
        for payload in payloads:
            assert payload == payload_of(number)
            number += 1
        if payloads:
            ring.commit()
            space.ring()
        else:
            assert select.select([data], [], [], DEADLINE_S)[0], f"no wake-up after frame {number}"
    assert end_of(producer) == 0
    assert ring.free == ring.capacity
    data.close()
    space.close()


def consume_into(log: Path, ring: Ring, data: Bell, space: Bell, progress: Bell) -> int:
    """Write each frame's number to *log*, then commit, until the last one."""
    ring.reset_consumer()
    space.ring()
    with log.open("ab", buffering=0) as out:
        while True:
            data.clear()
            numbers = [bytes(payload[:4]) for payload in ring.take(1 << 12)]
            if numbers:
                out.write(b"".join(numbers))
                progress.ring()
                ring.commit()
                space.ring()
                if int.from_bytes(numbers[-1], "big") == N_FRAMES - 1:
                    return 0
            elif not select.select([data], [], [], DEADLINE_S)[0]:
                return 1


def kill_after(n_logged: int, log: Path, consumer: Child, progress: Bell) -> None:
    """Kill *consumer* somewhere in its work, once *log* has that many numbers."""
    while log.stat().st_size < 4 * n_logged:
        assert select.select([progress], [], [], DEADLINE_S)[0]
        progress.clear()
    consumer.signal(signal.SIGKILL)


def test_consumers_killed_in_full_flow_lose_no_frame_and_repeat_only_what_was_not_committed(tmp_path):
    ring, data, space, progress = Ring(1 << 14), Bell(), Bell(), Bell()
    bells = [data, space, progress]
    log = tmp_path / "numbers"
    log.touch()
    producer = spawn("producer", lambda _stop: publish_all(ring, data, space), bells)
    lives_end_at = []
    for life in range(N_KILLS + 1):
        consumer = spawn("consumer", lambda _stop: consume_into(log, ring, *bells), bells)
        if life < N_KILLS:
            kill_after(N_FRAMES * (life + 1) // (N_KILLS + 1), log, consumer, progress)
        assert end_of(consumer) == (-signal.SIGKILL if life < N_KILLS else 0)
        lives_end_at.append(log.stat().st_size // 4)
    assert end_of(producer) == 0
    raw = log.read_bytes()
    numbers = [int.from_bytes(raw[at : at + 4], "big") for at in range(0, len(raw), 4)]
    assert list(dict.fromkeys(numbers)) == list(range(N_FRAMES))
    went_back_at = [at for at in range(1, len(numbers)) if numbers[at] != numbers[at - 1] + 1]
    assert set(went_back_at) <= set(lives_end_at)
    for bell in bells:
        bell.close()
