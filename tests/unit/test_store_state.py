"""What a Redis says of itself becomes a line that names what is full."""

from typing import Any

import pytest

from workers.cli.store_state import DISK, MEMORY, describe_server, problems, store_line

INFO = (
    "# Memory\r\nused_memory:{used}\r\nmaxmemory:{limit}\r\n"
    "# Stats\r\ninstantaneous_ops_per_sec:70\r\n# Persistence\r\naof_last_write_status:{aof}\r\n"
)


class Server:
    """Answers INFO with *text*."""

    def __init__(self, used: int, limit: int, aof: str = "ok") -> None:
        self._text = INFO.format(used=used, limit=limit, aof=aof)

    def execute(self, *_: object) -> bytes:
        return self._text.encode()


class Servers:
    def __init__(self, *servers: Server) -> None:
        self._servers = servers

    def servers(self) -> tuple[Server, ...]:
        return self._servers


@pytest.mark.parametrize(
    ("servers", "full", "line"),
    [
        ([Server(3 << 20, 0)], None, "3.0 MB, 70 operations per second"),
        ([Server(3 << 20, 4 << 20)], None, "3.0 MB of 4.0 MB, 70 operations per second"),
        (
            [Server(4 << 20, 4 << 20)],
            MEMORY,
            "4.0 MB of 4.0 MB, 70 operations per second; its memory is FULL (maxmemory)",
        ),
        (
            [Server(1 << 20, 0), Server(3 << 20, 2 << 20)],
            MEMORY,
            "4.0 MB, 140 operations per second; its memory is FULL (maxmemory)",
        ),
        (
            [Server(1 << 20, 0), Server(1 << 20, 0, aof="err")],
            DISK,
            "2.0 MB, 140 operations per second; its DISK is full or fails",
        ),
    ],
)
def test_a_store_that_takes_no_writes_is_named_with_its_reason(servers: Any, full: str | None, line: str) -> None:
    store = {"read_ms": 1.0} | describe_server(Servers(*servers))  # type: ignore[arg-type]  # the two calls of it
    assert store["full"] == full
    assert store_line(store) == f"store answers in 1 ms, {line}"
    assert len(problems(store)) == (full is not None)


def test_of_a_store_that_cannot_be_asked_nothing_is_said() -> None:
    store = {"read_ms": 1.0} | describe_server(None)
    assert store_line(store) == "store answers in 1 ms"
    assert problems(store) == []
