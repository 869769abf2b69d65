"""The audit of dependencies: what is found fails, and nothing asked is not taken for nothing found."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

AUDIT = Path(__file__).resolve().parents[2] / ".ci" / "audit.py"
CLEAN = {"name": "redis", "version": "8.1.0", "vulns": []}
HOLED = {"name": "orjson", "version": "3.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1"]}]}
UNKNOWN = {"name": "msgspec", "skip_reason": "Dependency not found on PyPI"}


@pytest.fixture
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", AUDIT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        ([CLEAN], 0, "1 packages audited, 0 known vulnerabilities"),
        ([CLEAN, HOLED], 1, "orjson 3.0: PYSEC-1, fixed in 3.1"),
        ([CLEAN, UNKNOWN], 0, "not audited: msgspec"),
        ([UNKNOWN], 0, "NOT AUDITED"),
        ([], 0, "NOT AUDITED"),
    ],
)
def test_what_was_found_and_what_was_not_asked_is_reported(
    audit: ModuleType, packages: list[dict[str, Any]], code: int, says: str
) -> None:
    lines, outcome = audit.judge({"dependencies": packages})
    assert outcome == code
    assert any(says in line for line in lines)


@pytest.mark.parametrize("answer", [None, {"dependencies": [UNKNOWN]}])
def test_where_the_database_is_away_one_package_is_asked_for_and_no_more(
    audit: ModuleType, answer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []

    def ask(arguments: list[str]) -> Any:
        asked.append(arguments)
        return answer

    monkeypatch.setattr(audit, "ask", ask)
    assert audit.main() == 0
    assert len(asked) == 1
    assert "NOT AUDITED" in capsys.readouterr().out


def test_where_it_answers_all_that_is_installed_is_asked_for(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([{"dependencies": [CLEAN]}, {"dependencies": [CLEAN, HOLED]}])
    monkeypatch.setattr(audit, "ask", lambda arguments: next(answers))
    assert audit.main() == 1
    assert "PYSEC-1" in capsys.readouterr().out
