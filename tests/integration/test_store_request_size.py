"""A Redis that takes requests of a limited size only, as hosted ones do."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from channelindex.blocks import iter_entries
from channelindex.errors import OutcomeUnknown, RequestTooLarge
from channelindex.stores.base import ChannelAppend
from channelindex.stores.call_limit import split
from tests.support.ports import free_port
from tests.support.redis_cluster import until
from tests.support.redis_servers import answers, launch
from tests.support.stores import META, Backend, all_entries, append, entry


@pytest.fixture
def limited_url(tmp_path: Path) -> Iterator[str]:
    """A server that takes arguments of at most 1 MiB."""
    port = free_port()
    server = launch(tmp_path, port, 'save ""', "proto-max-bulk-len 1mb")
    with redis.Redis(port=port) as client:
        until(lambda: answers(client))
    yield f"redis://127.0.0.1:{port}"
    server.kill()
    server.wait()


def _batch(first: int) -> list[ChannelAppend]:
    """2.1 MB in 41 channels, one of which has a third of it."""
    large = append("large", 1, *(entry(0, first + n, key="k" * 200) for n in range(3500)))
    return [large, *(append(f"c{c}", 1, *(entry(0, first + n, key="k" * 200) for n in range(150))) for c in range(40))]


def test_batches_that_are_too_large_for_the_server_are_halved_and_nothing_is_lost(limited_url, caplog):
    backend = Backend(limited_url)
    backend.owner().create_or_check(META)
    writer = backend.writer()
    deadline = time.monotonic() + 60
    with caplog.at_level(logging.WARNING):
        for first in (1, 10_001):  # the second is to blocks that the writer knows
            while time.monotonic() < deadline:
                try:
                    writer.write(_batch(first))
                    break
                except OutcomeUnknown:
                    continue  # the connection was reset while the first request was sent: a batch writer repeats it
            else:
                raise AssertionError("the batch was never written")
    reader = backend.reader()
    assert {each.seqno for _, each in all_entries(reader, "large")} == {*range(1, 3501), *range(10_001, 13_501)}
    for number in range(40):
        assert {each.seqno for _, each in all_entries(reader, f"c{number}")} == {*range(1, 151), *range(10_001, 10_151)}
    refusals = [record for record in caplog.records if "request_too_large" in record.getMessage()]
    n_refusals = len(refusals)
    assert n_refusals >= 1
    writer.write(_batch(20_001))
    assert len([r for r in caplog.records if "request_too_large" in r.getMessage()]) == n_refusals, "it is remembered"
    backend.close()


def test_an_entry_that_is_too_large_by_itself_is_an_error(limited_url, monkeypatch):
    backend = Backend(limited_url)
    operations = backend.operations()

    def refuse(appends):
        raise RequestTooLarge("too large")

    monkeypatch.setattr(operations, "append_and_locate", refuse)
    with pytest.raises(RequestTooLarge):
        backend.writer(operations=operations).write([append("A", 1, *(entry(0, n) for n in range(1, 100)))])
    backend.close()


@pytest.mark.parametrize("n_bytes", [1, 30, 100, 1000, 10**6])
def test_a_split_append_has_its_entries_in_their_order(n_bytes):
    whole = append("A", 7, *(entry(n % 3, n) for n in range(1, 50)))
    pieces = split(whole, n_bytes)
    assert b"".join(piece.entries for piece in pieces) == whole.entries
    for piece in pieces:
        assert piece[:3] == whole[:3]
        assert len(piece.entries) <= n_bytes or len(list(iter_entries(piece.entries))) == 1
