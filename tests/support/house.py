"""Measures the shape of the product's code: names, docstrings, assertions, imports.

`python -m tests.support.house [FOLDER]` prints the figures of a checkout; tests/unit/test_house.py holds them.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("channelindex", "coordinator", "devbucket", "workers")
WEAK_OPENING = re.compile(r"(What|Whether|How|Where|When)\b")
"""A docstring begins with a verb, or with the noun that is returned."""

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | ast.ClassDef | _Function


@dataclass(frozen=True, eq=False)
class Module:
    """One file of the product: its dotted name, its path in the checkout, and its syntax tree."""

    name: str
    path: str
    tree: ast.Module

    @property
    def stem(self) -> str:
        """The last part of its name."""
        return self.name.rpartition(".")[2]

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of its tree: a walk takes as long as to parse it, and each measure wants one."""
        return tuple(ast.walk(self.tree))


@cache
def modules(root: Path = ROOT) -> tuple[Module, ...]:
    """Every module of the product below *root*, by name."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return tuple(_module(path.relative_to(root), path.read_text(encoding="utf-8")) for path in paths)


def _module(path: Path, source: str) -> Module:
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    return Module(name, str(path), ast.parse(source))


def modules_by_stem(root: Path = ROOT) -> Mapping[str, list[str]]:
    """Each file name that two or more modules share, with their paths."""
    found = defaultdict(list)
    for module in modules(root):
        if not module.path.endswith(("__init__.py", "__main__.py")):
            found[module.stem].append(module.path)
    return _shared(found)


def classes_by_name(root: Path = ROOT) -> Mapping[str, list[str]]:
    """Each name that two or more classes share, leading underscores aside, with the paths of their modules."""
    found = defaultdict(list)
    for module in modules(root):
        for node in module.nodes:
            if isinstance(node, ast.ClassDef):
                found[node.name.lstrip("_")].append(module.path)
    return _shared(found)


def _shared(paths_by_name: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: paths for name, paths in sorted(paths_by_name.items()) if len(paths) > 1}


def weak_openings(root: Path = ROOT) -> list[str]:
    """Path, line and first line of each docstring that asks instead of saying."""
    return [
        f"{module.path}:{line}: {text.partition(chr(10))[0]}"
        for module in modules(root)
        for line, text in _docstrings(module)
        if WEAK_OPENING.match(text)
    ]


def n_docstrings(root: Path = ROOT) -> int:
    """How many docstrings the product has, those of constants among them."""
    return sum(1 for module in modules(root) for _ in _docstrings(module))


def _docstrings(module: Module) -> Iterator[tuple[int, str]]:
    """Line and text of each docstring, and of each string that stands below a constant or a field."""
    for node in module.nodes:
        for statement in getattr(node, "body", ()) if isinstance(node, _Documented) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                value = statement.value.value
                if isinstance(value, str):
                    yield statement.lineno, value.strip()


_LOG_METHODS = frozenset(("debug", "info", "warning", "error", "exception", "level"))
"""Names under which the methods of an `EventLog` are called; a `level` is one of them, chosen before."""


def logged_events(root: Path = ROOT) -> set[str]:
    """Every event that a node or a command logs. The dev bucket's are not for operators."""
    return {
        event
        for module in modules(root)
        if not module.path.startswith("devbucket/")
        for node in module.nodes
        if isinstance(node, ast.Call) and node.args and _called(node) in _LOG_METHODS
        for event in _strings(node.args[0], module)
        if re.fullmatch(r"[a-z]+\.[a-z_]+", event)
    }


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _strings(value: ast.expr, module: Module) -> Iterator[str]:
    """The strings that *value* may be: a constant, or whatever a variable of its name is set to in *module*."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.Name):
        for node in module.nodes:
            if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == value.id for target in node.targets):
                constants = (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant))
                yield from (text for text in constants if isinstance(text, str))


def assertions_per_100_functions(root: Path = ROOT) -> float:
    """Assertions in the product for each hundred of its functions and methods."""
    nodes = [node for module in modules(root) for node in module.nodes]
    n_functions = sum(isinstance(node, _Function) for node in nodes)
    return 100 * sum(isinstance(node, ast.Assert) for node in nodes) / n_functions


def imports_of(package: str, root: Path = ROOT) -> Mapping[str, frozenset[str]]:
    """Per module of *package* the other modules of it that it imports."""
    own = {module.name: module for module in modules(root) if f"{module.name}.".startswith(f"{package}.")}
    return {name: frozenset(_imported(module, own.keys())) - {name} for name, module in own.items()}


def _imported(module: Module, known: Iterable[str]) -> Iterator[str]:
    names = set(known)
    for node in _walk_runtime(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in submodules if name in names]
            yield from found
            if len(found) < len(submodules) and node.module in names:
                yield node.module


def _walk_runtime(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below *node* but those under `if TYPE_CHECKING`, which no program runs."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"):
            yield child
            yield from _walk_runtime(child)


def n_floors(imports: Mapping[str, frozenset[str]]) -> int:
    """The length of the longest chain of imports; modules that import each other count once."""
    heights: dict[str, int] = {}

    def height(name: str, below: tuple[str, ...]) -> int:
        if name not in heights:
            others = [other for other in imports[name] if other not in below]
            heights[name] = 1 + max((height(other, (*below, name)) for other in others), default=0)
        return heights[name]

    return max(height(name, ()) for name in imports)


def rooms_of(package: str, root: Path = ROOT) -> Mapping[str, int]:
    """How many modules lie in each folder of *package*, `__init__` aside."""
    counts: dict[str, int] = defaultdict(int)
    for module in modules(root):
        if module.path.startswith(f"{package}/") and not module.path.endswith("__init__.py"):
            counts[str(Path(module.path).parent)] += 1
    return counts


def arrows_between_rooms(package: str, root: Path = ROOT) -> int:
    """How many pairs of rooms of *package* are joined by an import."""
    room_by_module = {module.name: str(Path(module.path).parent) for module in modules(root)}
    return len(
        {
            (room_by_module[name], room_by_module[other])
            for name, others in imports_of(package, root).items()
            for other in others
            if room_by_module[name] != room_by_module[other]
        }
    )


def main(root: Path) -> None:
    """Print all figures of the checkout at *root*."""
    for package in ("workers", "channelindex"):
        imports = imports_of(package, root)
        n_imports = sum(map(len, imports.values()))
        rooms = ", ".join(f"{room} {count}" for room, count in sorted(rooms_of(package, root).items()))
        print(f"{package}: rooms: {rooms}")
        print(f"{package}: {len(imports)} modules on {n_floors(imports)} floors, {n_imports} imports")
        print(f"{package}: {arrows_between_rooms(package, root)} arrows between rooms")
    for what, found in (("modules", modules_by_stem(root)), ("classes", classes_by_name(root))):
        print(f"names of several {what}: {len(found)}: {', '.join(found)}")
    print(f"docstrings that ask: {len(weak_openings(root))} of {n_docstrings(root)}")
    print(f"assertions per 100 functions: {assertions_per_100_functions(root):.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
