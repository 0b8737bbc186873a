"""The parts of the package import in one direction only, and each module says what it is for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import rhapsody

ROOT = Path(rhapsody.__file__).parent

ORDER = [
    "errors",
    "aio",
    "states",
    "data",
    "context",
    "quantities",
    "resources",
    "retries",
    "task",
    "capabilities",
    "sdk",
    "plugins",
    "backends",
    "staging",
    "engine",
    "observers",
    "wfformat",
    "testing",
    "cli",
]
"""Top to bottom: a part imports from itself and from those above it."""

BESIDE = {"__init__", "__main__", "_exports", "_version"}
"""Modules with the names of the package itself, which import lazily or nothing of ours."""

USES_THE_PACKAGE = {"testing"}
"""Parts that import names of the package itself, as everybody does; all else is above them."""

MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def part(module: str) -> str:
    """The part that a module of ours is in, `""` for the package itself."""
    names = module.split(".")
    return names[1] if len(names) > 1 else ""


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Every module imported, inside functions and for type checkers as well, with its line."""
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            if source == "rhapsody":
                # A name of the package: which module it is in, only the package knows.
                yield from ((node.lineno, f"rhapsody.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, source
        stack += ast.iter_child_nodes(node)


def wrong_imports(path: Path, source: str) -> list[str]:
    own = path.parts[0].removesuffix(".py")
    rank = ORDER.index(own)
    package = ".".join(["rhapsody", *path.parts[:-1]])
    wrong = []
    for line, module in imports(ast.parse(source), package):
        if module.split(".")[0] != "rhapsody" or part(module) in BESIDE:
            continue
        if part(module) not in ORDER and own in USES_THE_PACKAGE:
            continue
        if part(module) not in ORDER:
            wrong.append(f"{path}:{line} imports the lazy name {module}; import where it is from")
        elif ORDER.index(part(module)) > rank:
            wrong.append(f"{path}:{line} imports {module}, which is below {own}")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_module_imports_from_a_lower_part(path: Path) -> None:
    own = path.parts[0].removesuffix(".py")
    if own in BESIDE:
        pytest.skip("exports the others' names")
    assert own in ORDER, f"{own} is in no known place of the order"
    assert wrong_imports(path, (ROOT / path).read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_opens_with_what_it_is_for(path: Path) -> None:
    text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
    assert text.split("\n\n")[0].endswith("."), f"{path} has no opening paragraph"


def test_the_names_of_the_package_itself_import_nothing_at_once() -> None:
    for name in BESIDE - {"__main__"}:
        tree = ast.parse((ROOT / f"{name}.py").read_text())
        # The package names all of them for type checkers alone.
        tree.body = [
            one
            for one in tree.body
            if not (isinstance(one, ast.If) and ast.unparse(one.test) == "TYPE_CHECKING")
        ]
        found = {module for _, module in imports(tree, "")}
        ours = {module for module in found if module.startswith("rhapsody.")}
        assert ours <= {"rhapsody._exports"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("task.py", "from rhapsody.engine.graph import Graph"),
        ("plugins/x.py", "def f():\n    import rhapsody.backends.base"),
        ("backends/x.py", "from ..engine import WorkflowEngine"),
        ("states.py", "if True:\n    from rhapsody import task"),
        ("engine/x.py", "from rhapsody import WorkflowEngine"),
        (
            "task.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rhapsody.engine.x",
        ),
    ],
)
def test_the_check_itself_finds_imports_in_the_wrong_direction(path: str, source: str) -> None:
    assert wrong_imports(Path(path), source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("task.py", "from rhapsody.states import TasksMainStates\nimport asyncio"),
        ("cli/x.py", "from rhapsody._version import __version__\nfrom rhapsody.cli import y"),
        ("engine/x.py", "from rhapsody import errors"),
    ],
)
def test_the_check_itself_lets_the_right_direction_pass(path: str, source: str) -> None:
    assert not wrong_imports(Path(path), source)
