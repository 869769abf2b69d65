"""A call in a process of its own: its result, its error, and its end come back, and nothing stays behind."""

import os

import pytest

from channelindex.errors import IndexMismatch, InvariantBroken
from tests.support.leaks import no_leaks
from workers.node.run_in_child import run_in_child


def test_the_result_comes_from_another_process_and_nothing_is_left():
    with no_leaks():
        assert run_in_child("test", os.getpid) != os.getpid()


def test_an_error_of_ours_is_raised_here():
    def fail():
        raise IndexMismatch("another bucket")

    with no_leaks(), pytest.raises(IndexMismatch, match="another bucket"):
        run_in_child("test", fail)


def test_a_child_that_dies_is_an_error_with_its_code():
    with no_leaks(), pytest.raises(InvariantBroken, match="code 7"):
        run_in_child("test", lambda: os._exit(7))


def test_a_large_result_does_not_block():
    assert run_in_child("test", lambda: b"x" * 1_000_000) == b"x" * 1_000_000
