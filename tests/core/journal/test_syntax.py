"""Names and roles that are read from syntax trees, and the names in byte code."""

from __future__ import annotations

import ast
import asyncio
import concurrent
import dis
import inspect
import json
import logging
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.builtin.journal.program import Sources
from rhapsody.builtin.journal.syntax import Names, names_in
from rhapsody.sdk.introspect import with_inner

GENERATED = {"AssertionError", "__name__", "__module__", "__qualname__"}
"""Names that byte code contains although the source does not."""


def functions_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code of the functions and lambdas in a module."""
    for each in with_inner(code):
        if each.co_flags & inspect.CO_OPTIMIZED:
            yield each


def names_of(text: str, name: str, path: Path) -> Names:
    """Return the names that a function in a program uses."""
    file = path / "program.py"
    file.write_text(text)
    variables: dict[str, Any] = {}
    exec(compile(text, str(file), "exec", dont_inherit=True), variables)
    node = Sources().node_of(variables[name].__code__, variables)
    assert node is not None
    return names_in(node)


@pytest.mark.parametrize("package", [asyncio, concurrent, json, logging])
def test_all_globals_and_modules_in_the_byte_code_are_found(package: types.ModuleType) -> None:
    sources = Sources()
    found = 0
    for file in sorted(Path(package.__path__[0]).rglob("*.py")):
        module = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
        for code in functions_in(module):
            if code.co_name.startswith("<") and code.co_name != "<lambda>":
                continue
            node = sources.node_of(code, {})
            assert node is not None, code
            names = names_in(node, code.co_freevars)
            steps = [each for one in with_inner(code) for each in dis.get_instructions(one)]
            read = {each.argval for each in steps if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
            stored = {each.argval for each in steps if each.opname == "STORE_GLOBAL"}
            modules = {each.argval for each in steps if each.opname == "IMPORT_NAME"}
            used = {use.chain[0] for use in names.uses}
            assert {name.lstrip(".") for name, _ in names.modules} == modules, code
            assert names.stored == stored, code
            local = {alias for each in ast.walk(node) for alias in variables_of(each)}
            assert read - used - local <= GENERATED, code
            found += 1
    assert found > 20


def variables_of(node: ast.AST) -> list[str]:
    """Return the variables that an import sets."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return []
    return [each.asname or each.name.partition(".")[0] for each in node.names]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("return [G for G in x]", set()),
        ("return [y for y in G]", {"G"}),
        ("return [G for y in x for G in y]", set()),
        ("return any((G := y) for y in x) and G", set()),
        ("G = 1; return lambda: G", set()),
        ("return lambda G: G", set()),
        ("return lambda y=G: y", {"G"}),
        ("global G; G = x", set()),
        ("global G; G += x", {"G"}),
        ("[(lambda: (G := y))() for y in x]; return G", {"G"}),
        ("class A:\n        import x as G\n    return G", {"G"}),
        ("class A:\n        import x as G\n        def m(self): return G\n    return A", {"G"}),
        ("import G; return G.x", set()),
        ("from a import b as G; return G", set()),
        ("for G, y in x: pass", set()),
        ("with x as G: return G", set()),
        ("def G(): return G\n    return G", set()),
        ("class A: y = G\n    return A", {"G"}),
        ("class A:\n        G = 1\n        def m(self): return G\n    return A", {"G"}),
        ("class A:\n        def m(self): return self.G\n    return A", set()),
        ("match x:\n        case [G, *_]: return G", set()),
        ("match x:\n        case {'a': 1, **G}: return G", set()),
        ("match x:\n        case G.a: return 1", {"G"}),
        ("try: pass\n    except ValueError as G: return G", {"ValueError"}),
        ("def g(y: G): pass\n    return g", {"G"}),
        ("y: G = 1; return y", set()),
        ("def g():\n        nonlocal x\n        x = G\n    return g", {"G"}),
        ("return f'{G}'", {"G"}),
        ("del x[G]", {"G"}),
    ],
)
def test_scopes_are_those_of_python(body: str, names: set[str], tmp_path: Path) -> None:
    found = names_of(f"def f(x):\n    {body}\n", "f", tmp_path)
    assert {use.chain[0] for use in found.uses} - {"any"} == names


def test_private_names_of_classes_are_those_of_python(tmp_path: Path) -> None:
    text = (
        "class _A:\n"
        "    def m(self): return __G, self.__x, module.__y\n"
        "    def s(self):\n        global __G\n        __G = 1\n"
        "m, s = _A.m, _A.s\n"
    )
    used = {use.chain for use in names_of(text, "m", tmp_path).uses}
    assert used == {("_A__G",), ("module", "_A__y")}
    assert names_of(text, "s", tmp_path).stored == {"_A__G"}


@pytest.mark.parametrize(
    ("body", "roles"),
    [
        ("G[x] = 1", ["fills"]),
        ("G.append(x)", ["fills"]),
        ("G[x] += 1", ["fills", "adds"]),
        ("if x in G: return 1", ["looks"]),
        ("if x not in G: return 1", ["looks"]),
        ("if not G: return 1", ["looks"]),
        ("if G is None: return 1", ["looks"]),
        ("return x and G is None and 1", ["looks"]),
        ("return G or x", ["looks"]),
        ("return x or G", []),
        ("try: return G[x]\n    except KeyError: return 1", ["looks"]),
        ("try: return G[x]\n    except OSError: return 1", []),
        ("return G.get(x)", ["looks"]),
        ("return G.get(x, 0)", ["adds"]),
        ("return G.get(x, None)", ["looks"]),
        ("G.setdefault(x, []).append(1)", ["fills", "looks", "adds"]),
        ("G[x].append(1)", ["adds"]),
        ("G[x][0] = 1", ["adds"]),
        ("G[x].n = 1", ["adds"]),
        ("G[x].n += 1", ["adds"]),
        ("del G[x].a[0]", ["adds"]),
        ("G[x].a.sort()", ["adds"]),
        ("heapq.heappush(G[x], 1)", ["adds"]),
        ("y = G[x]; y[0] += 1", ["adds"]),
        ("y = G[x]; y += [1]", ["adds"]),
        ("y = G.setdefault(x, []); y.append(1)", ["fills", "looks", "adds"]),
        ("y = G.get(x) or []; y.append(1)", ["looks", "adds"]),
        ("for y in G.values(): y.n = x", ["adds"]),
        ("return [y.pop() for y in G.values()]", ["adds"]),
        ("return (y := G[x]).append(1) or y.append(2)", ["adds"]),
        ("y = G.get(x)\n    if y is None: y = []; y.append(1)\n    return y", ["looks"]),
        ("y = G.get(x)\n    if not y: y = []; y.append(1)\n    return y", ["looks"]),
        (
            "try: y = G[x]\n    except KeyError: y = []; y.append(1)\n    return y",
            ["looks"],
        ),
        ("if G < x: return 1", ["adds"]),
        ("if G is None or x > G: return 1", ["looks", "adds"]),
        ("if G is None or x.n > G.n: return 1", ["looks", "adds"]),
        ("if G is None or x > G['n']: return 1", ["looks", "adds"]),
        ("if G is None or x.better(G): return 1", ["looks", "adds"]),
        ("if len(G) > 9: return 1", []),
        ("if isinstance(G, dict): return 1", []),
        ("G.append(G[-1] + x)", ["fills", "adds"]),
        ("return map(G.append, x)", []),
        ("x[0] = G", []),
        ("x[G] = 1", []),
        ("return G", []),
    ],
)
def test_roles_of_containers(body: str, roles: list[str], tmp_path: Path) -> None:
    found = names_of(f"def f(x):\n    {body}\n", "f", tmp_path)
    all_roles = [role for use in found.uses if use.chain[0] == "G" for role in use.roles]
    assert all_roles == roles
