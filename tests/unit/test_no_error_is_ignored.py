"""No error is ignored: held of the source itself. Fault tests show what becomes of the errors that are raised."""

import ast
import tomllib

from tests.support import house

BROAD = {"Exception", "BaseException"}


def names_of(node: ast.AST | None) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} if node else set(BROAD)


def is_answered(handler: ast.ExceptHandler, line: str) -> bool:
    """Whether it raises, uses the error, or does something else and says why that is enough."""
    within = [node for statement in handler.body for node in ast.walk(statement)]
    if any(isinstance(node, ast.Raise) for node in within):
        return True
    if handler.name and any(isinstance(node, ast.Name) and node.id == handler.name for node in within):
        return True
    does = any(not isinstance(statement, ast.Pass | ast.Continue) for statement in handler.body)
    return does and bool(line.partition("# noqa: BLE001")[2].strip())


def test_who_catches_every_error_does_something_with_it():
    found = 0
    for module in house.modules():
        lines = (house.ROOT / module.path).read_text(encoding="utf-8").splitlines()
        for node in module.nodes:
            if isinstance(node, ast.ExceptHandler) and names_of(node.type) & BROAD:
                found += 1
                assert is_answered(node, lines[node.lineno - 1]), f"{module.path}:{node.lineno} drops any error"
    assert found


def test_nobody_suppresses_every_error():
    for module in house.modules():
        for node in module.nodes:
            if isinstance(node, ast.Call) and "suppress" in names_of(node.func):
                suppressed = {name for argument in node.args for name in names_of(argument)}
                assert not suppressed & BROAD, f"{module.path}:{node.lineno}"


def test_the_rules_against_ignored_errors_are_on():
    lint = tomllib.loads((house.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert {"BLE", "E", "B", "S", "PL", "RET", "SIM"} <= set(lint["select"])
    assert not {"BLE001", "E722", "B012", "S110", "S112"} & set(lint["ignore"])
