"""Source code of the program: its digests, the names that it uses, and its origin.

The digest of a user's function is computed from byte code that is compiled again from the source,
without docstrings, positions and annotations of arguments. The digest always represents the loaded
code, not the current content of the file: if the two differ, or if there is no source, the loaded
byte code is used as it is. The digest of a class or module is computed from its source in the same
way, and a file that was changed after the program started is rejected. Digests depend on the minor
version of Python, because byte code does. Installed packages are represented by their versions.

The names that a function uses but does not define are read from its syntax tree; see `syntax`. If
there is no source, or if it differs from the loaded code, all names in the byte code are used: each
global, and each attribute of a module.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import copy
import dis
import functools
import hashlib
import linecache
import os
import shutil
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from rhapsody._private import environment
from rhapsody.builtin.journal.as_imported import VALUES
from rhapsody.builtin.journal.files import FileDigests, Stamp, stamp_of
from rhapsody.builtin.journal.syntax import (
    FUNCTIONS,
    OTHER,
    SCOPES,
    Names,
    Use,
    is_cache,
    names_in,
)
from rhapsody.builtin.journal.values import DIGEST_SIZE, UnhashableError
from rhapsody.sdk.introspect import MISSING, mangled, names_stored, with_inner
from rhapsody.sdk.modules import Origins, file_of, real_path, spec_of
from rhapsody.sdk.runner import process_start_time

T = TypeVar("T")

PROCESS_START: int = process_start_time() or time.time_ns()
"""Start time of this process in nanoseconds since the epoch; if the process was forked after this
module was imported, the start time of its parent."""

FEW_WORDS = 64
"""Number of words of a command that are looked up without listing the directories of `PATH`."""

_MANGLED = (
    (ast.Name, "id"), (ast.Attribute, "attr"), (ast.arg, "arg"), (ast.alias, "asname"),
    (ast.ExceptHandler, "name"), (ast.MatchAs, "name"), (ast.MatchStar, "name"),
    (ast.MatchMapping, "rest"),
)  # fmt: skip
"""Attributes of syntax nodes that contain names, which Python mangles in classes."""

DEEPEST = 4
"""Number of names, from a module to a member, that are followed in code without source."""

_DOCUMENTED = ast.Module | ast.ClassDef | FUNCTIONS


@dataclass(slots=True)
class _File:
    """Source file and the code that was compiled from it when it was first read.

    Attributes:
        stamp: The state of the file when it was read, or `None` if there is no file.
        code: The file's code as Python compiles it, or `None` if there is no valid source.
        tree: The file's syntax tree, changed by `_normalize`; `None` if there is no valid source.
        plain: For each code object of the file, its counterpart compiled from that tree.
        nodes: The syntax node of each function and lambda, by code object.
        names: The number of code objects with each qualified name.
        classes: The classes in the tree, by qualified name.
        chains: The names in the body of each class, by qualified name. See `_chains`.
    """

    stamp: Stamp | None = None
    code: types.CodeType | None = None
    tree: ast.Module | None = None
    plain: dict[types.CodeType, types.CodeType] = field(default_factory=dict)
    nodes: dict[types.CodeType, ast.AST] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=Counter)
    classes: dict[str, list[ast.ClassDef]] = field(default_factory=dict)
    chains: dict[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)


class Sources:
    """Source files of a program, each read once.

    Attributes:
        process_start: The start time of the process, in nanoseconds since the epoch. A file with a
            later `ctime` may differ from the code that was imported. The `ctime` is used because
            programs cannot set it, unlike the modification time.
    """

    def __init__(self) -> None:
        self.process_start: int = PROCESS_START
        self._files: dict[str, _File] = {}
        self._current: set[str | None] = set()
        # Calls that set seeds, by file and by its size and time: notebooks reload modules.
        self._seeds: dict[tuple[object, ...], tuple[ast.Call, ...]] = {}
        self._literals: dict[str, dict[str, Any]] = {}

    def of_function(self, function: types.FunctionType) -> str:
        """Return the digest of a function's own code."""
        code = function.__code__
        return digest_of(self._file(code.co_filename, function.__globals__).plain.get(code, code))

    def node_of(self, code: types.CodeType, variables: dict[str, Any]) -> ast.AST | None:
        """Return the syntax node of a function; `None` if there is no source of the loaded code.

        Args:
            code: The code of the function.
            variables: The globals of the function.
        """
        return self._file(code.co_filename, variables).nodes.get(code)

    def seeds(
        self, file: str, variables: dict[str, Any], own: Callable[[object], bool]
    ) -> dict[str, Any]:
        """Return the calls in a file that set seeds, and the values of the globals in them.

        Args:
            file: The path of the file.
            variables: The variables of its module.
            own: Function that returns True for the files of the program's modules.
        """
        place: tuple[object, ...] = (file,)
        with contextlib.suppress(OSError):  # it has no file, or the file was removed
            status = os.stat(file)
            place = file, status.st_mtime_ns, status.st_size
        if place not in self._seeds:
            linecache.checkcache(file)
            self._seeds[place] = _seeds_in("".join(linecache.getlines(file, variables)))
        return self._with_globals(self._seeds[place], variables, own)

    def seeds_in_cells(
        self, cells: Iterable[str], variables: dict[str, Any], own: Callable[[object], bool]
    ) -> dict[str, Any]:
        """Return the last call of each function in a notebook that sets a seed, as `seeds` does."""
        last = {ast.unparse(each.func): each for text in cells for each in _seeds_in(text)}
        return self._with_globals(last.values(), variables, own)

    def _with_globals(
        self,
        calls: Iterable[ast.Call],
        variables: dict[str, Any],
        own: Callable[[object], bool],
    ) -> dict[str, Any]:
        """Return calls as text, and the values of the globals in them."""
        found = dict[str, Any]()
        for call in calls:
            text = ast.unparse(call)
            found[text] = text
            for each in ast.walk(call):  # it may be the name of an environment variable
                if isinstance(each, ast.Constant) and isinstance(each.value, str):
                    found[f"environment {each.value} in {text}"] = os.environ.get(each.value)
            for chain in _chains(call.func):
                function = variables.get(chain[0])
                if isinstance(function, types.FunctionType) and own(function.__code__.co_filename):
                    found[f"{chain[0]} in {text}"] = function  # with its defaults
            for argument in (*call.args, *(each.value for each in call.keywords)):
                for chain in _chains(argument):
                    value: Any = variables.get(chain[0], MISSING)
                    for name in chain[1:]:
                        if value is sys and name == "argv":
                            value = sys.argv
                        elif isinstance(value, types.ModuleType) and own(file_of(value.__name__)):
                            value = vars(value).get(name, MISSING)
                    if not (
                        value is MISSING
                        or value is os.environ
                        or isinstance(value, types.ModuleType)
                    ):
                        found[f"{'.'.join(chain)} in {text}"] = value
        return found

    def literal(self, file: str, variables: dict[str, Any], name: str) -> Any:
        """Return the literal that a variable is set to, once in the file.

        Args:
            file: The path of the file.
            variables: The variables of its module.
            name: The name of the variable; for the attribute of a class, `CLASS.NAME`.

        Returns:
            The value; `MISSING` if the variable is set in another way.
        """
        if file not in self._literals:
            self._literals[file] = {}
            if (tree := self._file(file, variables).tree) is not None:
                self._literals[file] = dict(literals_in(tree))
        return self._literals[file].get(name, MISSING)

    def is_only_one(self, code: types.CodeType, variables: dict[str, Any]) -> bool:
        """Return True if no other code in the file has the same qualified name.

        Args:
            code: The code of a function.
            variables: The globals of the function.
        """
        return self._file(code.co_filename, variables).names[code.co_qualname] < 2

    def of_class(
        self, cls: type, name: str, variables: dict[str, Any]
    ) -> tuple[str, tuple[tuple[str, ...], ...]] | None:
        """Return the digest of a class's source, and the names in the class's body.

        Args:
            cls: The class.
            name: The path of the source file.
            variables: The variables of the module, which may include the loader of its source.

        Returns:
            The digest, and the names with their attributes (see `_chains`). `None` if the file does
            not contain exactly one class with this name, or if its methods differ from the loaded
            ones.

        Raises:
            UnhashableError: The file was changed after the program started, or the class cannot be
                compiled separately.
        """
        file = self._unchanged(name, variables)
        nodes = file.classes.get(cls.__qualname__, [])
        methods = [each for each in vars(cls).values() if isinstance(each, types.FunctionType)]
        codes = {method.__code__ for method in methods if method.__code__.co_filename == name}
        if len(nodes) != 1 or not codes <= file.plain.keys():
            return None
        (node,) = nodes
        body = sorted(node.body, key=lambda each: each.name if isinstance(each, FUNCTIONS) else "")
        sorted_class = copy.copy(node)
        sorted_class.body = body
        try:
            code = compile(ast.Module([sorted_class], []), name, "exec", dont_inherit=True)
        except SyntaxError as error:  # `nonlocal` in a method
            raise UnhashableError(
                f"the source of class {cls.__qualname__} cannot be compiled separately: {error}"
            ) from error
        return digest_of(code), file.chains[cls.__qualname__]

    def of_module(self, name: str, variables: dict[str, Any]) -> ModuleSource | None:
        """Return a module's source.

        Args:
            name: The path of the source file.
            variables: The variables of the module, which may include the loader of its source.

        Returns:
            The source, or `None` if there is no valid one.

        Raises:
            UnhashableError: The file was changed after the program started.
        """
        return _whole(self._unchanged(name, variables))

    def of_import(
        self, name: str, variables: dict[str, Any], imported: Stamp | None
    ) -> tuple[ModuleSource | None, Stamp | None]:
        """Return the source of a module that a task imports.

        The source is read again if the program has imported another version of it meanwhile.

        Args:
            name: The path of the source file.
            variables: The variables of the module, which may include the loader of its source.
            imported: The state of the file when the loaded module was imported; `None` if the
                module is not loaded, or if this state is unknown.

        Returns:
            The source, or `None` if there is no valid one; and the state of the file when it was
            read.

        Raises:
            UnhashableError: The file was changed after the module was imported or, if this time is
                unknown, after the program started.
        """
        if imported is None:
            file = self._unchanged(name, variables)
            return _whole(file), file.stamp
        file = self._file(name, variables)
        if file.stamp != imported:
            linecache.cache.pop(name, None)
            file = self._files[name] = _read(name, variables)
            self._current.clear()
            if file.stamp != imported:
                raise UnhashableError(source_changed(name))
        return _whole(file), file.stamp

    def require_current(self, name: str, spec: ModuleSpec | None, code: types.CodeType) -> None:
        """Raise an error if an import would run other code than that of a module's source.

        Python runs the code in `__pycache__` if the source has the size and the modification time,
        in whole seconds, of the source from which this code was compiled.

        Args:
            name: The module's name.
            spec: The module's spec.
            code: The code of its source.

        Raises:
            UnhashableError: The code in `__pycache__` is that of another source.
        """
        if spec is None or type(spec.loader) is not SourceFileLoader:
            return
        if spec.cached in self._current:
            return
        if spec.cached and os.path.exists(spec.cached) and spec.loader.get_code(name) != code:
            raise UnhashableError(
                f"Python would run the code in {spec.cached}, which was compiled from another "
                "version of the source with the same size and modification time; remove this file"
            )
        self._current.add(spec.cached)

    def _unchanged(self, name: str, variables: dict[str, Any]) -> _File:
        """Return a source file, or raise an error if it was changed after the program started."""
        file = self._file(name, variables)
        if file.stamp is not None and file.stamp.changed > self.process_start:
            raise UnhashableError(source_changed(name))
        return file

    def _file(self, name: str, variables: dict[str, Any]) -> _File:
        found = self._files.get(name)
        if found is None:
            found = self._files[name] = _read(name, variables)
        return found


def source_changed(file: str) -> str:
    """Return the reason why a task that uses a changed source file has no key."""
    return f"{os.path.basename(file)} was changed after the program started; run the program again"


class ModuleSource(NamedTuple):
    """Source of a module: its digest, its code, and its syntax tree."""

    digest: str
    code: types.CodeType
    tree: ast.Module


def _whole(file: _File) -> ModuleSource | None:
    """Return the source of a module; `None` if it is not valid."""
    if file.code is None or file.tree is None:
        return None
    return ModuleSource(digest_of(file.plain.get(file.code, file.code)), file.code, file.tree)


def _read(name: str, variables: dict[str, Any]) -> _File:
    file = _File(stamp_of(name))  # a cell of a notebook has no file
    linecache.checkcache(name)  # it may contain the lines of a former version
    source = "".join(linecache.getlines(name, variables))
    if not source and os.path.exists(name) and os.path.getsize(name):
        return file  # the file is not text, or cannot be read
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the import has already shown these warnings
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if file.stamp is None else 0  # as in a notebook
            file.code = compile(source, name, "exec", flags, dont_inherit=True)
            file.names.update(each.co_qualname for each in with_inner(file.code))
            statements = [_by_statement(source, name, flags)] if file.stamp is None else []
            tree = ast.parse(source)
            scopes = _normalize(tree, file)
            plain = compile(tree, name, "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):  # not Python, or nested too deeply
        return file
    file.tree = tree
    for one in (file.code, *statements):
        for code, counterpart in _pairs(one, plain):
            file.plain[code] = counterpart
            node = scopes.get(counterpart.co_firstlineno)
            # The first line of a decorated function is that of its first decorator.
            if isinstance(node, FUNCTIONS | ast.Lambda) and code.co_name == getattr(
                node, "name", "<lambda>"
            ):
                file.nodes[code] = node
    return file


def _by_statement(source: str, name: str, flags: int) -> types.CodeType:
    """Compile each statement of a cell separately, as IPython does.

    The byte code of a function may differ: Python 3.11 compiles a call of a module's function
    differently if a statement before it imports the module.

    Returns:
        The code of an empty module with the code objects of the statements as its constants.
    """
    inner: list[types.CodeType] = []
    for node in ast.parse(source).body:
        code = compile(ast.Module([node], []), name, "exec", flags, dont_inherit=True)
        inner += (each for each in code.co_consts if isinstance(each, types.CodeType))
    return compile("", name, "exec", dont_inherit=True).replace(co_consts=tuple(inner))


class _Unquoted(ast.NodeTransformer):
    """Replaces quoted annotations by what they name, because libraries evaluate them."""

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, str):
            with contextlib.suppress(SyntaxError, ValueError):
                return ast.parse(node.value, mode="eval").body
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        name = getattr(node.value, "attr", getattr(node.value, "id", None))
        return node if name == "Literal" else cast("ast.expr", self.generic_visit(node))


def _normalize(tree: ast.Module, file: _File) -> dict[int, ast.AST]:
    """Remove docstrings, positions and functions' annotations from a tree, and note its classes.

    Annotations of functions in functions remain, because the outer function evaluates them.
    Positions affect byte code: Python merges two jumps only if they are on one line. Each scope
    receives a separate line number, because equal code objects on one line would be merged. Names
    are mangled as Python does it in classes.

    Returns:
        The node of each scope by its line number.
    """
    todo: list[tuple[ast.AST, str, str, int]] = [(tree, "", "", 1)]
    scopes: dict[int, ast.AST] = {1: tree}
    while todo:
        node, path, private, line = todo.pop()
        if isinstance(node, SCOPES):
            line = len(scopes) + 1
            scopes[line] = node
        if isinstance(node, ast.ClassDef):
            path += node.name
            for each in node.body:
                if isinstance(each, ast.AnnAssign):
                    each.annotation = _Unquoted().visit(each.annotation)
            file.classes.setdefault(path, []).append(node)
            file.chains[path] = _chains(node)
            path += "."
        elif isinstance(node, FUNCTIONS):
            if "<locals>" not in path:
                node.returns = None
            path += f"{node.name}.<locals>."
        elif isinstance(node, ast.arg) and path.count("<locals>") == 1:
            node.annotation = None
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if "lineno" in node._attributes:
            vars(node).update(lineno=line, end_lineno=line, col_offset=0, end_col_offset=0)
        if private:
            _mangle(node, private)
        inner = node.name if isinstance(node, ast.ClassDef) else private
        todo += [(each, path, inner, line) for each in ast.iter_child_nodes(node)]
    return scopes


def _mangle(node: ast.AST, cls: str) -> None:
    """Replace private names in the body of a class, such as `__x`, as the compiler does."""
    for kind, name in _MANGLED:
        text = getattr(node, name, None)
        if isinstance(node, kind) and isinstance(text, str):
            setattr(node, name, mangled(text, cls))
    if isinstance(node, ast.Global | ast.Nonlocal):
        node.names = [mangled(each, cls) for each in node.names]


def _pairs(
    code: types.CodeType, plain: types.CodeType
) -> Iterator[tuple[types.CodeType, types.CodeType]]:
    """Yield a code object and all code nested in it, each with its normalized form.

    Args:
        code: The code object.
        plain: Its normalized form, compiled from the normalized syntax tree.

    Yields:
        A code object and its normalized form.
    """
    yield code, plain
    inner, plains = (
        [c for c in each.co_consts if isinstance(c, types.CodeType) and c.co_name != "__annotate__"]
        for each in (code, plain)
    )
    if len(inner) == len(plains):
        for pair in zip(inner, plains, strict=True):
            yield from _pairs(*pair)


def _chains(node: ast.AST) -> tuple[tuple[str, ...], ...]:
    """Return the names in a class's body or an expression, with the attributes read from them."""
    chains: dict[tuple[str, ...], None] = {}
    inner: set[ast.AST] = set()  # `os.path` in `os.path.join`
    for each in ast.walk(node):
        if each in inner:
            continue
        chain: list[str] = []
        while isinstance(each, ast.Attribute):
            chain.insert(0, each.attr)
            each = each.value
            inner.add(each)
        if isinstance(each, ast.Name):
            chains[(each.id, *chain)] = None
    return tuple(chains)


def digest_of(code: types.CodeType) -> str:
    """Return the digest of compiled code and of the minor version of Python."""
    made = hashlib.blake2b(repr(sys.version_info[:2]).encode(), digest_size=DIGEST_SIZE)
    for one in with_inner(code):
        constants = [each for each in one.co_consts if not isinstance(each, types.CodeType)]
        counts = one.co_argcount, one.co_posonlyargcount, one.co_kwonlyargcount
        names = one.co_names, one.co_varnames, one.co_freevars, one.co_cellvars
        flags = one.co_flags & ~__future__.annotations.compiler_flag
        text = f"{_constant(tuple(constants))} {names} {counts} {flags} {one.co_exceptiontable!r}"
        made.update(one.co_code + text.encode("utf-8", "surrogatepass"))
    return made.hexdigest()


def _constant(value: Any) -> str:
    """Return a constant as text, with sets sorted."""
    if isinstance(value, tuple):
        return f"({','.join(map(_constant, value))})"
    if isinstance(value, frozenset):
        return f"{{{','.join(sorted(map(_constant, value)))}}}"
    return hex(value) if type(value) is int else repr(value)  # `repr` rejects very large integers


TASK_FUNCTION = "the function"
"""Name of the part for the name of a task's function."""


_FILLED: WeakKeyDictionary[Any, dict[str, str]] = WeakKeyDictionary()
"""The parts of the code that has filled each cache of `functools.lru_cache` in this process."""

_LRU_CACHE = type(functools.lru_cache(len))


@dataclass(frozen=True, slots=True)
class Memo:
    """Cache in which tasks keep values for the next ones.

    Attributes:
        name: The name of the part of a digest that represents it.
        key: Its key in `Surroundings.memos`, or the id of a function with `lru_cache`.
        owner: The object with this id.
        size: Function that returns the number of its items.
    """

    name: str
    key: tuple[int, str]
    owner: object
    size: Callable[[], int]

    def __len__(self) -> int:
        return self.size()


class Surroundings:
    """Sources, files and environment of the program, shared by the fingerprints of a run.

    Args:
        directory: The program's directory. Paths below it are digested relative to it.
        files: The cache of the digests of files.

    Attributes:
        roots: The program's directory, without and with symbolic links.
        file: Function that returns the digest of a file's content, or `None` if there is no
            readable file. See `FileDigests.of`.
        sources: The program's source files.
        origins: The origin of each module: the program or an installed distribution.
        memos: Owners of the variables that are treated as empty because tasks fill them, by the
            owner's id and the variable's name. An owner is a class, a closure cell (with an empty
            name), or the variables of a module.
        caches: Objects with attributes that are treated as empty because tasks fill them, by the
            object's id and the attribute's name.
        loaded: Names of the modules that were loaded when this object was created.
        unloaded: Names of modules that are treated as not loaded; see `CodeFingerprint`.
        has_changed: Function that returns True if the variables of a module have changed since its
            import. See `ImportedModules.changed`.
        imported: The states of the source files of modules, by the name of the module, when they
            were last imported or reloaded. See `ImportedModules`.
    """

    def __init__(self, directory: Path, files: FileDigests) -> None:
        self.sources: Sources = Sources()
        self.origins: Origins = Origins()
        self._directory = real_path(str(directory))
        self.roots: tuple[str, str] = self._directory, os.path.abspath(directory)
        self._files = files
        self.file: Callable[[str], bytes | None] = files.of
        self._names: dict[types.CodeType, Names] = {}
        self._packages: dict[str, str] = {}
        self._environment: dict[bytes, bytes] | None = None
        self._variables: dict[str, str | None] = {}
        self.memos: dict[tuple[int, str], object] = {}
        self._kinds: dict[tuple[int, str], str] = {}  # of the values that memos had at first
        # The owners of memos, and the parts of the code that has filled them.
        self._filled: dict[tuple[int, str], tuple[object, dict[str, str]]] = {}
        self.caches: WeakValueDictionary[tuple[int, str], object] = WeakValueDictionary()
        self._cache_attributes: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()
        self.loaded: frozenset[str] = frozenset(sys.modules)
        self.unloaded: set[str] = set()
        self.has_changed: Callable[[str], bool] = lambda name: False
        self.imported: dict[str, Stamp] = {}

    def is_own(self, kind: type) -> bool:
        """Return True if a class belongs to the program and not to a library."""
        return self.origins.own(file_of(kind.__module__))

    def is_as_imported(self, holder: object, name: str, value: object) -> bool:
        """Return True if a variable is known to have the value that an import gives it.

        Args:
            holder: The variables of a module, or a class.
            name: The name of the variable or attribute.
            value: Its value.
        """
        return VALUES.is_unchanged(holder, name, value)

    def digest_as_imported(self, holder: object, name: str) -> bytes | None:
        """Return a digest of the value that an import gives a variable, if it is known.

        Args:
            holder: The variables of a module, or a class.
            name: The name of the variable or attribute.
        """
        return VALUES.digest(holder, name)

    def seeds(self) -> dict[str, Any]:
        """Return the calls by which the program's modules set the seeds of generators.

        The values are the texts of the calls and the values of the globals in them.

        Raises:
            UnhashableError: A file was changed after it was imported.
        """
        found = dict[str, Any]()
        for module in list(sys.modules.values()):
            if issubclass(type(module), types.ModuleType):  # not such as cffi's objects
                variables = object.__getattribute__(module, "__dict__")  # loads no lazy module
                if self.origins.own(file := variables.get("__file__")):
                    seeds = self.sources.seeds(file, variables, self.origins.own)
                    if seeds:
                        self._require_loaded(str(variables.get("__name__")), file)
                    found |= seeds
        cells = vars(sys.modules["__main__"]).get("In")  # of IPython
        if isinstance(cells, list):
            texts = [each for each in cells if isinstance(each, str)]
            variables = vars(sys.modules["__main__"])
            found |= self.sources.seeds_in_cells(texts, variables, self.origins.own)
        return found

    def _require_loaded(self, module: str, file: str) -> None:
        """Raise an error if a module's source file may have changed since it was imported."""
        stamp = self._files.once(stamp_of, file)
        changed = stamp is not None and stamp.changed > self.sources.process_start
        if changed and stamp != self.imported_from(module):
            raise UnhashableError(source_changed(file))

    def imported_from(self, module: str) -> Stamp | None:
        """Return the state of a module's source file when the loaded module was imported.

        Return `None` if the module is not loaded, or if this state is unknown.
        """
        return self.imported.get(module) if module in sys.modules else None

    def require_same_sources(
        self, sources: Mapping[str, tuple[str, Stamp | None]], *, sent: bool
    ) -> None:
        """Raise an error if a task imports another version of a module than its key represents.

        Args:
            sources: The sources that the key represents. See `CodeFingerprint.sources`.
            sent: True if the task runs in another process. It receives the first version of a
                module that this process has not imported.

        Raises:
            UnhashableError: A file has changed since it was read.
        """
        for name, (file, stamp) in sources.items():
            imported = self.imported_from(name)
            if imported is None and sent and name not in sys.modules:
                continue
            # IPython's autoreload replaces parts of a module without importing it again.
            if imported is None or "IPython.extensions.autoreload" in sys.modules:
                imported = self._files.once(stamp_of, file)
            if stamp != imported:
                raise UnhashableError(source_changed(file))

    def names(self, code: types.CodeType, variables: dict[str, Any]) -> Names:
        """Return the names that a function uses but does not define.

        Args:
            code: The code of the function.
            variables: The globals of the function.
        """
        found = self._names.get(code)
        if found is None:
            node = self.sources.node_of(code, variables)
            if node is None:
                return _names_without_source(code, variables)
            found = self._names[code] = names_in(node, code.co_freevars)
        return found

    def cache_attributes(self, cls: type) -> frozenset[str]:
        """Return the names of the attributes that the program's methods of a class use as caches.

        See `is_cache`.
        """
        found = self._cache_attributes.get(cls)
        if found is None:
            members = (member for base in cls.__mro__ for member in vars(base).values())
            uses = {
                use
                for each in members
                if isinstance(each, types.FunctionType)
                and self.origins.own(each.__code__.co_filename)
                for use in self.names(each.__code__, each.__globals__).caches
            }
            found = frozenset(name for _, name in uses if is_cache(name, uses))
            self._cache_attributes[cls] = found
        return found

    def place(self, file: str) -> str:
        """Return a source file's path relative to the program's directory.

        For code without a file, return `a cell or a string`.
        """
        if file.startswith("<") or not os.path.exists(file):  # the cells of notebooks are numbered
            return "a cell or a string"
        return os.path.relpath(os.path.realpath(file), self._directory)

    def portable(self, path: str) -> str:
        """Return a path in a form that does not change if the program's directory is moved."""
        if path.startswith(self.roots):
            for root in self.roots:
                if path == root or path.startswith(root + os.sep):
                    return "\0" + path.removeprefix(root)
        return path

    def once(self, make: Callable[..., T], *args: Any) -> T:
        """Return a function's result, which is reused within a batch. See `FileDigests.once`."""
        return self._files.once(make, *args)

    def note_memo(self, known: tuple[int, str], owner: object, value: object) -> str:
        """Add a variable to `memos`.

        Args:
            known: The variable's key in `memos`.
            owner: The variable's owner.
            value: The variable's value, which is empty in the first call for this variable.

        Returns:
            The part of a digest that represents the variable. It contains the type of the empty
            value, because code may distinguish `None` from an empty container.
        """
        self.memos[known] = owner
        kind = self._kinds.setdefault(known, type(value).__name__)
        return f"filled by the task, {kind} at first"

    def require_same_memos(self, memos: Iterable[Memo], parts: Mapping[str, str]) -> None:
        """Raise an error if a memo contains items that other code may have computed.

        This happens if a cell of a notebook is edited, or if the program changes a variable.

        Args:
            memos: The memos that code uses.
            parts: All parts of the digest of this code.

        Raises:
            UnhashableError: The code or a value that it uses has changed since a memo was empty.
        """
        for memo in memos:
            if isinstance(memo.owner, _LRU_CACHE):
                former = _FILLED.setdefault(memo.owner, {})
            else:
                _, former = self._filled.setdefault(memo.key, (memo.owner, {}))
            if not memo:
                former.clear()
            for name, part in parts.items():
                if "<" in name or name == TASK_FUNCTION:  # different functions can have this name
                    continue
                if former.setdefault(name, part) != part:
                    raise UnhashableError(
                        f"{memo.name} may contain items that were computed before {name} changed; "
                        "empty it after such a change, or restart the program"
                    )

    @property
    def pipes(self) -> set[str]:
        """Paths that were passed to `file` and are named pipes."""
        return self._files.pipes

    def package(self, name: str) -> str:
        """Return the digest of an installed package that belongs to no distribution."""
        if name not in self._packages:
            spec, made = spec_of(name, None), hashlib.blake2b(digest_size=DIGEST_SIZE)
            places = spec and (spec.submodule_search_locations or [str(spec.origin)])
            for place in places or ():
                files = [Path(str(place)), *sorted(Path(str(place)).rglob("*"))]
                for file in files:
                    if "__pycache__" not in file.parts:
                        made.update(self.file(str(file)) or b"")
            self._packages[name] = made.hexdigest()
        return self._packages[name]

    def which(self, names: Iterable[str], path: str | None) -> Iterator[str]:
        """Yield the paths of the programs among the words of a command.

        A long shell script contains thousands of words. After the first ones, a word is looked up
        only if a directory of `PATH` contains its name.

        Args:
            names: The words, without duplicates.
            path: The `PATH` of the command, or `None` for the `PATH` of this process.
        """
        once = self._files.once
        for number, name in enumerate(names):
            if number < FEW_WORDS or name in once(_names_on, path):
                program = once(shutil.which, name, os.F_OK | os.X_OK, path)
                if program is not None:
                    yield program

    def variables(self) -> Mapping[str, str | None]:
        """Return the variables of `os.environ` that have changed since the program started.

        The value of a removed variable is `None`.
        """
        now = environment
        if now != self._environment:
            self._environment, initial = now.copy(), _initial_environment()
            changed = {name: value for name, value in now.items() if initial.get(name) != value}
            self._variables = {os.fsdecode(n): os.fsdecode(v) for n, v in changed.items()}
            self._variables |= {os.fsdecode(name): None for name in initial.keys() - now.keys()}
        return self._variables

    def content(self, name: str, path: str | None) -> bytes:
        """Return the digest of an input file or directory.

        Args:
            name: The input's name, for the error message.
            path: The input's path, or `None` if it cannot be read on this machine.

        Raises:
            UnhashableError: The input cannot be read on this machine.
        """
        digest = None if path is None else self._files.of_any(path)
        if digest is None:
            raise UnhashableError(f"its input file {name!r} cannot be read on this machine")
        return digest


def _names_without_source(code: types.CodeType, variables: Mapping[str, Any]) -> Names:
    """Return all names in the byte code of a function, as far as they may be globals.

    Args:
        code: The code of the function.
        variables: The globals of the function.
    """
    inner = tuple(with_inner(code))
    words = dict.fromkeys(name for one in inner for name in one.co_names)
    modules: dict[tuple[str, tuple[str, ...]], None] = {}
    members: list[tuple[str, Use]] = []
    for one in inner:
        steps = [each for each in dis.get_instructions(one) if each.opname != "EXTENDED_ARG"]
        for number, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                level, taken = (each.argval for each in steps[number - 2 : number])
                name = "." * level + step.argval
                modules[name, taken or ()] = None
                loaded = sys.modules.get(step.argval)
                for chain in _chains_without_source((name,), loaded, words):
                    members.append((name, Use(chain, OTHER)))
    uses = [
        Use(chain, OTHER)
        for each in words
        for chain in _chains_without_source((each,), variables.get(each), words)
    ]
    return Names(
        tuple(uses),
        tuple(modules),
        tuple(members),
        stored=names_stored(code, "GLOBAL"),
    )


def _chains_without_source(
    chain: tuple[str, ...], value: object, words: Iterable[str]
) -> Iterator[tuple[str, ...]]:
    """Yield a name, and the members of a module that byte code names, as in `Use.chain`."""
    members = vars(value) if isinstance(value, types.ModuleType) else {}
    found = [each for each in words if each in members] if len(chain) < DEEPEST else []
    if not (found and members["__name__"].partition(".")[0] in sys.stdlib_module_names):
        yield chain  # the code may use the module as a whole
    for each in found:
        yield from _chains_without_source((*chain, each), members[each], words)


def literals_in(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """Yield the variables of a module and of its classes that the file sets once, to a literal.

    A global whose name occurs again is left out, even if that is a local variable.
    """
    classes = [each for each in tree.body if isinstance(each, ast.ClassDef)]
    bodies = [(f"{each.name}.", each.body, _stores(each.body)) for each in classes]
    stores = _stores([tree])
    for _, _, inner in bodies:
        stores.subtract(inner)
    for prefix, body, counts in (("", tree.body, stores), *bodies):
        for node in body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign) and node.value is not None:
                targets = [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and counts[target.id] == 1 and not counts["*"]:
                    with contextlib.suppress(ValueError, TypeError, RecursionError):
                        yield f"{prefix}{target.id}", ast.literal_eval(cast("Any", node).value)


def _stores(nodes: Iterable[ast.AST]) -> Counter[str]:
    """Count how often statements set or delete each name; methods of a class are left out."""
    found: Counter[str] = Counter()
    for each in nodes:
        for node in () if isinstance(each, FUNCTIONS) else ast.walk(each):
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                found[node.id] += 1
            elif isinstance(node, ast.Global | ast.Nonlocal):
                found.update(node.names)
            elif isinstance(node, ast.alias):
                found[node.asname or node.name.partition(".")[0]] += 1
    return found


@functools.lru_cache(maxsize=1000)
def _seeds_in(text: str) -> tuple[ast.Call, ...]:
    """Return the calls in a source text that set seeds, also in cells with magics of IPython."""
    found: list[ast.Call] = []
    if "seed" in text.lower():
        with contextlib.suppress(SyntaxError, ValueError):
            for each in ast.walk(ast.parse(text)):
                if not isinstance(each, ast.Call):
                    continue
                words = set(_words_in(each.func))
                if not words.isdisjoint(("run_cell_magic", "run_line_magic")):
                    cell = each.args[-1] if each.args else None
                    if isinstance(cell, ast.Constant):
                        found += _seeds_in(str(cell.value))
                elif any("seed" in word.lower() for word in words):
                    found.append(each)  # such as `random.seed(1)` and `torch.manual_seed(1)`
    return tuple(found)


def _words_in(node: ast.AST) -> Iterator[str]:
    """Yield the names, attributes and texts in an expression."""
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Attribute):
            yield each.attr
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def _names_on(path: str | None) -> frozenset[str]:
    """Return the names of all files in the directories of a `PATH`."""
    found: set[str] = set()
    for directory in os.get_exec_path(None if path is None else {"PATH": path}):
        with contextlib.suppress(OSError, ValueError):  # missing, or not readable
            found.update(os.listdir(directory or os.curdir))
    return frozenset(found)


@functools.cache
def _initial_environment() -> Mapping[bytes, bytes]:
    """Return the initial environment of this process, as far as the system reports it."""
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:  # not Linux: changes before this call are not detected
        return dict(os.environb)
    found: dict[bytes, bytes] = {}
    for entry in entries:
        name, given, value = entry.partition(b"=")
        if given:
            found.setdefault(name, value)
    return found
