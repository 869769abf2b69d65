"""Waiting for descriptors ends when one is readable, or when the time is over."""

import os
import resource
import socket

import pytest

from channelindex.polling import wait_readable


def test_nothing_to_read_is_false_at_the_end_of_the_time():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not wait_readable([ours], 0.0)
        assert not wait_readable([ours], -1.0)
        assert not wait_readable([], 0.001)


def test_what_is_readable_or_closed_ends_the_wait():
    ours, theirs = socket.socketpair()
    quiet, other = socket.socketpair()
    with ours, theirs, quiet, other:
        theirs.send(b"x")
        assert wait_readable([quiet, ours])
        ours.recv(1)
        theirs.close()
        assert wait_readable([quiet.fileno(), ours.fileno()])


@pytest.fixture
def many_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_descriptors")
def test_descriptors_above_1023_can_be_waited_for():
    reader, writer = os.pipe()
    high = 1500
    os.dup2(reader, high)
    try:
        assert not wait_readable([high], 0.0)
        os.write(writer, b"x")
        assert wait_readable([high])
    finally:
        for descriptor in (reader, writer, high):
            os.close(descriptor)
