"""A consumer that keeps its token: what it is told after a crash, a break and a store that was away."""

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from channelindex import ChangesReader, TokenFile, TokenInRedis, TokenStore, open_index
from channelindex.errors import AuthenticationFailed, InputInvalid, OutputFailed, StoreUnavailable, TokenInvalid
from tests.support.indexing import Row, SmallIndex


@pytest.fixture
def index(redis_url: str) -> Iterator[SmallIndex]:
    with closing(SmallIndex(redis_url)) as made:
        epoch = made.begin()
        made.write(epoch, [Row("a", 0, n + 1, f"doc{n}") for n in range(30)])
        made.advance(epoch, {0: 30})
        yield made


@pytest.fixture
def reader(redis_url: str, index: SmallIndex) -> Iterator[ChangesReader]:
    with open_index(redis_url, index.name) as opened:
        yield opened


@pytest.fixture(params=["file", "redis"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[TokenStore]:
    if request.param == "file":
        yield TokenFile(tmp_path / "orders.since")
        return
    with closing(TokenInRedis(redis_url, "shop:orders")) as store:
        yield store


def ids(pages) -> list[list[str]]:
    return [[entry.id for entry in page.entries] for page in pages]


def test_what_was_not_finished_is_sent_again_and_nothing_else(reader: ChangesReader, kept: TokenStore) -> None:
    assert kept.load() is None
    first = ids(itertools.islice(reader.consume(["a"], kept, limit=10), 2))
    assert first == [[f"doc{n}" for n in range(10)], [f"doc{n}" for n in range(10, 20)]]
    again = ids(itertools.islice(reader.consume(["a"], kept, limit=10), 2))
    assert again == [first[1], [f"doc{n}" for n in range(20, 30)]]


def test_now_stays_the_same_now_over_a_restart(index: SmallIndex, reader: ChangesReader, kept: TokenStore) -> None:
    assert list(reader.consume(["a"], kept, "now", stop=lambda: True)) == []
    epoch = index.begin()
    index.write(epoch, [Row("a", 0, 31, "news")])
    index.advance(epoch, {0: 31})
    assert ids(itertools.islice(reader.consume(["a"], kept, "now"), 1)) == [["news"]]


def test_a_token_of_other_channels_is_refused(reader: ChangesReader, kept: TokenStore) -> None:
    next(itertools.islice(reader.consume(["a"], kept, limit=10), 1, None))
    with pytest.raises(TokenInvalid, match="other channels"):
        next(reader.consume(["a", "b"], kept))


def test_a_kept_token_that_cannot_be_saved_now_is_saved_later(reader: ChangesReader) -> None:
    class Moody:
        def __init__(self) -> None:
            self.saved: list[str] = []
            self.failures = 3

        def load(self) -> str | None:
            return None

        def save(self, token: str) -> None:
            self.failures -= 1
            if self.failures >= 0:
                raise StoreUnavailable("away")
            self.saved.append(token)

    kept, pauses = Moody(), list[float]()
    pages = list(itertools.islice(reader.consume(["a"], kept, limit=10, sleep=pauses.append), 3))
    assert kept.saved == [page.since for page in pages[:2]]
    assert len(pauses) == 3


CONSUMER = """
import sys, channelindex
kept = channelindex.TokenFile(sys.argv[3])
with channelindex.open_index(sys.argv[1], sys.argv[2]) as index:
    for page in index.consume(["a"], kept, limit=1):
        print(page.entries[0].id, flush=True)
"""


def test_a_consumer_that_is_killed_at_any_moment_misses_nothing(
    redis_url: str, index: SmallIndex, tmp_path: Path
) -> None:
    path, told = tmp_path / "since", list[str]()
    for n_lines in (1, 3, 7, 19):
        arguments = [sys.executable, "-c", CONSUMER, redis_url, index.name, str(path)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as consumer:
            assert consumer.stdout
            told += [consumer.stdout.readline().strip() for _ in range(n_lines)]
            consumer.send_signal(signal.SIGKILL)
            told += consumer.stdout.read().split()
        token = TokenFile(path).load()
        assert token is None or len(token) > 20
    deadline = time.monotonic() + 60
    with open_index(redis_url, index.name) as reader:
        while set(told) < {f"doc{n}" for n in range(30)}:
            assert time.monotonic() < deadline
            told += next(iter(ids(itertools.islice(reader.consume(["a"], TokenFile(path)), 1))))
    firsts = list(dict.fromkeys(told))
    assert firsts == [f"doc{n}" for n in range(30)]


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
def test_a_file_that_is_no_token_is_an_error_and_no_new_beginning(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "since"
    path.write_bytes(content)
    with pytest.raises(InputInvalid, match="since"):
        TokenFile(path).load()


def test_a_file_that_cannot_be_written_is_an_error_and_the_old_one_stays(tmp_path: Path) -> None:
    kept = TokenFile(tmp_path / "since")
    kept.save("old")
    (tmp_path / "since.next").mkdir()
    with pytest.raises(OutputFailed, match="cannot be written"):
        kept.save("new")
    assert kept.load() == "old"
    with pytest.raises(OutputFailed):
        TokenFile(tmp_path / "absent" / "since").save("new")


def test_a_redis_that_is_away_or_refuses_is_an_error(redis_url: str) -> None:
    with closing(TokenInRedis("redis://127.0.0.1:1/0", "k")) as away, pytest.raises(StoreUnavailable):
        away.load()
    refusing = redis_url.replace("unix://", "unix://nobody:wrong@")
    with closing(TokenInRedis(refusing, "k")) as refused, pytest.raises(AuthenticationFailed):
        refused.save("t")
