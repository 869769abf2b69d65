"""A call in a process of its own, for a caller that goes on to fork: nothing of what the call opened or started stays.

The SDK of a bucket is why: it starts threads, and keeps descriptors that a forked child would close under it.
"""

from collections.abc import Callable
from multiprocessing import Pipe
from typing import TypeVar

from channelindex import exits
from channelindex.errors import ChannelIndexError, InvariantBroken
from channelindex.polling import wait_readable
from workers.node.child import spawn

_T = TypeVar("_T")


def run_in_child(role: str, function: Callable[[], _T]) -> _T:
    """Run *function* in a forked child named *role* and return its result; errors of this project are raised here."""
    ours, its = Pipe(duplex=False)

    def main(_stop: object) -> int:
        try:
            answer: object = function()
        except ChannelIndexError as error:
            answer = error
        its.send(answer)
        return exits.OK

    with ours:
        with its:
            child = spawn(role, main, [its])
        try:
            answer = ours.recv()
        except EOFError:
            answer = None
        wait_readable([child])  # its end, which the pipe's end comes just before
        code = child.reap()
    if isinstance(answer, ChannelIndexError):
        raise answer
    if code != exits.OK:
        raise InvariantBroken(f"{role} ended with code {code} and without an answer")
    result: _T = answer
    return result
