"""A few seconds of `make fuzz`, with other cases in every run."""

import random
import time

import pytest

from tests.fuzz.__main__ import Target
from tests.fuzz.documents import DocumentTarget
from tests.fuzz.frames import FrameTarget
from tests.fuzz.kernel import KernelDocumentTarget, KernelFrameTarget
from tests.fuzz.kernel_writer import KernelWriterTarget
from tests.support.kernel_pairs import needs_kernel

SLICE_S = 3.0
LEAST_CASES = 300
"""Of so many some are rejected and some are not, by any chance, however little a busy machine does in a slice."""


@pytest.mark.parametrize("kind", [FrameTarget, DocumentTarget])
def test_mutated_input_is_rejected_and_nothing_else_happens(kind: type[Target]) -> None:
    run_for_a_while(kind)


@pytest.mark.parametrize("kind", [KernelFrameTarget, KernelDocumentTarget, KernelWriterTarget])
def test_mutated_input_is_to_the_kernel_what_it_is_to_python(kind: type[Target]) -> None:
    needs_kernel()
    run_for_a_while(kind)


def run_for_a_while(kind: type[Target]) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    target = kind(seed)
    ends_at = time.monotonic() + SLICE_S
    number = 0
    while time.monotonic() < ends_at or number < LEAST_CASES:
        target.run(number)
        number += 1
    assert 0 < target.n_rejected < number
