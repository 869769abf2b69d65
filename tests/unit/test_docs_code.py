"""What the documents show as code is right: commands exist with their options, examples parse, keys are known."""

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import yaml

from channelindex.settings import SETTINGS
from tests.support import house
from tests.unit.test_docs import DOCUMENTS, ROOT
from workers.cli import COMMANDS, build_parser, parse

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
SHELL = {"", "sh"}
INLINE_CODE = "inline"
SECTIONS = {key.partition(".")[0] for key in SETTINGS}
FILES = {"index.html", "index.md", "node.py", "log.py"}
_BEFORE_COMMAND = re.compile(r"^([|&;()]+|\w+=.*)$")
_END_OF_COMMAND = re.compile(r"^[|&;<>()]+$")


def code_of(document: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each block, and of each piece of code within a line, whose language is "inline"."""
    text = document.read_text(encoding="utf-8")
    for _, language, block in FENCE.findall(text):
        yield language, block
    for piece in INLINE.findall(FENCE.sub("", text)):
        yield INLINE_CODE, " ".join(piece.split())


def commands_in(text: str, program: str) -> Iterator[list[str]]:
    """The words behind *program* wherever a line of *text* calls it and not only names it."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        with suppress(ValueError):  # an apostrophe: prose, or an address between quotes on two lines
            words = list(lexer)
            called = [at for at, word in enumerate(words) if word == program or word.endswith(f"/{program}")]
            starts = [at for at in called if not at or _BEFORE_COMMAND.match(words[at - 1])]
            for start in starts:
                end = next((at for at in range(start, len(words)) if _END_OF_COMMAND.match(words[at])), len(words))
                yield words[start + 1 : end]


@cache
def options_of(command: str) -> frozenset[str]:
    """All options of *command*, with those of its own commands."""
    parser = build_parser([command])[1][command]
    nested = [
        choice for action in parser._actions if isinstance(action.choices, dict) for choice in action.choices.values()
    ]
    return frozenset(name for each in (parser, *nested) for name in each._option_string_actions)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_shown_exist_with_their_options(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clock.json").write_text('{"0": 1}', encoding="utf-8")  # an example reads it at once
    monkeypatch.chdir(tmp_path)
    for language, code in code_of(document):
        if language not in SHELL | {INLINE_CODE}:
            continue
        for words in commands_in(code, "channelindex"):
            if not words or words[0].startswith(("-", "…")) or words == ["COMMAND"]:
                continue
            assert words[0] in COMMANDS, f"{document.name} shows channelindex {' '.join(words)}"
            named = {word.strip("[]").partition("=")[0] for word in words if word.startswith(("--", "[--"))}
            assert named <= options_of(words[0]), f"{document.name} shows channelindex {' '.join(words)}"
            if language in SHELL and "--help" not in words and "…" not in words:
                try:
                    parse(words)
                except SystemExit:
                    pytest.fail(f"{document.name} shows channelindex {' '.join(words)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_variables_of_make_that_are_shown_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for language, code in code_of(document):
        if language not in SHELL | {INLINE_CODE}:
            continue
        for words in [*commands_in(code, "python"), *commands_in(code, "python3")]:
            if words[:1] == ["-m"] and words[1].startswith(("benchmarks", "tests", "channelindex")):
                path = ROOT / words[1].replace(".", "/")
                assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), words
                sources = [path.with_suffix(".py")] if not path.is_dir() else list(path.rglob("*.py"))
                text = "".join(source.read_text(encoding="utf-8") for source in sources)
                for option in [word.partition("=")[0] for word in words if word.startswith("--")]:
                    assert f'"{option}"' in text, f"{document.name} shows {' '.join(words)}"
        for words in commands_in(code, "make"):
            for variable in re.findall(r"\b([A-Z_]{2,})=", " ".join(words)):
                assert re.search(rf"\b{variable}\b", makefile), f"{document.name} shows make {' '.join(words)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_in_other_languages_parse(document: Path) -> None:
    for language, code in code_of(document):
        match language:
            case "python":
                ast.parse(code)
            case "yaml":
                yaml.safe_load(code)
            case "json":
                [json.loads(line) for line in code.splitlines()]
            case "toml":
                for section, values in tomllib.loads(code).items():
                    assert {f"{section}.{key}" for key in values} <= set(SETTINGS), document.name


def test_keys_and_events_that_are_named_exist() -> None:
    """In code of the form `section.name`; but for what is past (the changelog) and for fields of JSON."""
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "coordinator" / "lua").glob("*.lua"))
    of_history = set(re.findall(r"'(node\.[a-z]+)'", scripts))
    known = SETTINGS.keys() | house.logged_events() | of_history | {"log.suppressed"} | FILES
    form = re.compile(rf"({'|'.join(SECTIONS)})\.[a-z_0-9]+")
    for document in DOCUMENTS:
        names = {code.partition(" = ")[0] for language, code in code_of(document) if language == INLINE_CODE}
        unknown = {name for name in names if form.fullmatch(name)} - known
        assert not unknown or document.name in {"CHANGELOG.md", "json.md"}, f"{document.name} names {unknown}"
