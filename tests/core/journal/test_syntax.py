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
from rhapsody.builtin.journal.syntax import Names, is_cache, names_in
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
    ("body", "used"),
    [
        ("if x not in CACHE: CACHE[x] = 1", True),
        ("return CACHE.get(x) or CACHE.update({x: 1})", True),
        ("return CACHE.setdefault(x, 1)", True),
        ("return x.CACHE.setdefault(x, 1)", True),
        ("return x if x in CACHE else CACHE.add(x)", True),
        ("def g(): CACHE[x] = 1\n    g(); return CACHE[x]", True),
        ("global CACHE\n    if CACHE is None: CACHE = x\n    return CACHE[x]", True),
        ("CACHE[x] = 1", False),
        ("return CACHE[x]", False),
        ("return len(CACHE)", False),
        ("CACHE[x] = 1; return x in CACHE or sum(CACHE.values())", False),
        ("CACHE[x] = 1; return CACHE[x], min(CACHE, key=CACHE.get)", False),
        ("CACHE[x] = CACHE.get(x); return sorted(CACHE)", False),
        ("CACHE[x] = CACHE.get(x); return CACHE", False),
        ("CACHE[x] = CACHE.get(x); return len(CACHE)", False),
        ("CACHE[x] = CACHE.get(x)\n    for y in CACHE: pass", False),
        ("CACHE[x] = CACHE.get(x); y = CACHE; return y", False),
        ("CACHE[x] = CACHE.get(x); return dict(CACHE, a=1)", False),
        ("if len(CACHE) > 9: CACHE.clear()\n    return CACHE.setdefault(x, 1)", True),
        ("if not CACHE: CACHE[x] = 1\n    return CACHE[x]", True),
        ("CACHE = {}; CACHE[x] = 1; return CACHE[x]", False),
    ],
)
def test_code_that_uses_a_cache_fills_and_reads_it(
    body: str, *, used: bool, tmp_path: Path
) -> None:
    found = names_of(f"def f(x):\n    {body}\n", "f", tmp_path)
    assert is_cache("CACHE", found.caches) is used


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("CACHE", True),
        ("_cache", True),
        ("modelCache", True),
        ("_MODEL_CACHES", True),
        ("memo", True),
        ("cached_models", True),
        ("_cached_models", True),
        ("cache_hits", False),
        ("seen", False),
        ("_models", False),
        ("memory", False),
    ],
)
def test_the_name_tells_whether_a_variable_is_a_cache(
    name: str, *, used: bool, tmp_path: Path
) -> None:
    found = names_of(f"def f(x):\n    return {name}.setdefault(x, 1)\n", "f", tmp_path)
    assert is_cache(name, found.caches) is used


@pytest.mark.parametrize(
    ("text", "made_once"),
    [
        ("def f():\n global G\n if G is None: G = load()", True),
        ("def f():\n global G\n if not G: G = load(RATE)", True),
        ("def f(x):\n global G\n if G is None:\n  with LOCK:\n   if G is None: G = load()", True),
        ("def f():\n global G\n if G is None:\n  with open(F) as f: G = load(f)", True),
        ("def f(x):\n global G\n if G is None: G = load(x)", False),
        ("def f(x):\n global G\n y = x\n if G is None: G = load(y)", False),
        ("def f(x):\n def g():\n  global G\n  if G is None: G = load(x)\n g()", False),
        ("def f(x):\n def g():\n  global G\n  if G is None: G = load()\n g()", True),
        ("def f():\n global G\n G = load()", False),
        ("def f():\n global G\n if G is None or better(): G = load()", False),
        ("def f():\n global G\n if G is None: pass\n else: G = load()", False),
        ("def f():\n global G\n if G is None: G = 0\n G += 1", False),
        ("def f():\n global G\n if G is None: G = load()\n else: G = load()", False),
        ("def f():\n global G\n if G is None: G = [G]", False),
        ("def f():\n global G\n if H is None: G = load()", False),
    ],
)
def test_globals_that_are_made_once(text: str, *, made_once: bool, tmp_path: Path) -> None:
    assert ("G" in names_of(text + "\n", "f", tmp_path).made_once) is made_once
