"""Digests of functions and classes by what their source means, whatever it looks like.

Comments, docstrings, annotations of arguments, positions and the place of the file do not count.
What is loaded counts, and not what the file says by now: where the two differ, and where there is
no source, it is the digest of the compiled code, which belongs to one minor version of Python.
"""

from __future__ import annotations

import ast
import dis
import hashlib
import linecache
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from rhapsody.journal.values import SIZE

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

_SKIPPED = frozenset({"ctx", "kind", "type_comment", "type_ignores", "returns", "annotation"})


@dataclass(frozen=True, slots=True)
class Names:
    """What code takes from outside itself.

    Attributes:
        chains: Names of globals, each with the attributes that are read of it at once.
        modules: Modules that it imports itself: the level of the import, and the name.
    """

    chains: tuple[tuple[str, ...], ...]
    modules: tuple[tuple[int, str], ...]


def names_in(code: types.CodeType) -> Names:
    """What a function and those inside it take from outside."""
    chains: dict[tuple[str, ...], None] = {}
    modules: dict[tuple[int, str], None] = {}
    for one in _with_inner(code):
        instructions = list(dis.get_instructions(one))
        for number, instruction in enumerate(instructions):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                rest = takewhile(_reads_attribute, instructions[number + 1 :])
                chains[(instruction.argval, *(each.argval for each in rest))] = None
            elif instruction.opname == "IMPORT_NAME":
                level = instructions[number - 2].argval
                modules[level if isinstance(level, int) else 0, instruction.argval] = None
    return Names(tuple(chains), tuple(modules))


def _reads_attribute(instruction: dis.Instruction) -> bool:
    return instruction.opname in ("LOAD_ATTR", "LOAD_METHOD")


def _with_inner(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _with_inner(constant)


@dataclass(slots=True)
class _File:
    """A source file as it is compiled now."""

    functions: dict[tuple[str, int], list[Function]] = field(default_factory=dict)
    classes: dict[str, list[ast.ClassDef]] = field(default_factory=dict)
    codes: dict[tuple[str, int], list[types.CodeType]] = field(default_factory=dict)
    whole: str = ""


class Sources:
    """The source files of a program, each read once."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def of_function(self, function: types.FunctionType) -> str:
        """The digest of a function's own code."""
        code = function.__code__
        file = self._file(code.co_filename, function.__globals__)
        place = code.co_name, code.co_firstlineno
        nodes = file.functions.get(place, ())
        if len(nodes) == 1 and file.codes.get(place) == [code]:
            return _digest(nodes[0])
        return of_code(code)

    def of_class(self, cls: type) -> str | None:
        """The digest of a class's own body without its methods, `None` where it is not found."""
        module = sys.modules.get(cls.__module__)
        name = getattr(module, "__file__", None)
        if not isinstance(name, str):
            return None
        nodes = self._file(name, vars(module)).classes.get(cls.__qualname__, ())
        return _digest(nodes[0]) if len(nodes) == 1 else None

    def of_module(self, file: str, variables: dict[str, Any] | None = None) -> str | None:
        """The digest of a whole module, `None` where its source is not found."""
        return self._file(file, variables or {}).whole or None

    def _file(self, name: str, variables: dict[str, Any]) -> _File:
        found = self._files.get(name)
        if found is None:
            found = self._files[name] = _read(name, variables)
        return found


def _read(name: str, variables: dict[str, Any]) -> _File:
    file = _File()
    source = "".join(linecache.getlines(name, variables))
    try:
        tree = ast.parse(source)
        compiled = compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):  # it is no Python, or was changed
        return file
    if not source:
        return file
    file.whole = _digest(tree)
    for path, node in _definitions(tree, ""):
        if isinstance(node, ast.ClassDef):
            file.classes.setdefault(path, []).append(node)
        else:
            decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
            first = min([node.lineno, *(each.lineno for each in decorators)])
            short = "<lambda>" if isinstance(node, ast.Lambda) else node.name
            file.functions.setdefault((short, first), []).append(node)
    for code in _with_inner(compiled):
        file.codes.setdefault((code.co_name, code.co_firstlineno), []).append(code)
    return file


def _definitions(node: ast.AST, path: str) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Every class and function in a tree, with the class's qualified name."""
    for child in ast.iter_child_nodes(node):
        inner = path
        if isinstance(child, ast.ClassDef):
            yield f"{path}{child.name}", child
            inner = f"{path}{child.name}."
        elif isinstance(child, Function):
            yield path, child
            if not isinstance(child, ast.Lambda):
                inner = f"{path}{child.name}.<locals>."
        yield from _definitions(child, inner)


def _digest(node: ast.AST) -> str:
    made = hashlib.blake2b(digest_size=SIZE)

    def feed(text: str) -> None:
        made.update(text.encode("utf-8", "surrogatepass"))

    if isinstance(node, ast.ClassDef):
        methods = [each for each in node.body if isinstance(each, Function)]
        _write_items([each for each in node.body if each not in methods], feed)
        _write_items([*node.bases, *node.keywords, *node.decorator_list], feed)
        for method in methods:  # which have digests of their own, but for what decorates them
            _write_items([ast.Name(method.name), *method.decorator_list], feed)
    elif isinstance(node, Function):
        _write(node, feed, outermost=True)
    else:
        _write(node, feed)
    return made.hexdigest()


def _write(value: Any, feed: Callable[[str], None], *, outermost: bool = False) -> None:
    """Writes what counts of a syntax tree, the same in every version of Python as far as it can."""
    if isinstance(value, list):
        _write_items(value, feed)
        return
    if not isinstance(value, ast.AST):
        feed(f"{type(value).__name__}:{value!r};")
        return
    feed(f"({type(value).__name__}")
    annotated = isinstance(value, ast.AnnAssign)  # which makes the fields of a dataclass
    for name, inner in ast.iter_fields(value):
        if inner is None or inner == [] or (name in _SKIPPED and not annotated):
            continue
        if outermost and name == "decorator_list":
            continue  # what they have made of the function is looked at itself
        feed(f" {name}=")
        whole = not (name == "body" and isinstance(inner, list))
        _write(inner if whole else _without_docstring(value, inner), feed)
    feed(")")


def _write_items(items: list[Any], feed: Callable[[str], None]) -> None:
    feed("[")
    for item in items:
        _write(item, feed)
    feed("]")


def _without_docstring(owner: ast.AST, body: list[Any]) -> list[Any]:
    if not isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
        return body
    first = body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return body[1:] if text and isinstance(first.value.value, str) else body


def of_code(code: types.CodeType) -> str:
    """The digest of compiled code, for this minor version of Python."""
    made = hashlib.blake2b(digest_size=SIZE)
    made.update(repr(sys.version_info[:2]).encode())
    for one in _with_inner(code):
        constants = [
            sorted(map(repr, each)) if isinstance(each, frozenset) else repr(each)
            for each in one.co_consts
            if not isinstance(each, types.CodeType)
        ]
        names = one.co_names, one.co_varnames, one.co_freevars, one.co_flags
        made.update(one.co_code + repr((constants, names)).encode("utf-8", "surrogatepass"))
    return made.hexdigest()
