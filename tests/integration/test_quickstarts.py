"""The pages for the first ten minutes of each role work word for word; only the ports are others."""

import re
from pathlib import Path

import pytest

from tests.support.pages import Session, shows
from tests.support.ports import free_port

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("quickstart-operator.md", "quickstart-application.md", "quickstart-decoder.md", "stream.md")
PORTS = ("6379", "11210")


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_a_page_works_word_for_word(name: str, tmp_path: Path) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    for port in PORTS:
        page = re.sub(rf"\b{port}\b", str(free_port()), page)
    with Session(tmp_path) as session:
        session.follow(page)


def test_what_a_page_shows_is_compared() -> None:
    printed = "n1    running  32\nn2    drained  0\nended\n"
    assert shows(printed, "n1 running 32\nended\n")
    assert shows(printed, "… drained …\n")
    assert not shows(printed, "n1 running\n")
    assert not shows(printed, "ended\nn1 running 32\n")
