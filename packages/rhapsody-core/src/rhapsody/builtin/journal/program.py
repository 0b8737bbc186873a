"""Source code of the program: its digests, the names that it uses, and its origin.

The digest of a user's function is computed from byte code that is compiled again from the source,
without docstrings, positions and annotations of arguments. The digest always represents the loaded
code, not the current content of the file: if the two differ, or if there is no source, the loaded
byte code is used as it is. The digest of a class or module is computed from its source in the same
way, and a file that was changed after the program started is rejected. Digests depend on the minor
version of Python, because byte code does. Installed packages are represented by their versions.

The names that a function uses but does not define are read from its compiled code, because that is
the code that runs. The compiled code shows which globals the function reads, with the attributes
that it reads directly from them (`settings.rate`), and which modules it imports. It also shows
literal subscripts and first arguments, such as `"RATE"` in `os.environ["RATE"]`.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import dis
import functools
import hashlib
import itertools
import linecache
import os
import re
import shutil
import sys
import time
import types
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import resolve_name
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, TypeVar, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from rhapsody._private import environment
from rhapsody.builtin.journal.as_imported import VALUES
from rhapsody.builtin.journal.files import FileDigests, Stamp, stamp_of
from rhapsody.builtin.journal.values import DIGEST_SIZE, UnhashableError
from rhapsody.sdk.modules import MISSING, Origins, file_of, real_path, spec_of, with_inner
from rhapsody.sdk.runner import process_start_time

T = TypeVar("T")

PROCESS_START: int = process_start_time() or time.time_ns()
"""Start time of this process in nanoseconds since the epoch; if the process was forked after this
module was imported, the start time of its parent."""

FEW_WORDS = 64
"""Number of words of a command that are looked up without listing the directories of `PATH`."""

_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef

_DOCUMENTED = ast.Module | ast.ClassDef | _FUNCTIONS

_SCOPES = (
    ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda
    | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
)  # fmt: skip
"""Syntax nodes for which Python compiles a separate code object."""


@dataclass(slots=True)
class _File:
    """Source file and the code that was compiled from it when it was first read.

    Attributes:
        stamp: The state of the file when it was read, or `None` if there is no file.
        code: The file's code as Python compiles it, or `None` if there is no valid source.
        plain: For each code object of the file, its counterpart compiled from the syntax tree that
            `_normalize` has changed.
        names: The number of code objects with each qualified name.
        classes: The classes in that syntax tree, by qualified name.
        chains: The names in the body of each class, by qualified name. See `_chains`.
    """

    stamp: Stamp | None = None
    code: types.CodeType | None = None
    plain: dict[types.CodeType, types.CodeType] = field(default_factory=dict)
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
        self._seeds: dict[str, tuple[ast.Call, ...]] = {}  # calls that set seeds, by file
        self._literals: dict[str, dict[str, Any]] = {}

    def of_function(self, function: types.FunctionType) -> str:
        """Return the digest of a function's own code."""
        code = function.__code__
        return digest_of(self._file(code.co_filename, function.__globals__).plain.get(code, code))

    def seeds(
        self, file: str, variables: dict[str, Any], own: Callable[[object], bool]
    ) -> dict[str, Any]:
        """Return the calls in a file that set seeds, and the values of the globals in them.

        Args:
            file: The path of the file.
            variables: The variables of its module.
            own: Function that returns True for the files of the program's modules.
        """
        if file not in self._seeds:
            self._seeds[file] = _seeds_in("".join(linecache.getlines(file, variables)))
        return self._with_globals(self._seeds[file], variables, own)

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
            with contextlib.suppress(SyntaxError, ValueError, RecursionError):
                tree = ast.parse("".join(linecache.getlines(file, variables)))
                self._literals[file] = dict(_literals(tree))
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
        node.body.sort(key=lambda each: each.name if isinstance(each, _FUNCTIONS) else "")
        try:
            code = compile(ast.Module([node], []), name, "exec", dont_inherit=True)
        except SyntaxError as error:  # `nonlocal` in a method
            raise UnhashableError(
                f"the source of class {cls.__qualname__} cannot be compiled separately: {error}"
            ) from error
        return digest_of(code), file.chains[cls.__qualname__]

    def of_module(self, name: str, variables: dict[str, Any]) -> tuple[str, types.CodeType] | None:
        """Return the digest of a module's source, and the module's code.

        Args:
            name: The path of the source file.
            variables: The variables of the module, which may include the loader of its source.

        Returns:
            The digest and the code, or `None` if there is no valid source.

        Raises:
            UnhashableError: The file was changed after the program started.
        """
        return _whole(self._unchanged(name, variables))

    def of_import(
        self, name: str, variables: dict[str, Any], imported: Stamp | None
    ) -> tuple[tuple[str, types.CodeType] | None, Stamp | None]:
        """Return the digest of the source of a module that a task imports.

        The source is read again if the program has imported another version of it meanwhile.

        Args:
            name: The path of the source file.
            variables: The variables of the module, which may include the loader of its source.
            imported: The state of the file when the loaded module was imported; `None` if the
                module is not loaded, or if this state is unknown.

        Returns:
            The digest and the code, or `None` if there is no valid source; and the state of the
            file when it was read.

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


def _whole(file: _File) -> tuple[str, types.CodeType] | None:
    """Return the digest of a whole source file, and its code; `None` without valid source."""
    if file.code is None:
        return None
    return digest_of(file.plain.get(file.code, file.code)), file.code


def _read(name: str, variables: dict[str, Any]) -> _File:
    file = _File(stamp_of(name))  # a cell of a notebook has no file
    linecache.checkcache(name)  # it may contain the lines of a former version
    source = "".join(linecache.getlines(name, variables))
    if not source and os.path.exists(name) and os.path.getsize(name):
        return file  # the file is not text, or cannot be read
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the import has already shown these warnings
            file.code = compile(source, name, "exec", dont_inherit=True)
            file.names.update(each.co_qualname for each in with_inner(file.code))
            tree = ast.parse(source)
            _normalize(tree, file)
            plain = compile(tree, name, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError):  # not Python, or nested too deeply
        return file
    file.plain.update(_pairs(file.code, plain))
    return file


def _normalize(tree: ast.Module, file: _File) -> None:
    """Remove docstrings, positions and functions' annotations from a tree, and note its classes.

    Positions affect byte code: Python merges two jumps only if they are on one line. Each scope
    receives a separate line number, because equal code objects on one line would be merged.
    """
    todo: list[tuple[ast.AST, str, int]] = [(tree, "", 1)]
    scopes = 1
    while todo:
        node, path, line = todo.pop()
        if isinstance(node, _SCOPES):
            scopes += 1
            line = scopes
        if isinstance(node, ast.ClassDef):
            path += node.name
            file.classes.setdefault(path, []).append(node)
            file.chains[path] = _chains(node)
            path += "."
        elif isinstance(node, _FUNCTIONS):
            path += f"{node.name}.<locals>."
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if "lineno" in node._attributes:
            vars(node).update(lineno=line, end_lineno=line, col_offset=0, end_col_offset=0)
        todo += [(each, path, line) for each in ast.iter_child_nodes(node)]


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
    for each in ast.walk(node):
        chain: list[str] = []
        while isinstance(each, ast.Attribute):
            chain.insert(0, each.attr)
            each = each.value
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


_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})

_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})

_IGNORED = frozenset({"EXTENDED_ARG", "PUSH_NULL", "NOP", "NOT_TAKEN"})

_LOCALS = frozenset({"LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})

_LOCAL_STORES = frozenset({"STORE_FAST", "STORE_DEREF"})

_SETS_ITEMS = frozenset({"STORE_SUBSCR", "DELETE_SUBSCR"})

_STORES = _LOCAL_STORES | {"STORE_GLOBAL", "STORE_NAME"}

CALLS: frozenset[str] = frozenset({
    "PRECALL", "CALL", "CALL_KW", "KW_NAMES", "CALL_FUNCTION_EX", "CALL_INTRINSIC_1",
})  # fmt: skip
"""Instructions that pass a value to a call or prepare a call."""


_FILLING_METHODS = frozenset({
    "add", "append", "appendleft", "extend", "insert", "move_to_end", "setdefault", "update",
})  # fmt: skip
"""Names of methods that fill a container."""


_TESTS = ("POP_JUMP", "JUMP_IF", "TO_BOOL", "UNARY_NOT")
"""Beginnings of the names of instructions that test whether a container is empty."""

_SOON = 100
"""Number of instructions after a subscript within which an `except` counts as its own."""


ITEM = "ITEM"
"""Value of `Use.by` for a value that becomes an item, or an index, of another container."""

ROLES = ("fills", "looks", "adds")
"""Roles of a container in code. See `Use`."""


class Use(NamedTuple):
    """Use of a global by code.

    Attributes:
        chain: The global's name, followed by the attributes that are read directly from it.
        by: The instruction that consumes the value, such as `BINARY_SUBSCR` or one of `CALLS`;
            `ITEM`; an empty string if it is unknown.
        key: The subscript, the first argument of the call, or the left operand of `in`. A literal
            is represented by a string, a global by a tuple with its name, anything else by `None`.
        roles: How the code uses the value; see `is_cache`. It `fills` a container in place, `looks`
            for an item or tests whether the container is empty, or `adds` to an item, which
            includes a comparison of the value with a new result.
    """

    chain: tuple[str, ...]
    by: str = ""
    key: str | tuple[str] | None = None
    roles: tuple[str, ...] = ()

    @property
    def container(self) -> str:
        """The last name in the chain, or the one before it if the last one is a method."""
        return self.chain[-2] if self.by in CALLS and len(self.chain) > 1 else self.chain[-1]


def is_cache(roles: Collection[str]) -> bool:
    """Return True if code uses a container as a cache.

    Such code both fills the container and looks for items in it. A container that is only filled
    collects results. If code adds to the items, it counts (`seen[x] += 1`) or groups
    (`groups[x].append(y)`).

    Args:
        roles: All roles of the container in the code. See `Use`.
    """
    return "fills" in roles and "looks" in roles and "adds" not in roles


@dataclass(frozen=True, slots=True)
class Names:
    """Names that code uses but does not define, and its imports.

    Attributes:
        uses: The globals that the code reads.
        modules: The modules that the code imports, each with the names imported from it. A module's
            name begins with a dot for each relative level.
        members: The uses of those modules: pairs of a module's name and a use whose chain begins
            with that name.
        stored: Names of globals that the code sets or deletes.
        only_stored: The names in `stored` that the code never reads.
        roles: The roles of attributes, such as `seen` in `self.seen.append(x)`: pairs of a role
            and the attribute's name.
        closed: Names of closure variables that the code uses as caches.
    """

    uses: tuple[Use, ...]
    modules: tuple[tuple[str, tuple[str, ...]], ...]
    members: tuple[tuple[str, Use], ...]
    stored: frozenset[str]
    only_stored: frozenset[str]
    roles: frozenset[tuple[str, str]]
    closed: frozenset[str]


class _Step(NamedTuple):
    """Instruction, with its effect on the depth of the stack."""

    name: str
    value: Any
    effect: int


def names_in(code: types.CodeType) -> Names:
    """Return the names that code and its nested functions use but do not define."""
    uses: dict[Use, None] = {}
    modules: dict[tuple[str, tuple[str, ...]], None] = {}
    members: dict[tuple[str, Use], None] = {}
    stored: set[str] = set()
    read: set[str] = set()
    roles: set[tuple[str, str]] = set()
    enclosed: dict[str, set[str]] = {}
    bodies = [list(_steps(one)) for one in with_inner(code)]
    # By the variable's name: global variables, and local variables of any of the functions.
    imported: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    inside: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for steps in bodies:
        for number, step in enumerate(steps):
            if step.name == "IMPORT_NAME":
                level, taken = (each.value for each in steps[number - 2 : number])
                name = "." * level + step.value
                modules[name, taken or ()] = None
                for store, member in _imported(steps, number, name, taken):
                    places = inside if store.name in _LOCAL_STORES else imported
                    places.setdefault(store.value, []).append(member)
    for steps in bodies:
        for number, step in enumerate(steps):
            if step.name in _LOADS:
                read.add(step.value)
            if step.name in _LOADS and step.value not in imported:
                use = _use(steps, number)
                uses[use] = None
                if use.container != step.value:
                    roles.update((role, use.container) for role in use.roles)
            elif step.name in _LOADS or step.name in _LOCALS:
                use = _use(steps, number)
                places = imported if step.name in _LOADS else inside
                for module, chain in places.get(step.value, ()):
                    whole = module, *chain, *use.chain[1:]
                    members[module, use._replace(chain=whole)] = None
                if step.name in _LOADS:
                    continue
                if use.container != step.value:
                    roles.update((role, use.container) for role in use.roles)
                elif step.name != "LOAD_FAST":  # not a local variable
                    enclosed.setdefault(step.value, set()).update(use.roles)
            elif step.name in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                stored.add(step.value)
    made = tuple(uses), tuple(modules), tuple(members)
    only_stored = frozenset(stored - read)
    inner = {name for one in with_inner(code) if one is not code for name in one.co_cellvars}
    closed = frozenset(name for name, each in enclosed.items() if is_cache(each)) - inner
    return Names(*made, frozenset(stored), only_stored, frozenset(roles), closed)


def constants_in(code: types.CodeType) -> dict[str, str]:
    """Return the global variables that a module sets once and to a string literal."""
    found: dict[str, str] = {}
    stored: Counter[str] = Counter()
    for one in with_inner(code):
        steps = list(_steps(one))
        if any(step.value == ("*",) for step in steps):  # `import *` may set any variable
            return {}
        for before, step in itertools.pairwise(steps):
            if step.name in ("STORE_NAME", "STORE_GLOBAL"):
                stored[step.value] += 1
                if before.name == "LOAD_CONST" and isinstance(before.value, str):
                    found[step.value] = before.value
    return {name: text for name, text in found.items() if stored[name] == 1}


def caches_in(cls: type) -> frozenset[str]:
    """Return the names of the attributes that the methods of a class use only as caches.

    The methods store single items in such a dict, test with `in` for its keys, and read single
    items; they do nothing else with it. Its name begins with an underscore, or contains `cache` or
    `memo`.
    """
    filled: set[str] = set()
    tested: set[str] = set()
    read: set[str] = set()
    others: set[str] = set()
    members = (member for base in cls.__mro__ for member in vars(base).values())
    functions = (each for each in members if isinstance(each, types.FunctionType))
    for code in (inner for each in functions for inner in with_inner(each.__code__)):
        steps = list(_steps(code))
        for number, step in enumerate(steps):
            chain = _chain(steps, number) if step.name in _LOCALS else ()
            if len(chain) < 2:
                continue
            last, taker = number + len(chain) - 1, _taker(steps, number + len(chain) - 1)
            by = "" if taker is None else steps[taker].name
            kinds = [each.name for each in steps[last:taker]]
            if len(chain) == 2 and by == "STORE_SUBSCR" and "COPY" not in kinds:  # not `+=`
                (filled if _is_container(steps, last, taker or last) else others).add(chain[1])
            elif len(chain) == 2 and by == "CONTAINS_OP":
                tested.add(chain[1])
            elif (chain[2:], by) != ((), "BINARY_SUBSCR") and chain[2:] != ("get",):
                others.update(chain[1:])
            elif "adds" in _use(steps, number).roles:
                others.add(chain[1])
            else:
                read.add(chain[1])
    named = {each for each in filled if each[0] == "_" or "cache" in each or "memo" in each}
    return frozenset(named & tested & read - others)


def _steps(code: types.CodeType) -> Iterator[_Step]:
    """Yield the relevant instructions of compiled code; split combined instructions in two."""
    for each in dis.get_instructions(code):
        if each.opname in _IGNORED:
            continue
        parts = re.findall("(LOAD|STORE)_FAST", each.opname)
        if len(parts) > 1:
            for part, value in zip(parts, each.argval, strict=True):
                yield _Step(f"{part}_FAST", value, 1 if part == "LOAD" else -1)
            continue
        name = f"{parts[0]}_FAST" if parts else each.opname
        if name == "BINARY_OP" and each.argrepr == "[]":
            name = "BINARY_SUBSCR"
        yield _Step(name, each.argval, dis.stack_effect(each.opcode, each.arg, jump=False))


def _chain(steps: list[_Step], number: int) -> tuple[str, ...]:
    """Return the name that an instruction loads, and the attributes read from it directly."""
    chain = [steps[number].value]
    for step in steps[number + 1 :]:
        if step.name not in _ATTRIBUTES:
            break
        chain.append(step.value)
    return tuple(chain)


def _use(steps: list[_Step], number: int) -> Use:
    chain = _chain(steps, number)
    last = number + len(chain) - 1
    taker = _taker(steps, last)
    if taker is None:
        return Use(chain)
    by, first = steps[taker].name, steps[last + 1]
    if by in _SETS_ITEMS and not _is_container(steps, last, taker):
        return Use(chain, ITEM)
    key: str | tuple[str] | None = None
    if by == "CONTAINS_OP":
        key = _key(steps[number - 1]) if taker == last + 1 else None
    elif by.endswith("_SUBSCR"):
        key = _key(first) if taker == last + 2 else None
    elif steps[last].name in _ATTRIBUTES or by in CALLS:
        ends = _taker(steps, last + 1)
        key = _key(first) if ends is not None and steps[ends].name in CALLS else None
        if isinstance(key, str) and key.startswith("."):
            key = _absolute(key, steps[last + 2])
    return Use(chain, by, key, tuple(_roles(steps, last, taker)))


def _is_container(steps: list[_Step], last: int, taker: int) -> bool:
    """Return True if a value is the container in an instruction that sets or deletes an item.

    Python pushes the item, the container and the index. With `+=`, it pushes the container and the
    index first, and moves the item below them at the end.
    """
    between = steps[last + 1 : taker]
    copied = any(step.name == "COPY" for step in between)
    return sum(step.effect for step in between) == (2 if copied else 1)


def _roles(steps: list[_Step], last: int, taker: int) -> Iterator[str]:
    """Yield the roles of a container; see `Use`.

    Args:
        steps: The instructions of the code.
        last: The index of the instruction that loads the container or its method.
        taker: The index of the instruction that consumes it.
    """
    by, method = steps[taker].name, ""
    end = taker  # the instruction that pushes the item
    if by in _SETS_ITEMS:
        yield "fills"
        if any(step.name == "COPY" for step in steps[last:taker]):  # such as `+=`
            yield "adds"
    elif (by == "CONTAINS_OP" and taker == last + 1) or by.startswith(_TESTS):
        yield "looks"
    elif by == "COMPARE_OP" and re.search("[<>]", str(steps[taker].value)):
        yield "adds"  # such as `if best is None or x > best`
    elif by == "BINARY_SUBSCR":
        if any(step.name == "CHECK_EXC_MATCH" for step in steps[taker : taker + _SOON]):
            yield "looks"
    elif by in CALLS and steps[last].name in _ATTRIBUTES:
        method = steps[last].value
        while end + 1 < len(steps) and steps[end + 1].name in CALLS:
            end += 1
        if method in _FILLING_METHODS:
            yield "fills"
        if method == "get" and steps[taker].value == 2 and _is_new(steps[taker - 1]):
            yield "adds"  # such as `seen[x] = seen.get(x, 0) + 1`
        elif method in ("get", "setdefault"):
            yield "looks"
    if by == "BINARY_SUBSCR" or method == "setdefault":
        item = steps[min(end + 1, len(steps) - 1)]
        if item.name in _ATTRIBUTES and item.value in _FILLING_METHODS:
            yield "adds"


def _is_new(step: _Step) -> bool:
    """Return True if an instruction pushes a literal other than `None`, or a new container."""
    literal = step.name.startswith(("LOAD_CONST", "LOAD_SMALL_INT"))
    return step.name.startswith("BUILD_") or (literal and step.value is not None)


def _absolute(name: str, step: _Step) -> str | None:
    """Return the name of a module that code imports with `importlib.import_module`.

    Args:
        name: A name that begins with a dot.
        step: The instruction that pushes the next argument, the package.

    Returns:
        The absolute name; the unchanged name if the package is that of the code; `None` if the
        package is unknown.
    """
    if step.name in _LOADS and step.value in ("__package__", "__name__"):
        return name
    if step.name != "LOAD_CONST" or not isinstance(step.value, str):
        return None
    try:
        return resolve_name(name, step.value)
    except ImportError:  # it fails in the task, too
        return None


def _key(step: _Step) -> str | tuple[str] | None:
    if step.name == "LOAD_CONST" and isinstance(step.value, str):
        return step.value
    return (step.value,) if step.name in _LOADS else None


def _taker(steps: list[_Step], number: int) -> int | None:
    """Return the index of the instruction that consumes the value pushed by instruction `number`.

    Args:
        steps: The instructions of the code.
        number: The index of the pushing instruction.

    Returns:
        The index; `None` if the value is not consumed.
    """
    depth = 1
    for at in range(number + 1, len(steps)):
        depth += steps[at].effect
        if depth <= 1:
            return at
    return None


def _imported(
    steps: list[_Step], number: int, name: str, taken: tuple[str, ...] | None
) -> Iterator[tuple[_Step, tuple[str, tuple[str, ...]]]]:
    """Yield each instruction by which an import sets a variable, with the imported object.

    Args:
        steps: The instructions of the code.
        number: The index of the import instruction.
        name: The name of the module.
        taken: The names listed by `from ... import`; `None` for `import ...`.

    Yields:
        The instruction, the module's name, and a tuple with the name that is imported from the
        module. The tuple is empty if the variable is the module itself.
    """
    member, alias = "", False
    for step in steps[number + 1 :]:
        if step.name == "IMPORT_FROM":
            member, alias = step.value, True
        elif step.name in _STORES:
            if taken:
                yield step, (name, (member,))
                continue
            yield step, (name if alias else name.partition(".")[0], ())
            return
        elif (step.name == "POP_TOP" and taken) or step.name not in ("SWAP", "POP_TOP", "ROT_TWO"):
            return


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
        caches_of: The attributes of classes that may be caches. See `caches_in`.
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
        self.caches: WeakValueDictionary[tuple[int, str], object] = WeakValueDictionary()
        self.caches_of: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()
        self.loaded: frozenset[str] = frozenset(sys.modules)
        self.unloaded: set[str] = set()
        self.has_changed: Callable[[str], bool] = lambda name: False
        self.imported: dict[str, Stamp] = {}

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
        """
        found = dict[str, Any]()
        for module in list(sys.modules.values()):
            if issubclass(type(module), types.ModuleType):  # not such as cffi's objects
                variables = object.__getattribute__(module, "__dict__")  # loads no lazy module
                if self.origins.own(file := variables.get("__file__")):
                    found |= self.sources.seeds(file, variables, self.origins.own)
        cells = vars(sys.modules["__main__"]).get("In")  # of IPython
        if isinstance(cells, list):
            texts = [each for each in cells if isinstance(each, str)]
            variables = vars(sys.modules["__main__"])
            found |= self.sources.seeds_in_cells(texts, variables, self.origins.own)
        return found

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
            if stamp != (imported or self._files.once(stamp_of, file)):
                raise UnhashableError(source_changed(file))

    def names(self, code: types.CodeType) -> Names:
        """Return the names that code uses but does not define."""
        found = self._names.get(code)
        if found is None:
            found = self._names[code] = names_in(code)
        return found

    def place(self, file: str) -> str:
        """Return a source file's path relative to the program's directory.

        For code without a file, return `a text`.
        """
        if file.startswith("<") or not os.path.exists(file):  # the cells of notebooks are numbered
            return "a text"
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


def _literals(tree: ast.Module) -> Iterator[tuple[str, Any]]:
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
        for node in () if isinstance(each, _FUNCTIONS) else ast.walk(each):
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                found[node.id] += 1
            elif isinstance(node, ast.Global | ast.Nonlocal):
                found.update(node.names)
            elif isinstance(node, ast.alias):
                found[node.asname or node.name.partition(".")[0]] += 1
    return found


@functools.lru_cache(maxsize=1000)
def _seeds_in(text: str) -> tuple[ast.Call, ...]:
    """Return the calls in a source text that set seeds."""
    if "seed" in text:
        with contextlib.suppress(SyntaxError, ValueError):
            return tuple(each for each in ast.walk(ast.parse(text)) if _sets_seed(each))
    return ()


def _sets_seed(node: ast.AST) -> TypeGuard[ast.Call]:
    """Return True for calls such as `random.seed(1)` and `torch.manual_seed(1)`."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return re.search(r"(^|_)seed(_|$)", name) is not None


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
