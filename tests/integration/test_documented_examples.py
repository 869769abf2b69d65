"""The library's examples in the documents run as they are written; only the address of the store is another."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import channelindex
from tests.support.indexing import Row, SmallIndex

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = 'open_index("redis://10.0.0.21:6379/0", name="channels")'


@pytest.fixture
def index(redis_url: str) -> Iterator[SmallIndex]:
    with closing(SmallIndex(redis_url)) as made:
        epoch = made.begin()
        made.write(epoch, [Row("orders", 0, 1, "order-1"), Row("orders", 2, 2, "order-2"), Row("rest", 0, 3, "x")])
        made.advance(epoch, {0: 3, 2: 2})
        yield made


@pytest.mark.parametrize("document", ["README.md", "docs/library.md"])
def test_the_librarys_example_prints_what_changed(
    document: str, redis_url: str, index: SmallIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [text for text in examples if "import channelindex" in text]
    assert WRITTEN in example
    exec(example.replace(WRITTEN, f"open_index({redis_url!r}, name={index.name!r})"), {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["order-1", "order-2"]


def test_every_public_name_is_there_and_documented() -> None:
    text = (ROOT / "docs/library.md").read_text(encoding="utf-8")
    for name in channelindex.__all__:
        assert getattr(channelindex, name).__doc__, name
        assert re.search(rf"`{name}\b", text), name
    assert set(channelindex.__all__) <= set(dir(channelindex))
    with pytest.raises(AttributeError):
        channelindex.nothing_of_this_name  # noqa: B018 the access is what is tested


def test_a_closed_index_may_be_closed_again(redis_url: str, index: SmallIndex) -> None:
    opened = channelindex.open_index(redis_url, index.name)
    with opened:
        assert len(opened.changes(["orders"]).entries) == 2
    opened.close()
