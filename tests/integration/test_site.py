"""`make site` makes a page of every document and loses no link; code in the documents is code."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.pages import Fence, fences_of

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LOADED = re.compile(
    r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]* href="(?:https?:)?//|url\(["\']?https?:'
)


def build(source: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of *source* as `make site` does."""
    (line,) = re.findall(r"^\t@\$\(BIN\)/python -m (sphinx .*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    arguments = line.replace("build/", f"{to}/").split()
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, check=False, timeout=300)


def test_every_document_becomes_a_page_that_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    site = tmp_path / "site"
    for document in DOCUMENTS:
        page = (site / document.relative_to(ROOT)).with_suffix(".html").read_text(encoding="utf-8")
        assert not LOADED.search(page), document
    assert (site / "search.html").exists()


@pytest.mark.parametrize("link", ["gone.md", "index.md#gone"])
def test_a_link_that_leads_nowhere_makes_no_site(link: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path / "docs")
    (tmp_path / "docs" / "index.md").write_text(f"# Title\n\n[text]({link})\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "build")
    assert done.returncode != 0
    assert "gone" in done.stderr


def parse(fence: Fence) -> None:
    """Read *fence* as its language is read; others are not looked at."""
    readers: dict[str, Callable[[str], object]] = {
        "python": ast.parse,
        "toml": tomllib.loads,
        "yaml": yaml.safe_load,
        "json": lambda text: [json.loads(line) for line in text.splitlines()],
        "sh": _parsed_by_bash,
    }
    if fence.language in readers:
        readers[fence.language](fence.text)


def _parsed_by_bash(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_in_a_document_is_code(document: Path) -> None:
    for fence in fences_of(document.read_text(encoding="utf-8")):
        try:
            parse(fence)
        except (SyntaxError, ValueError, yaml.YAMLError) as error:
            raise AssertionError(f"{document.name}: {error}\n{fence.text}") from error


def test_what_is_no_code_is_found() -> None:
    with pytest.raises(AssertionError):
        parse(Fence("", "sh", "channelindex 'a\n"))
    with pytest.raises(SyntaxError):
        parse(Fence("", "python", "a -> b\n"))
