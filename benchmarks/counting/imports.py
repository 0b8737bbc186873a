"""Counts what a checkout's sources say of their structure: knots, hubs, imports the wrong way.

Reads the sources and imports nothing of them. Imports inside functions and for type checkers
alone count like all others: who reads the one module has to know the other.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

Graph = Mapping[str, frozenset[str]]
"""The modules that each module imports."""


class Source(NamedTuple):
    """One file.

    Attributes:
        path: The file.
        package: The package that its relative imports begin at.
        tree: What is in it.
    """

    path: Path
    package: str
    tree: ast.Module


class Import(NamedTuple):
    """One name that a module imports.

    Attributes:
        line: Where.
        module: Which module, `""` for a name that is none of ours.
        name: The name in it, `""` for the module itself.
    """

    line: int
    module: str
    name: str


@cache
def sources(root: Path) -> dict[str, Source]:
    """Reads the Python files below a directory that stands on `sys.path`, by their modules."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        inside = parts[:-1]
        name = ".".join(inside if parts[-1] == "__init__" else parts)
        found[name] = Source(path, ".".join(inside), ast.parse(path.read_text()))
    return found


def packages(checkout: Path) -> dict[str, Source]:
    """Reads all modules of a checkout's distributions."""
    found: dict[str, Source] = {}
    for folder in sorted(checkout.glob("packages/*/src")):
        found |= sources(folder)
    return found


def imports(source: Source, modules: Mapping[str, Source]) -> Iterator[Import]:
    """What a file imports, wherever in it; modules that are not among `modules` are named, too."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), source.package)
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                if inner in modules:
                    yield Import(node.lineno, inner, "")
                else:
                    yield Import(node.lineno, module, alias.name)


def graph(modules: Mapping[str, Source]) -> Graph:
    """Return the modules that each module imports.

    A name that a package exports counts as an import of the module that defines it.
    """
    exports = {
        name: {each.name: each.module for each in imports(source, modules) if each.name}
        for name, source in modules.items()
        if source.path.name == "__init__.py"
    }

    def home(one: Import) -> str:
        return exports.get(one.module, {}).get(one.name, one.module)

    return {
        name: frozenset(map(home, imports(source, modules))) & modules.keys() - {name}
        for name, source in modules.items()
    }


def knots(edges: Graph) -> list[list[str]]:
    """The groups of modules that import each other, the largest first (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in edges[name]:
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            at = stack.index(name)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for name in edges:
        if name not in order:
            visit(name)
    return sorted((each for each in found if len(each) > 1), key=lambda each: (-len(each), each))


def among(edges: Graph, prefix: str) -> Graph:
    """The part of a graph whose modules are in one package."""
    inside = {name for name in edges if name == prefix or name.startswith(f"{prefix}.")}
    return {name: edges[name] & inside for name in sorted(inside)}


# The hub of the engine.


class Hub(NamedTuple):
    """How much of the engine hangs on one object.

    Attributes:
        uses: How often one of its attributes is used through it.
        attributes: How many attributes it has, of those that are used so or set in its class.
        modules: How many modules do so.
    """

    uses: int
    attributes: int
    modules: int


def hub(modules: Mapping[str, Source], words: tuple[str, ...] = ("runtime", "_runtime")) -> Hub:
    """Counts uses of what is called by one of some names in the engine."""
    used: list[tuple[str, str]] = []
    for name, source in modules.items():
        for node in ast.walk(source.tree):
            if name.startswith("rhapsody.engine.") and isinstance(node, ast.Attribute):
                holder = node.value
                called = getattr(holder, "attr", getattr(holder, "id", ""))
                if called in words:
                    used.append((name, node.attr))
    return Hub(len(used), len({attr for _, attr in used}), len({name for name, _ in used}))


# Directions.


def order_of_parts(checkout: Path) -> list[str]:
    """The parts of core from top to bottom, as the test of their directions has them."""
    tree = ast.parse((checkout / "tests/core/test_imports_direction.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER":
            found: list[str] = ast.literal_eval(node.value)
            return found
    raise ValueError("tests/core/test_imports_direction.py has no ORDER")


def order_inside_engine(checkout: Path) -> dict[str, int]:
    """How far in each of the engine's modules is, by the table of docs/architecture.md."""
    text = (checkout / "docs/architecture.md").read_text()
    _, inside_out, inner_first = text.partition("From the inside out")
    table = inner_first if inside_out else text.partition("from the outside in")[2]
    rows = re.findall(r"^\|(.*?)\|", table.partition("\n## ")[0], re.MULTILINE)
    names = [re.findall(r"`(\w+)`", row) for row in rows]
    if inside_out:
        return {name: -n for n, name in enumerate(one for row in names for one in row)}
    return {name: n for n, row in enumerate(names) for name in row}


def upward(modules: Mapping[str, Source], parts: list[str]) -> list[str]:
    """Imports between core's parts that run from one to another that is below it."""
    wrong = []
    for name, others in among(graph(modules), "rhapsody").items():
        for other in sorted(others):
            own, theirs = (f"{each}.".split(".")[1] for each in (name, other))
            if own in parts and theirs in parts and parts.index(theirs) > parts.index(own):
                wrong.append(f"{name} -> {other}")
    return wrong


def upward_inside(modules: Mapping[str, Source], rows: Mapping[str, int]) -> tuple[list[str], int]:
    """Imports inside the engine that run outwards by the table, and how many there are in all."""
    wrong, count = [], 0
    for name, others in among(graph(modules), "rhapsody.engine").items():
        for other in sorted(others):
            own, theirs = (rows.get(each.rpartition(".")[2]) for each in (name, other))
            if own is None or theirs is None:
                continue
            count += 1
            if theirs < own:
                wrong.append(f"{name} -> {other}")
    return wrong, count


# What plugins may use.

BACKENDS = ("packages/rhapsody-dask/src", "packages/rhapsody-radical/src")
TEMPLATE = "packages/rhapsody-core/src/rhapsody/cli/new_backend/template"
KIT = "packages/rhapsody-core/src/rhapsody/testing"
BASES = {"BaseExecutionBackend", "ManagedBackend"}


def documented(checkout: Path) -> set[str]:
    """The modules of the plugin interface, by docs/plugins/versions.md."""
    text = (checkout / "docs/plugins/versions.md").read_text()
    cells = re.findall(r"^\|(.*?)\|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)}


def template(checkout: Path) -> dict[str, Source]:
    """The Python files that `rhapsody new-backend` writes."""
    found = {}
    for path in sorted((checkout / TEMPLATE).glob("*.py.in")):
        text = re.sub(r"\$\{?(\w+)\}?", r"\1", path.read_text())
        found[path.name] = Source(path, "", ast.parse(text))
    return found


def private_imports(checkout: Path, files: Mapping[str, Source]) -> list[str]:
    """Lines of some files that import of core what is no part of the plugin interface.

    What tests for a clash of distributions, `rhapsody_guard`, is left out, and so is what the
    kit imports from itself.
    """
    core, allowed = sources(checkout / "packages/rhapsody-core/src"), documented(checkout)
    wrong = set()
    for source in files.values():
        for each in imports(source, core):
            own = "testing" in source.path.parts and each.module.startswith("rhapsody.testing.")
            if each.module.partition(".")[0] != "rhapsody" or own:
                continue
            underscore = each.name.startswith("_") and not each.name.startswith("__")
            if each.module not in allowed or underscore:
                place = source.path.relative_to(checkout)
                wrong.add(f"{place}:{each.line} {each.module}")
    return sorted(wrong)


def _underscore_names(tree: ast.AST) -> set[str]:
    kinds = (ast.Attribute, ast.FunctionDef, ast.AsyncFunctionDef)
    names = {
        node.attr if isinstance(node, ast.Attribute) else node.name
        for node in ast.walk(tree)
        if isinstance(node, kinds)
    }
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def private_attributes(checkout: Path, files: Mapping[str, Source]) -> list[str]:
    """Uses, in classes of some files that are backends, of underscore names of core's classes."""
    base = checkout / "packages/rhapsody-core/src/rhapsody/backends/base.py"
    theirs = _underscore_names(ast.parse(base.read_text()))
    classes = [
        (source, node, {ast.unparse(each).rpartition(".")[2] for each in node.bases})
        for source in files.values()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
    ]
    backends = set(BASES)
    while more := {node.name for _, node, bases in classes if bases & backends} - backends:
        backends |= more
    return sorted(
        f"{source.path.relative_to(checkout)}:{node.lineno} {node.attr}"
        for source, cls, _ in classes
        if cls.name in backends
        for node in ast.walk(cls)
        if isinstance(node, ast.Attribute)
        and node.attr in theirs
        and ast.unparse(node.value) in ("self", "super()")
    )
