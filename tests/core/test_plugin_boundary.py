"""What plugins use of core is what `docs/plugins/versions.md` names, ours not excepted.

Read from the sources: our backends, the examples, what `rhapsody new-backend` writes, and
the conformance kit, which stands on the same interface as the backends that it proves.
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

ROOT = Path(__file__).parents[2]
CORE = ROOT / "packages/rhapsody-core/src/rhapsody"
TABLE = ROOT / "docs/plugins/versions.md"

USERS = {
    "dask": [*(ROOT / "packages/rhapsody-dask/src").rglob("*.py")],
    "radical": [*(ROOT / "packages/rhapsody-radical/src").rglob("*.py")],
    "wfcommons": [*(ROOT / "packages/rhapsody-wfcommons/src").rglob("*.py")],
    "examples": [*(ROOT / "examples").rglob("*.py")],
    "scaffold": [*(CORE / "cli/new_backend/template").glob("*.py.in")],
    "kit": [*(CORE / "testing").rglob("*.py")],
}
"""Who uses the interface, and their sources."""

OWN = {"kit": "rhapsody.testing"}
"""A package of core whose modules belong to a user itself."""

SELF = ("self", "cls", "super()")

FOREIGN = {"each._tasks", "self.manager._tasks"}
"""Private names of RADICAL-Pilot's that happen to be core's, too."""


class Interface(NamedTuple):
    """What one module offers to plugins; `names` is `None` where all that is public counts."""

    module: str
    names: frozenset[str] | None


def table(text: str) -> dict[str, Interface]:
    """The rows of the first table: modules, and what of them.

    Names in backquotes are all there is, unless the cell says `all` or more words.
    """
    found = {}
    for modules, what in re.findall(r"^\| (`rhapsody.*?) \| (.*?) \|$", text, re.MULTILINE):
        named = re.fullmatch(r"(`\w+`(, )?)+", what)
        names = frozenset(re.findall(r"`(\w+)`", what)) if named else None
        for module in re.findall(r"`([\w.]+)`", modules):
            found[module] = Interface(module, names)
    return found


INTERFACE = table(TABLE.read_text())


def offered(module: str) -> frozenset[str]:
    """The names that plugins may import from a module."""
    interface = INTERFACE[module]
    if interface.names is not None:
        return interface.names
    loaded = import_module(module)
    names = getattr(loaded, "__all__", None) or vars(loaded)
    return frozenset(name for name in names if not name.startswith("_") or name == "__version__")


class Import(NamedTuple):
    line: int
    module: str
    name: str | None


def imports(tree: ast.AST) -> Iterator[Import]:
    """All imports of core, those for type checkers and those inside functions as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "rhapsody":
                    yield Import(node.lineno, alias.name, None)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rhapsody":
            for alias in node.names:
                yield Import(node.lineno, str(node.module), alias.name)


def wrong_imports(tree: ast.AST, own: str | None = None) -> Iterator[tuple[int, str]]:
    """Each import that is not in the table, with its line."""
    for line, module, name in imports(tree):
        if own is not None and (module == own or module.startswith(f"{own}.")):
            continue
        if name is not None and f"{module}.{name}" in INTERFACE:
            continue  # a module from its package
        if module not in INTERFACE:
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
    for module in INTERFACE:
        for name in offered(module):
            thing = getattr(import_module(module), name, None)
            if isinstance(thing, type) and thing.__module__.split(".")[0] == "rhapsody":
                ours = [one for one in thing.__mro__ if one.__module__.startswith("rhapsody.")]
                found[name] = frozenset(name for one in ours for name in of_class(one))
    return found


def of_class(cls: type) -> Iterator[str]:
    """The names with one underscore that a class of core's and its methods define."""
    source = parsed(CORE.parent / f"{cls.__module__.replace('.', '/')}.py")
    for node in ast.walk(source):
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            yield from (name for name in defined(node) if re.match("_[^_]", name))


@cache
def subclasses(user: str) -> dict[str, frozenset[str]]:
    """The user's classes that derive from core's, with the private names that those have.

    The kit is in core itself, and derives from nothing but its own classes.
    """
    found = {} if user in OWN else dict(base_classes())
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
def test_plugins_import_what_the_documents_name_alone(user: str) -> None:
    assert [
        f"{path.name}:{line} imports {what}"
        for path in USERS[user]
        for line, what in wrong_imports(parsed(path), OWN.get(user))
    ] == []


@pytest.mark.parametrize("user", USERS)
def test_plugins_use_no_private_name_of_core(user: str) -> None:
    assert [
        f"{path.name}:{line} uses {what}"
        for path in USERS[user]
        for line, what in wrong_attributes(user, path)
        if what not in FOREIGN
    ] == []


def test_what_the_documents_name_is_there() -> None:
    assert len(INTERFACE) > 8
    for module in INTERFACE:
        loaded = import_module(module)
        assert [name for name in offered(module) if not hasattr(loaded, name)] == [], module


def test_all_that_the_documents_name_is_compared_with_the_last_release() -> None:
    check = (ROOT / ".ci/check_plugin_api.py").read_text()
    assert [module for module in INTERFACE if f'"{module}"' not in check] == []


def test_every_user_has_sources() -> None:
    assert [user for user, paths in USERS.items() if not paths] == []


@pytest.mark.parametrize(
    "source",
    [
        "from rhapsody.backends.local import host",
        "def f():\n    import rhapsody.engine.graph",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rhapsody import engine",
        "from rhapsody.backends.base import shutil",
        "from rhapsody.data import _check",
    ],
)
def test_the_check_itself_finds_what_is_not_in_the_interface(source: str) -> None:
    assert [*wrong_imports(ast.parse(source))]
