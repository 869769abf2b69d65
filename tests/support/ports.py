"""Ports of loopback for servers that have to be told theirs: free now, and left to this process by other tests."""

import random
import socket

_RANGE = range(12_000, 22_000)
"""Below those that the kernel gives to connections going out, and with their cluster buses too."""
_random = random.SystemRandom()  # the tests of two processes begin with the same seed
_claims: list[socket.socket] = []
"""An abstract unix socket for each claimed port; the kernel removes it with the process, however that ends."""


def free_port(*also: int) -> int:
    """Claim a port that is free, as are those that lie *also* above it."""
    while True:
        port = _random.choice(_RANGE)
        if all(_is_free(port + offset) for offset in (0, *also)) and _claim(port):
            return port


def free_ports(count: int, *also: int) -> list[int]:
    """Claim *count* ports."""
    return [free_port(*also) for _ in range(count)]


def _claim(port: int) -> bool:
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0channelindex-test-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
