"""The parts of the package import in one direction only, and each module says what it is for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import rhapsody

ROOT = Path(rhapsody.__file__).parent

ORDER = [
    "_private",
    "masking",
    "spelling",
    "forks",
    "errors",
    "config_files",
    "aio",
    "states",
    "identity",
    "compat",
    "reading",
    "copying",
    "data",
    "fsutil",
    "undeclared",
    "context",
    "known",
    "resources",
    "cards",
    "task",
    "capabilities",
    "sdk",
    "shells",
    "environments",
    "tracebacks",
    "spawned",
    "plugins",
    "backends",
    "staging",
    "history",
    "failures",
    "engine",
    "cli",
    "builtin",
    "api",
]
"""Top to bottom: a part imports from itself and from those above it.

So nothing imports the plugins that are installed with core.
"""

BESIDE = {"__init__", "__main__", "_exports", "_version"}
"""Modules with the names of the package itself, which import lazily or nothing of ours."""

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
        if module.split(".")[0] == "rhapsody_testing":
            wrong.append(f"{path}:{line} imports {module}, which is another distribution")
        if module.split(".")[0] != "rhapsody" or part(module) in BESIDE:
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


def order_in(package: Path) -> list[str]:
    """The modules of a package from the inside out, as its docstring has them."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    return re.findall(r"`(\w+)`", text.split("\n\n")[1])


def engine_order() -> list[str]:
    """The engine's modules from the inside out, such as `core.states`, and groups of them."""
    groups = [ROOT / "engine" / name for name in order_in(ROOT / "engine")]
    return [
        name
        for group in groups
        for name in (
            [f"{group.name}.{module}" for module in order_in(group)]
            if group.is_dir()
            else [group.name]
        )
    ]


def test_every_module_of_the_engine_is_in_its_order_once() -> None:
    paths = (path.relative_to(ROOT / "engine") for path in (ROOT / "engine").rglob("*.py"))
    there = sorted(
        ".".join(path.with_suffix("").parts) for path in paths if path.stem != "__init__"
    )
    assert sorted(engine_order()) == there


def test_the_code_that_the_architecture_refers_to_exists() -> None:
    text = (Path(__file__).parents[2] / "docs" / "contributing" / "architecture.md").read_text()
    table = text.partition("## Where things happen")[2].partition("\n## ")[0]
    file, missing, found = Path(), [], 0
    for name in re.findall(r"`((?:\w+/)*\w+\.py|[A-Z]\w+(?:\.\w+)?|[a-z_]\w+)`", table):
        if name.endswith(".py"):
            file = ROOT / name
            continue
        found += 1
        if name not in defined(ast.parse(file.read_text())):
            missing.append(f"{file.relative_to(ROOT)}: {name}")
    assert found > 20
    assert not missing


def defined(tree: ast.Module) -> set[str]:
    """The names of a module, and `Class.method`."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.AnnAssign):
            names.add(ast.unparse(node.target))
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
            inner = (ast.FunctionDef, ast.AsyncFunctionDef)
            names |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, inner)}
    return names


def test_the_architecture_stays_one_page() -> None:
    text = (Path(__file__).parents[2] / "docs" / "contributing" / "architecture.md").read_text()
    assert len(text.splitlines()) <= 110


@pytest.mark.parametrize("module", engine_order())
def test_no_module_of_the_engine_imports_one_further_out(module: str) -> None:
    order = engine_order()
    path = Path("engine", *module.split(".")).with_suffix(".py")
    found = set(engine_imports(ast.parse((ROOT / path).read_text()), order))
    assert found <= set(order[: order.index(module)])


def engine_imports(tree: ast.Module, order: list[str]) -> Iterator[str]:
    """The engine's modules that a module imports, such as `core.states`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        package, _, source = f"{node.module}.".partition("rhapsody.engine.")
        if not package and source.rstrip(".") in order:
            yield source.rstrip(".")
        elif not package:  # the names are modules
            yield from (f"{source}{alias.name}" for alias in node.names)


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
        assert ours <= {"rhapsody._exports", "rhapsody.known"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("task.py", "from rhapsody.engine.core.scheduler import Limits"),
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
