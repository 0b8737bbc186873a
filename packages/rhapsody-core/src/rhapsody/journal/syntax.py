"""Digests of functions and classes by what their source means, whatever it looks like.

Comments, docstrings, annotations of arguments and of variables in functions, positions and the
place of the file do not count.
The loaded code counts, not the current content of the file. If the two differ, or if there is no
source, the digest is that of the compiled code, which depends on the minor version of Python. For
modules and classes there is only the file: one that has changed since the program started is
refused.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import linecache
import os
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rhapsody.journal.values import SIZE, UnhashableError
from rhapsody.sdk.modules import with_inner
from rhapsody.sdk.runner import process_began

BEGAN: int = process_began() or time.time_ns()
"""Start time of this process, or of its parent if it was forked after this module was loaded."""

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

_SKIPPED = frozenset({"ctx", "kind", "type_comment", "type_ignores", "returns", "annotation"})


@dataclass(slots=True)
class _File:
    """A source file as it is compiled now, and when it was last changed before."""

    functions: dict[tuple[str, int], list[Function]] = field(default_factory=dict)
    classes: dict[str, list[ast.ClassDef]] = field(default_factory=dict)
    codes: dict[tuple[str, int], list[types.CodeType]] = field(default_factory=dict)
    bindings: dict[str, dict[str, ast.stmt | None]] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)
    tree: ast.Module | None = None
    code: types.CodeType | None = None
    changed: int = 0


class Sources:
    """The source files of a program, each read once.

    Attributes:
        began: When the process was started, in nanoseconds. Source that was changed later (by the
            `ctime` of its file, which tools that copy files cannot set) may differ from what was
            imported.
    """

    def __init__(self) -> None:
        self.began: int = BEGAN
        self._files: dict[str, _File] = {}

    def of_function(self, function: types.FunctionType) -> str:
        """The digest of a function's own code."""
        code = function.__code__
        file = self._file(code.co_filename, function.__globals__)
        place = code.co_name, code.co_firstlineno
        nodes = file.functions.get(place, [])
        if len(nodes) == 1 and file.codes.get(place) == [code]:
            return _digest(nodes[0]) or of_code(code)
        return of_code(code)

    def is_only_one(self, code: types.CodeType, variables: dict[str, Any]) -> bool:
        """Return whether no other function in a file has the same qualified name."""
        return self._file(code.co_filename, variables).names[code.co_qualname] < 2

    def of_class(
        self, cls: type, name: str, variables: dict[str, Any]
    ) -> tuple[str, tuple[tuple[str, ...], ...]] | None:
        """The digest of a class's own body without its methods, and the globals in it.

        Returns:
            Both, or `None` where the body is not found, or its methods are not what is loaded.

        Raises:
            UnhashableError: Its file was changed after the program had started.
        """
        file = self._unchanged(name, variables)
        nodes = file.classes.get(cls.__qualname__, [])
        for method in vars(cls).values():
            if isinstance(method, types.FunctionType) and method.__code__.co_filename == name:
                code = method.__code__
                if code not in file.codes.get((code.co_name, code.co_firstlineno), []):
                    return None
        digest = _digest(nodes[0]) if len(nodes) == 1 else ""
        return (digest, _chains(nodes[0])) if digest else None

    def of_module(self, name: str, variables: dict[str, Any]) -> tuple[str, types.CodeType] | None:
        """The digest of a whole module and its code, `None` where its source is not found.

        Raises:
            UnhashableError: Its file was changed after the program had started.
        """
        file = self._unchanged(name, variables)
        digest = "" if file.tree is None else _digest(file.tree)
        return (digest, file.code) if digest and file.code is not None else None

    def binding(
        self, name: str, variables: dict[str, Any], variable: str, cls: str = ""
    ) -> ast.stmt | None:
        """Return the only statement of a file that binds a variable of the module.

        Args:
            name: The file.
            variables: The variables of its module.
            variable: The name of the variable.
            cls: The qualified name of the class whose attribute it is, empty for a global.

        Returns:
            `None` where there are several or none at the top level of the module or class.
        """
        file = self._file(name, variables)
        if cls not in file.bindings:
            nodes = file.classes.get(cls, []) if cls else [file.tree] if file.tree else []
            file.bindings[cls] = _bindings(nodes[0].body) if len(nodes) == 1 else {}
        return file.bindings[cls].get(variable)

    def _unchanged(self, name: str, variables: dict[str, Any]) -> _File:
        """Return a file that was not changed since the program started."""
        file = self._file(name, variables)
        if file.changed > self.began:
            raise UnhashableError(
                f"{os.path.basename(name)} was changed after the program had started; run it again"
            )
        return file

    def _file(self, name: str, variables: dict[str, Any]) -> _File:
        found = self._files.get(name)
        if found is None:
            found = self._files[name] = _read(name, variables)
        return found


def _read(name: str, variables: dict[str, Any]) -> _File:
    file = _File()
    with contextlib.suppress(OSError):  # a cell of a notebook is in none
        file.changed = os.stat(name).st_ctime_ns
    source = "".join(linecache.getlines(name, variables))
    if not source and os.path.exists(name) and os.path.getsize(name):
        return file  # it is compiled, or cannot be read
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the program has had them
            tree = ast.parse(source)
            compiled = compile(source, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):  # it is no Python, or was changed
        return file
    file.tree, file.code = tree, compiled
    for path, node in _definitions(tree, ""):
        if isinstance(node, ast.ClassDef):
            file.classes.setdefault(path, []).append(node)
        else:
            decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
            first = min([node.lineno, *(each.lineno for each in decorators)])
            short = "<lambda>" if isinstance(node, ast.Lambda) else node.name
            file.functions.setdefault((short, first), []).append(node)
    for code in with_inner(compiled):
        file.codes.setdefault((code.co_name, code.co_firstlineno), []).append(code)
        file.names[code.co_qualname] += 1
    return file


def _definitions(tree: ast.AST, path: str) -> Iterator[tuple[str, ast.ClassDef | Function]]:
    """Every class and function in a tree, with the class's qualified name."""
    todo = [(child, path) for child in ast.iter_child_nodes(tree)]
    while todo:
        child, path = todo.pop()
        inner = path
        if isinstance(child, ast.ClassDef):
            yield f"{path}{child.name}", child
            inner = f"{path}{child.name}."
        elif isinstance(child, Function):
            yield path, child
            if not isinstance(child, ast.Lambda):
                inner = f"{path}{child.name}.<locals>."
        todo += [(each, inner) for each in ast.iter_child_nodes(child)]


def _bindings(body: list[ast.stmt]) -> dict[str, ast.stmt | None]:
    """Return the names that a body binds, each with its statement where there is only one."""
    found: dict[str, ast.stmt | None] = {}
    for statement in body:
        names: list[str] = []
        plain: ast.stmt | None = statement
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [statement.name]
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names = [each.asname or each.name.partition(".")[0] for each in statement.names]
        else:
            inner = list(ast.walk(statement))
            names = [
                e.id for e in inner if isinstance(e, ast.Name) and isinstance(e.ctx, ast.Store)
            ]
            names += [e.name for e in inner if isinstance(e, Function | ast.ClassDef)
                      and not isinstance(e, ast.Lambda)]  # fmt: skip
            names += [e.asname or e.name for e in inner if isinstance(e, ast.alias)]
            if not isinstance(statement, ast.Assign | ast.AnnAssign) or len(names) != 1:
                plain = None
        for name in names:
            found[name] = None if name in found else plain
    return found


def _chains(node: ast.ClassDef) -> tuple[tuple[str, ...], ...]:
    """The names in a class's body, each with the attributes that are read of it at once."""
    chains: dict[tuple[str, ...], None] = {}
    for each in ast.walk(node):
        chain: list[str] = []
        while isinstance(each, ast.Attribute):
            chain.insert(0, each.attr)
            each = each.value
        if isinstance(each, ast.Name):
            chains[(each.id, *chain)] = None
    return tuple(chains)


def _digest(node: ast.AST) -> str:
    """The digest of a tree; empty where that is nested too deep."""
    made = hashlib.blake2b(digest_size=SIZE)

    def feed(text: str) -> None:
        made.update(text.encode("utf-8", "surrogatepass"))

    try:
        if isinstance(node, ast.ClassDef):
            _write_class(node, feed)
        else:
            _write(node, feed, outermost=isinstance(node, Function))
    except RecursionError:
        return ""
    return made.hexdigest()


def _write_class(node: ast.ClassDef, feed: Callable[[str], None]) -> None:
    methods = [each for each in node.body if isinstance(each, Function)]
    others = [each for each in node.body if not isinstance(each, Function)]
    _write_items(_without_docstring(node, others), feed)
    _write_items([*node.bases, *node.keywords, *node.decorator_list], feed)
    for method in sorted(methods, key=lambda each: each.name):
        # Methods have digests of their own, but for what decorates them.
        _write_items([ast.Name(method.name), *method.decorator_list], feed)


def _write(
    value: Any, feed: Callable[[str], None], *, outermost: bool = False, local: bool = False
) -> None:
    """Writes what counts of a syntax tree, the same in every version of Python as far as it can.

    Args:
        value: The tree, or what is in one.
        feed: Takes text.
        outermost: Whether it is the function whose digest is made.
        local: Whether it is in a function, and in no class there.
    """
    if isinstance(value, list):
        _write_items(value, feed, local=local)
        return
    if local and isinstance(value, ast.AnnAssign) and value.value is not None:
        value = ast.Assign([value.target], value.value)
    if not isinstance(value, ast.AST):
        feed(f"{type(value).__name__}:{_constant(value)};")
        return
    feed(f"({type(value).__name__}")
    if isinstance(value, Function | ast.ClassDef):
        local = isinstance(value, Function)
    # It makes the fields of a dataclass; that of a local variable is never evaluated.
    annotated = isinstance(value, ast.AnnAssign) and not local
    for name, inner in ast.iter_fields(value):
        if inner is None or inner == [] or (name in _SKIPPED and not annotated):
            continue
        if outermost and name == "decorator_list":
            continue  # what they have made of the function is looked at itself
        feed(f" {name}=")
        whole = not (name == "body" and isinstance(inner, list))
        _write(inner if whole else _without_docstring(value, inner), feed, local=local)
    feed(")")


def _write_items(items: list[Any], feed: Callable[[str], None], *, local: bool = False) -> None:
    feed("[")
    for item in items:
        _write(item, feed, local=local)
    feed("]")


def _without_docstring(owner: ast.AST, body: list[Any]) -> list[Any]:
    if not isinstance(owner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
        return body
    first = body[0].value if body and isinstance(body[0], ast.Expr) else None
    text = isinstance(first, ast.Constant) and isinstance(first.value, str)
    return body[1:] if text else body


def of_code(code: types.CodeType) -> str:
    """The digest of compiled code, for this minor version of Python."""
    made = hashlib.blake2b(digest_size=SIZE)
    made.update(repr(sys.version_info[:2]).encode())
    for one in with_inner(code):
        constants = [each for each in one.co_consts if not isinstance(each, types.CodeType)]
        counts = one.co_argcount, one.co_posonlyargcount, one.co_kwonlyargcount, one.co_flags
        names = one.co_names, one.co_varnames, one.co_freevars, one.co_cellvars
        text = f"{_constant(tuple(constants))} {names} {counts} {one.co_exceptiontable!r}"
        made.update(one.co_code + text.encode("utf-8", "surrogatepass"))
    return made.hexdigest()


def _constant(value: Any) -> str:
    """A constant of a program, a set in an order that does not change."""
    if isinstance(value, tuple):
        return f"({','.join(map(_constant, value))})"
    if isinstance(value, frozenset):
        return f"{{{','.join(sorted(map(_constant, value)))}}}"
    return hex(value) if type(value) is int else repr(value)  # `repr` has a limit of digits
