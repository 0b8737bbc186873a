"""Plugins, including ours, import nothing but the public names of seven packages.

Checked in the sources of our plugins and of the conformance kit, the examples, the scaffold of
`rhapsody new-backend`, and the documentation for plugin authors.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
CORE = ROOT / "packages/rhapsody-core/src/rhapsody"
KIT = ROOT / "packages/rhapsody-testing/src/rhapsody_testing"
PAGES = sorted((ROOT / "docs/plugins").glob("*.md"))

USERS = {
    "asyncflow": [*(ROOT / "packages/rhapsody-asyncflow/src").rglob("*.py")],
    "dask": [*(ROOT / "packages/rhapsody-dask/src").rglob("*.py")],
    "dragon": [*(ROOT / "packages/rhapsody-dragon/src").rglob("*.py")],
    "otel": [*(ROOT / "packages/rhapsody-otel/src").rglob("*.py")],
    "psij": [*(ROOT / "packages/rhapsody-psij/src").rglob("*.py")],
    "wfcommons": [*(ROOT / "packages/rhapsody-wfcommons/src").rglob("*.py")],
    "radical": [*(ROOT / "packages/rhapsody-radical/src").rglob("*.py")],
    "report": [*(ROOT / "packages/rhapsody-report/src").rglob("*.py")],
    "simulated": [*(ROOT / "packages/rhapsody-simulated/src").rglob("*.py")],
    "examples": [*(ROOT / "examples").rglob("*.py")],
    "scaffold": [*(CORE / "cli/new_backend/template").glob("*.py.in")],
    "testing": [*KIT.rglob("*.py")],
}
"""Distributions that use the interface, and their sources."""

PACKAGES = {"rhapsody": CORE, "rhapsody_testing": KIT}
"""The packages with the interface, and their sources."""

SELF = ("self", "cls", "super()")

FOREIGN = {"each._tasks", "self.manager._tasks"}
"""Private names of RADICAL-Pilot's that happen to be core's, too."""


ROOTS = {
    name: import_module(name)
    for name in (
        "rhapsody",
        "rhapsody.backends",
        "rhapsody.history",
        "rhapsody.plugins",
        "rhapsody.sdk",
        "rhapsody.sdk.runs",
        "rhapsody_testing",
    )
}
"""The packages that plugins may import, and nothing deeper."""

PLUGIN_NAMES = {"DaskExecutionBackend", "RadicalExecutionBackend"}
"""Names that are listed only while a plugin is installed."""


def offered(root: str) -> frozenset[str]:
    """Return the names that plugins may import from a root."""
    return frozenset(ROOTS[root].__all__) | (PLUGIN_NAMES & set(dir(ROOTS[root])))


EVERYTHING = frozenset().union(*map(offered, ROOTS))


class Import(NamedTuple):
    line: int
    module: str
    name: str | None


def imports(tree: ast.AST) -> Iterator[Import]:
    """Yield all imports of the interface, also those for type checkers and inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in PACKAGES:
                    yield Import(node.lineno, alias.name, None)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            for alias in node.names:
                yield Import(node.lineno, str(node.module), alias.name)


def wrong_imports(tree: ast.AST, user: str = "") -> Iterator[tuple[int, str]]:
    """Yield each import of anything but a public name of a root, with its line.

    The kit may import its own modules.
    """
    for line, module, name in imports(tree):
        if user == "testing" and module.split(".")[0] == KIT.name:
            continue
        if module not in ROOTS:
            yield line, module
        elif name is not None and name not in offered(module):
            yield line, f"{module}.{name}"


def defined(tree: ast.AST) -> Iterator[str]:
    """Every name that is given a value, a function or a class, on objects and in classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value  # of `__slots__`


@cache
def base_classes() -> dict[str, frozenset[str]]:
    """The classes of the interface, with the private names that a subclass would meet.

    Names with two underscores are out of its way.
    """
    found: dict[str, frozenset[str]] = {}
    for module in ROOTS:
        for name in offered(module):
            thing = getattr(import_module(module), name, None)
            if isinstance(thing, type) and thing.__module__.split(".")[0] in PACKAGES:
                ours = [one for one in thing.__mro__ if one.__module__.split(".")[0] in PACKAGES]
                found[name] = frozenset(name for one in ours for name in of_class(one))
    return found


def of_class(cls: type) -> Iterator[str]:
    """The names with one underscore that a class and its methods define."""
    package, _, module = cls.__module__.partition(".")
    source = parsed(PACKAGES[package] / f"{module.replace('.', '/')}.py")
    for node in ast.walk(source):
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            yield from (name for name in defined(node) if re.match("_[^_]", name))


@cache
def subclasses(user: str) -> dict[str, frozenset[str]]:
    """The user's classes that derive from core's, with the private names that those have.

    The kit derives from nothing but its own classes.
    """
    found = {} if user == "testing" else dict(base_classes())
    classes = [
        node
        for path in USERS[user]
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
    ]
    for _ in range(3):  # as deep as anything derives
        for node in classes:
            bases = [ast.unparse(base).split(".")[-1] for base in node.bases]
            if names := frozenset().union(*(found.get(base, ()) for base in bases)):
                found[node.name] = names
    return found


def wrong_attributes(user: str, path: Path) -> Iterator[tuple[int, str]]:
    """Each use of a private name of core's: on core's objects, and on `self` of a core class."""
    everywhere = frozenset().union(*base_classes().values()) - own_names(user)
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and node.attr in everywhere:
            if ast.unparse(node.value) not in SELF:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ClassDef) and node.name in (derived := subclasses(user)):
            met = (part for part in ast.walk(node) if isinstance(part, ast.Attribute))
            for part in (part for part in met if part.attr in derived[node.name]):
                if ast.unparse(part.value) in SELF:
                    yield part.lineno, ast.unparse(part)


@cache
def own_names(user: str) -> frozenset[str]:
    """All names that a user defines itself, which may be core's, too."""
    return frozenset(name for path in USERS[user] for name in defined(parsed(path)))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(re.sub(r"\$(\w+)", r"\1", path.read_text()))  # the template's placeholders


@pytest.mark.parametrize("user", USERS)
def test_plugins_import_public_names_of_the_roots_alone(user: str) -> None:
    assert [
        f"{path.name}:{line} imports {what}"
        for path in USERS[user]
        for line, what in wrong_imports(parsed(path), user)
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_in_the_documentation_import_public_names_of_the_roots_alone(page: Path) -> None:
    programs = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert [what for program in programs for _, what in wrong_imports(ast.parse(program))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_documentation_for_plugin_authors_names_no_deeper_module(page: Path) -> None:
    dotted = re.findall(
        r"\b(rhapsody\.(?:backends|history|plugins|sdk)|rhapsody_testing)\.(\w+)", page.read_text()
    )
    found = {f"{root}.{name}" for root, name in dotted if name not in offered(root)}
    assert found - ROOTS.keys() == set()


@pytest.mark.parametrize("user", USERS)
def test_plugins_use_no_private_name_of_core(user: str) -> None:
    assert [
        f"{path.name}:{line} uses {what}"
        for path in USERS[user]
        for line, what in wrong_attributes(user, path)
        if what not in FOREIGN
    ] == []


@pytest.mark.parametrize("user", USERS)
def test_records_of_plugins_are_in_the_log_of_the_run(user: str) -> None:
    """The log of a run, and `-v`, take the records of loggers below `rhapsody`."""
    calls = re.compile(r"\bgetLogger\(([^)]*)\)")
    names = [name for path in USERS[user] for name in calls.findall(path.read_text())]
    own = (f'"rhapsody.{user}"', "name", 'parts[0]["name"]')
    assert [name for name in names if name not in own] == []


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_has_all_that_it_lists(root: str) -> None:
    assert [name for name in ROOTS[root].__all__ if not hasattr(ROOTS[root], name)] == []


def test_all_roots_are_documented_and_compared_with_the_last_release() -> None:
    table = (ROOT / "docs/plugins/publishing.md").read_text()
    check = (ROOT / ".ci/check_plugin_api.py").read_text()
    assert [root for root in ROOTS if f"| `{root}` |" not in table] == []
    assert [root for root in ROOTS if f'"{root}"' not in check] == []


def test_every_user_has_sources() -> None:
    assert [user for user, paths in USERS.items() if not paths] == []


@pytest.mark.parametrize(
    "source",
    [
        "from rhapsody.backends.local import jobs",
        "def f():\n    import rhapsody.engine.core.scheduler",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rhapsody import engine",
        "from rhapsody.backends.base import ManagedBackend",
        "from rhapsody.sdk import runner",
        "from rhapsody.data import make_sandbox",
        "import rhapsody.plugins.specs",
        "from rhapsody_testing._suite import Suite",
    ],
)
def test_the_check_itself_finds_deeper_imports(source: str) -> None:
    assert [*wrong_imports(ast.parse(source))]
