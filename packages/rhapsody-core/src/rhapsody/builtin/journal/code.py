"""Digest of everything that a function's results depend on, except its arguments.

The digest covers the function's own code; the code of all the user's functions and classes that it
uses, directly or indirectly; the values in its closure, its defaults and the globals that it reads;
environment variables that it reads by a literal name; and the versions of the installed
distributions that it uses. Each of these is a part of the digest. Messages about changes contain
its name, such as `RATE used by simulate in model.py`.

The rule is to fail closed. If code uses a value that has no digest, or if it cannot be determined
what the code uses (`importlib.import_module(name)`, `os.environ[name]`), the function has no digest
and the task is not recorded. If code uses one of the user's modules as a whole, the digest covers
the module's source and all its variables. Only objects that do not affect results, such as loggers
and locks, are represented by their class alone; see `rhapsody.builtin.journal.values`.

State can change while the program runs. Before a digest is reused, globals, class attributes and
module variables are compared by identity. Values that can change in place are digested again, once
per batch of lookups, unless they are large (see `CodeFingerprint.inner`).
One case needs a different rule: a memo that the task itself fills (`CACHE = {}`, `model = None`)
must not change the key of the next equal task. So a variable is treated as empty for the whole run
if it is an empty dict or set when it is first seen, its name says that it is a cache, and the
collected functions both fill and read it; or if it is `None` at first, and they set it only if it
is `None`, to a value that does not depend on the call. The values of all other variables are part
of the digest, so that a change by the task is noticed.

The digest does not cover files that are not arguments, changes inside installed libraries (except
functions and numbers that the program replaces in their modules), random numbers, or the time.
"""

from __future__ import annotations

import abc
import builtins
import functools
import hashlib
import importlib.util
import math
import os
import pkgutil
import re
import runpy
import sys
import types
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from inspect import getmro
from typing import Any, Protocol, cast

from rhapsody._private import registered_with
from rhapsody.builtin.journal.files import Stamp
from rhapsody.builtin.journal.program import (
    TASK_FUNCTION,
    Memo,
    Surroundings,
    literals_in,
    source_changed,
)
from rhapsody.builtin.journal.syntax import (
    CONTAINS,
    ITEM_DELETED,
    ITEM_SET,
    MERGED,
    OTHER,
    PASSED,
    STORED,
    Names,
    Use,
    is_cache,
    names_in,
)
from rhapsody.builtin.journal.unchanged import Unchanged
from rhapsody.builtin.journal.values import (
    DIGEST_SIZE,
    LARGE_VALUE,
    UnhashableError,
    Values,
    attribute_of,
    counts,
    is_global_generator,
    is_large,
)
from rhapsody.sdk.introspect import (
    MISSING,
    cached_properties,
    content_of,
    is_in_its_module,
    names_stored,
    with_inner,
)
from rhapsody.sdk.modules import altered, file_of, spec_of
from rhapsody.sdk.value_handles import WorkerValue
from rhapsody.tracebacks import SCRIPT_MODULE

_OF_PYDANTIC = "__pydantic_"
"""Start of the names of attributes that Pydantic makes from the body of a class, some late."""

_HEAP_TYPE = 1 << 9
"""Flag of classes that are not static variables of C: `Py_TPFLAGS_HEAPTYPE`."""

SEEDS = "seeds in the program"
"""Name of a part: the calls that set seeds, if the code draws from a global generator."""

_OF_MODULES = frozenset(
    ("__name__", "__file__", "__path__", "__package__", "__spec__", "__loader__", "__cached__")
)
"""Module variables that the import system sets; their values depend on whether a program is run or
imported."""

_NOT_OF_MODULES = _OF_MODULES | {
    "__builtins__", "__doc__", "__annotations__", "__annotate__", "__warningregistry__",
}  # fmt: skip

_SPECIAL: frozenset[int] = frozenset(map(id, (
    os.environ, os.environb, sys.modules, os.getenv, os.getenvb, os.path.expandvars,
    importlib.import_module, builtins.__import__, globals, eval, exec,
)))  # fmt: skip
"""Objects from which code reads values by subscript or argument. See `CodeFingerprint._special`."""

_READERS = os.getenv, os.getenvb, os.path.expandvars
"""Functions that read environment variables."""

_IMPORTERS = frozenset(map(id, (
    importlib.import_module, builtins.__import__, pkgutil.resolve_name, importlib.__import__,
    importlib.util.spec_from_file_location, runpy.run_module, runpy.run_path, SourceFileLoader,
    SourcelessFileLoader, metadata.entry_points, metadata.EntryPoint,
)))  # fmt: skip
"""Functions and classes that run a module, given its name or path, or find one. Code that uses one
of them has no digest, unless the function is also in `_SPECIAL` and the code calls it directly."""

_OPEN = {
    "builtins": "import any module", "importlib": "import any module",
    "os": "read any environment variable", "sys": "use any module",
}  # fmt: skip
"""Modules that a task may not use as a value, each with what code can do with such a value."""

_STARTERS = (
    "subprocess.", "os.popen", "os.spawn", "posix.system", "posix.posix_spawn",
    "asyncio.subprocess.create_subprocess",
)  # fmt: skip
"""Prefixes of the names of functions that start programs."""

_SETTINGS = frozenset({"pydantic_settings.main"})
"""Modules of classes whose instances take their values from environment variables."""

_ARGUMENT_READERS = (
    "absl.", "argparse.", "cappa.", "cleo.", "click.", "cyclopts.", "docopt.", "fire.", "getopt.",
    "hydra.", "jsonargparse.", "optparse.", "plac.", "simple_parsing.", "tap.", "typer.", "tyro.",
)  # fmt: skip
"""Prefixes of the names of libraries that read command-line arguments."""

_OF_CLASSES = frozenset((
    "__module__", "__qualname__", "__dict__", "__weakref__", "__doc__", "__annotations__",
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__conditional_annotations__",
    "__firstlineno__", "__static_attributes__", "__orig_bases__",
    "__parameters__", "__type_params__", "__abstractmethods__", "_abc_impl", "__final__",
    "__dataclass_fields__", "__dataclass_params__", "__protocol_attrs__",
    "__non_callable_proto_members__", "__slotnames__", "_value2member_map_",
))  # fmt: skip
"""Class attributes that the interpreter or the standard library generates."""

_MAKERS = ("__dataclass_fields__", "_fields", "__attrs_attrs__")
"""Attributes that identify classes with generated special methods: dataclasses, named tuples and
classes of `attrs`."""

_OPTIONS = ("init", "repr", "eq", "order", "unsafe_hash", "frozen")
"""Options of dataclasses that all supported Python versions have."""

_OF_FIELDS = (
    "default", "default_factory", "init", "repr", "hash", "compare", "kw_only", "metadata",
)  # fmt: skip
"""Attributes of a dataclass field whose values the class body may have computed."""

_HIDDEN = frozenset((
    "__globals__", "__subclasses__", "_getframe", "currentframe", "f_globals", "f_locals",
    "get_objects", "get_referrers", "getmodule",
))  # fmt: skip
"""Names that give code access to objects that it does not name."""

_LOADERS = frozenset(("exec_module", "load_module"))
"""Names of methods that run the code of a module."""

_QUERIES = frozenset(("eval", "query"))
"""Names of methods that read variables which a text names after `@`, as in pandas."""

_MODULE_EVALUATORS = frozenset(("eval", "logit"))
"""Names of functions of modules that read variables which a text names, such as `pandas.eval`. In
other places, these names have another meaning."""

_EVALUATORS = frozenset((
    "evaluate", "sql", "execute", "from_formula", "ols", "gls", "wls", "glm", "probit", "dmatrix",
    "dmatrices", "model_matrix", "aes", "read_hdf", "HDFStore", "read_where", "where", "select",
))  # fmt: skip
"""Names of functions and methods that read variables which a text names, such as
`numexpr.evaluate` and `duckdb.sql`."""

_EVALUATING = frozenset(
    (
        "duckdb",
        "formulaic",
        "linearmodels",
        "numexpr",
        "patsy",
        "plotnine",
        "statsmodels",
        "tables",
    )
)
"""Libraries that read variables which a text names, in many functions."""

_OPENS = re.compile(
    "open|read|load|memmap|listdir|scandir|glob|walk|iterdir|from|parse|shutil|copyfile|copytree|getline"
    "|input|dataset|mbox|filecmp|^cmp(files)?$|dircmp|[Ff]ile|[Pp]ath|connect|DLL|LoadLibrary"
)
"""Matches parts of the names of functions in the standard library and NumPy that open files."""

_RESOLVERS = frozenset(("resolve", "realpath", "readlink", "samefile"))
"""Names of functions and methods that follow symbolic links without opening the files."""

_QUIET = frozenset(("numpy",))
"""Libraries that open files only in functions whose names match `_OPENS`."""

_REPLACEMENTS = frozenset(("mock", "operator", "unittest.mock"))
"""Modules whose objects programs put in the place of a library's function."""

_ELSEWHERE = frozenset(("os", "posix", "sys", "platform", "socket"))
"""Modules with numeric variables that differ between machines."""

_EMPTY = (dict, set)

_NOTHING: Mapping[Any, Any] = types.MappingProxyType({})

_WRAPPERS: Mapping[type, str] = {
    classmethod: "__func__",
    staticmethod: "__func__",
    property: "fget",
    functools.cached_property: "func",
    type(functools.lru_cache(len)): "__wrapped__",
}
"""Types of the objects that Python's own decorators return, each with the attribute that contains
the decorated function."""

_MAX_DECORATORS = 10
"""Number of decorators of a function that are followed."""

_WORDS = re.compile(r"[^\W\d]\w*")
_WORDS_AFTER_AT = re.compile(r"@\s*([^\W\d]\w*)")

_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, type(...)))


class CodeFingerprint:
    """Collector of the code and the values that a task's results depend on.

    To collect an object means to add the parts of the digest that represent it to `parts`.

    Args:
        program: The state shared by the fingerprints of a run.

    Attributes:
        parts: The parts of the digest by name. Each is text, usually a digest or a version.
        paths: Strings that may name files, each with the digest of the file; `None` if there is no
            readable file.
        lines: The first line number of each collected function, by the name of its part.
        read: Variables that were read, each as a tuple of the namespace (of a module, class or
            function), the name, and the value, or `MISSING` if the variable was not set.
        cells: Closure cells that were read, each with its content.
        sizes: Namespaces that were read as a whole, each with its number of names.
        environment: Environment variables that were read, each with its value; `None` if it was not
            set.
        inner: Values that can change in place: default values, values that are smaller than
            `LARGE_VALUE`, and those of up to `unchanged.MAX_SIZE` that can be pickled.
        made_of: Functions, each with the parts that a program can replace: code, defaults,
            `__name__` and `__qualname__`.
        related: Classes, each with its bases and other related classes, which a program can
            replace.
        set_here: True if the code reads an environment variable, or a variable whose value may
            differ on a worker because the worker imports the module again.
        on_workers: The digests of the values that variables which the code reads have on workers,
            by the names of the variables, as far as they may differ from those here. If such a
            value is unknown, the digest is that of an empty text.
        starts_programs: True if the code uses functions that start programs. These programs inherit
            environment variables.
        may_open: True if the code may open files: it uses a library other than those in `_QUIET`,
            or a name that matches `_OPENS`.
        resolves: True if the code uses a name in `_RESOLVERS`.
        reads_arguments: True if the code uses a library that reads command-line arguments.
        handles: The handles of worker values.
        memos: The caches that the code uses.
        absent: Names of modules whose variables do not count, because they were not loaded when
            the code was inspected first.
        sources: The source files of the program's modules among `absent`, by the module's name,
            each with its state when it was read; `None` if it was not read.
    """

    def __init__(self, program: Surroundings) -> None:
        self._program = program
        self._values = Values(self)
        self._forget()
        self.begin()

    def begin(self, sandbox: str = "", inputs: Mapping[str, str | None] = _NOTHING) -> None:
        """Discard everything that was collected, and start with another task.

        Args:
            sandbox: The path of the task's sandbox, or an empty string. Paths inside the sandbox
                are digested relative to it.
            inputs: The paths of the task's input files by name.
        """
        if self._seen:
            self._forget()
        self._sandbox = sandbox
        # Only these have another name than the file itself, such as `2/a.txt`.
        self._numbered: Mapping[str | None, str] = _NOTHING
        if inputs:
            self._numbered = {path: name for name, path in inputs.items() if os.sep in name}
        self.paths: dict[str, bytes | None] = {}
        self.handles: list[WorkerValue[Any]] = []

    def _forget(self) -> None:
        """Discard everything that was collected, except `paths`."""
        self.parts: dict[str, str] = {}
        self.lines: dict[str, int] = {}
        self.read: list[tuple[Mapping[str, Any], str, object]] = []
        self.cells: list[tuple[types.CellType, object]] = []
        self.sizes: list[tuple[Sized, int]] = []
        self.environment: list[tuple[str, str | None]] = []
        self.inner: list[Unchanged] = []
        self.made_of: list[tuple[types.FunctionType, tuple[object, ...]]] = []
        self.related: list[tuple[type, list[type]]] = []
        self.set_here: bool = False
        self.on_workers: dict[str, str] = {}
        self.starts_programs: bool = False
        self.may_open: bool = False
        self.resolves: bool = False
        self.reads_arguments: bool = False
        self.seeds: dict[str, Any] | None = None
        self.memos: list[Memo] = []
        self.absent: set[str] = set()
        self.sources: dict[str, tuple[str, Stamp | None]] = {}
        self._made_once: set[tuple[int, str]] = set()
        self._stored: set[tuple[int, str]] = set()  # but not made once
        self._caches: set[tuple[str, str]] = set()  # as in `Names.caches`
        self._empty: list[tuple[str, Mapping[str, Any], str, object, object]] = []
        self._globals: set[tuple[int, str]] = set()  # read by collected code
        self._only_stored: list[tuple[Mapping[str, Any], str, str]] = []
        self._todo: list[tuple[Any, str]] = []
        self._seen: dict[int, tuple[Any, str]] = {}
        self._called: dict[str, int] = {}
        self._collecting = False

    def other_versions(self, other: CodeFingerprint) -> list[str]:
        """Return the names under which this object and another one have collected two versions.

        A cell of a notebook that runs again makes another class or function with the same name.
        """
        own = {name: thing for thing, name in self._seen.values()}
        return [name for thing, name in other._seen.values() if own.get(name, thing) is not thing]

    # Called by `Values`.

    def code(self, thing: Any) -> str:
        """Collect a function, class or module, and return the name of its part."""
        address = id(thing)  # called once, because audit hooks make it slow
        known = self._seen.get(address)
        if known is None:
            name = self._name(thing)
            number = self._called[name] = self._called.get(name, 0) + 1
            if number > 1:  # such as several closures of one function
                name = f"{name} ({number})"
            known = self._seen[address] = thing, name
            self._todo.append(known)
            self._note_kind(name)
            if any(thing is each for each in _READERS):  # not called here, but passed on
                self._used(f"the environment used by {name}", os.environ)
            elif address in _IMPORTERS:
                raise UnhashableError(f"{name} may import any module")
            elif isinstance(thing, type) and any(
                each.__module__ in _SETTINGS for each in thing.__mro__
            ):
                self._used(f"the environment used by {name}", os.environ)
        return known[1]

    def _note_kind(self, name: str) -> None:
        """Note what a function or class may do, given its name.

        The code may use a library's function under another name, as with `import ... as`.
        """
        self.starts_programs = self.starts_programs or name.startswith(_STARTERS)
        self.reads_arguments = self.reads_arguments or name.startswith(_ARGUMENT_READERS)
        if not self.may_open and _OPENS.search(name.rpartition(".")[2]):
            self.may_open = " in " not in name  # not a function of the program
        self.resolves = self.resolves or name.rpartition(".")[2] in _RESOLVERS

    def own(self, kind: type) -> bool:
        """Return True if a class belongs to the program and not to a library."""
        return self._program.is_own(kind)

    def caches(self, value: object, state: Mapping[str, Any]) -> frozenset[str]:
        """Return the names of an object's attributes that are treated as empty caches.

        They were empty when the object was first seen, and its class uses them only as caches.
        These include cached properties, which were missing. A value that the program has assigned
        before counts.
        """
        program = self._program
        kind: Any = type(value)
        properties: frozenset[str] = cached_properties(kind)
        if not (self.own(kind) and kind.__weakrefoffset__):
            return properties
        names = program.cache_attributes(kind)
        for name in names:
            if type(state.get(name)) is dict and not state[name]:
                program.caches[id(value), name] = value
        for name in properties:
            if name not in state:
                program.caches[id(value), name] = value
        return frozenset(
            name for name in names | properties if program.caches.get((id(value), name)) is value
        )

    def path(self, text: str) -> str | None:
        """Collect a string that may name a file.

        A path inside the sandbox is not collected, and neither is a string that code contains.

        Returns:
            The portable form of the string if it is a path inside the sandbox or the program's
            directory, otherwise `None`.
        """
        sandbox, program = self._sandbox, self._program
        if sandbox and (text == sandbox or text.startswith(sandbox + os.sep)):
            return "\0sandbox" + text.removeprefix(sandbox)  # input files are digested separately
        if not self._collecting:  # a constant in code may name an output
            self.paths[text] = program.file(text)
        if not text.startswith(program.roots):  # as most strings
            return None
        place = program.portable(text)
        return None if place == text else place

    def input_name(self, path: object, name: str) -> str:
        """Return the unique name of a task's input file.

        Several input files may have the same base name, and the arguments that receive them may be
        the values of a dict, whose order does not count.

        Args:
            path: The path of the file, or `None` if it is unknown.
            name: The base name of the file.
        """
        return self._numbered.get(str(path), name)

    def worker_value(self, handle: WorkerValue[Any]) -> None:
        """Note a handle of a worker value."""
        self.handles.append(handle)

    def memoized(self, function: Any) -> None:
        """Note a function with a cache of `functools.lru_cache`."""
        name = f"the cache of {function.__qualname__}"
        size = function.cache_info
        self.memos.append(Memo(name, (id(function), ""), function, lambda: size().currsize))

    def _name(self, thing: Any) -> str:
        program = self._program
        if isinstance(thing, types.ModuleType):
            path = thing.__dict__.get("__file__")
            return f"module {program.place(path)}" if program.origins.own(path) else thing.__name__
        if isinstance(thing, types.FunctionType):
            code, module = thing.__code__, thing.__globals__.get("__name__")
            name, file = code.co_qualname, code.co_filename
        else:
            name, module = thing.__qualname__, thing.__module__
            file = file_of(module) or "<frozen>"
        if not program.origins.own(file):
            return f"{module}.{name}"
        kind = "class " if isinstance(thing, type) else ""
        return f"{kind}{name} in {program.place(file)}"

    # Collecting.

    def value(self, value: object) -> str:
        """Return the digest of a value as text, and collect the code in the value.

        Raises:
            UnhashableError: The value has no digest.
        """
        shown = self._values.shown(value)
        if self._todo:
            self._collect()
        return shown

    def function(self, function: object) -> None:
        """Collect a function, or an object that wraps one.

        Raises:
            UnhashableError: The function uses a value that has no digest, or it cannot be
                determined what the function uses.
        """
        self._collecting = True
        self._used(TASK_FUNCTION, function)
        self._collect()

    def module(self, module: types.ModuleType) -> set[str]:
        """Collect the variables of a module, except modules.

        Returns:
            The names of the variables that are not collected, because they are large or have no
            digest.
        """
        refused: set[str] = set()
        variables, memos = vars(module), self._program.memos
        self.sizes.append((variables, len(variables)))
        empty: list[tuple[str, object]] = []
        for name, value in list(variables.items()):
            if name in _NOT_OF_MODULES or issubclass(type(value), types.ModuleType):
                continue
            self.read.append((variables, name, value))
            if _is_empty(value) or (id(variables), name) in memos:
                empty.append((name, value))  # functions of the module may fill it, as a cache
                continue
            try:
                if is_large(value):
                    refused.add(name)
                    continue
                self._collecting = True
                self._used(name, value)
                self._collect()
            except UnhashableError:
                refused.add(name)
                self._todo.clear()
                self._empty.clear()
                self._only_stored.clear()
        for name, value in empty:
            if (id(variables), name) not in memos:
                self._used(name, value)
        return refused

    def versioned(
        self, function: object, parts: dict[str, str]
    ) -> tuple[dict[str, object], dict[str, types.CellType]]:
        """Collect the function of a task with a `version`, which represents the function's code.

        The function's module and name, the values in its closure, and its defaults are still
        included. Code is included only for functions and classes that are not identified by their
        names, such as one of two lambdas in a file.

        Args:
            function: The function.
            parts: The parts of the task's key, to which the function's parts are added.

        Returns:
            The values that may change in place, and the cells of the closures, by the names of
            their parts.

        Raises:
            UnhashableError: A value in a closure or a default has no digest.
        """
        mutable: dict[str, object] = {}
        cells: dict[str, types.CellType] = {}
        sources = self._program.sources
        todo: list[tuple[str, object]] = [("function", function)]
        while todo:
            part, value = todo.pop()
            if part in parts:
                continue
            if not isinstance(value, types.FunctionType):
                named = isinstance(value, type) and is_in_its_module(value)
                parts[part] = self._name(value) if named else self.value(value)
                if not named and type(value) not in _PLAIN:
                    mutable[part] = value
                continue
            parts[part] = self._name(value)
            if not sources.is_only_one(value.__code__, value.__globals__):
                parts[f"code of {part}"] = sources.of_function(value)
            around = {
                f"{name} around {part}": cell
                for name, cell in _closed_over(value)
                if not self._is_memo(cell, name, value)
            }
            cells |= around
            todo += [(name, content_of(cell)) for name, cell in around.items()]
            defaults = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items())
            todo += [(f"default {n} of {part}", each) for n, each in enumerate(defaults, 1)]
        return mutable, cells

    def is_unchanged(self) -> bool:
        """Return True if the collected functions, classes and values have not changed in place."""
        self._collecting = True
        if any(_made_of(each) != parts for each, parts in self.made_of):
            return False
        if any(list(map(id, _related(cls))) != list(map(id, was)) for cls, was in self.related):
            return False
        values = Values(self)
        try:
            return all(each.is_true(values) for each in self.inner)
        except UnhashableError:
            return False

    def _collect(self) -> None:
        self._collecting = True
        while self._todo or self._empty or self._only_stored:
            if not self._todo:
                if self._empty:
                    self._settle_empty()
                else:
                    self._settle_only_stored()
                continue
            thing, name = self._todo.pop()
            if isinstance(thing, types.FunctionType):
                self._function(thing, name)
            elif isinstance(thing, type):
                self._class(thing, name)
            elif isinstance(thing, types.ModuleType):
                self._module(thing.__name__, thing.__spec__, thing)
            else:
                self._own(thing.__module__, file_of(thing.__module__))
        self._collecting = False

    def _settle_empty(self) -> None:
        """Collect empty variables, once all code that may fill them has been inspected."""
        empty, self._empty = self._empty, []
        for part, variables, name, value, owner in empty:
            known = id(owner), name
            if (known in self._made_once and known not in self._stored) or (
                value is not None and is_cache(name, self._caches)
            ):
                self.parts[part] = self._program.note_memo(known, owner, value)
                size = partial(_size_of_variable, variables, name)
                self.memos.append(Memo(part, known, owner, size))
            else:
                self._used(part, value)
                self.read.append((variables, name, value))

    def _settle_only_stored(self) -> None:
        """Collect globals that a function sets, if none of the collected code reads them.

        They do not affect the result. They are collected because reusing the result of a task does
        not repeat its changes to them.
        """
        stored, self._only_stored = self._only_stored, []
        for variables, name, user in stored:
            if (id(variables), name) in self._globals:
                continue
            value = variables.get(name, MISSING)
            self.read.append((variables, name, value))
            self.set_here = True  # a worker does not set the variable of the program
            if value is MISSING:
                self.parts[f"{name} set by {user}"] = "missing"
            else:
                self._used(f"{name} set by {user}", value)

    def _function(self, function: types.FunctionType, name: str) -> None:
        code, variables = function.__code__, function.__globals__
        own = self._own(variables.get("__name__"), code.co_filename)
        if own:
            self.parts[name] = self._program.sources.of_function(function)
            self.lines[name] = code.co_firstlineno
        elif self._in_library(function):
            return
        for variable, cell in _closed_over(function):
            value = self._cell(f"{variable} around {name}", cell, variable, function)
            kind: type = type(value)
            if own and issubclass(kind, types.ModuleType):
                self._as_a_whole(cast("types.ModuleType", value), name)
            kept = kind in _PLAIN or issubclass(kind, types.FunctionType | types.ModuleType | type)
            # Functions of modules are imported; other functions travel with their closures.
            if not (kept or self.set_here or _is_script(variables.get("__name__"))):
                self.set_here = is_in_its_module(function) and not self._program.is_as_imported(
                    variables, function.__qualname__, function
                )
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if own and issubclass(type(default), types.ModuleType):
                self._as_a_whole(default, name)
        if function.__defaults__:
            self._used(f"the defaults of {name}", function.__defaults__, largest=math.inf)
        for argument, default in (function.__kwdefaults__ or {}).items():
            self._used(f"the default {argument} of {name}", default, largest=math.inf)
        self.made_of.append((function, _made_of(function)))
        if own and (function.__name__, function.__qualname__) != (code.co_name, code.co_qualname):
            self.parts[f"names of {name}"] = f"{function.__name__} {function.__qualname__}"
        self._attributes(vars(function), name)
        if not self.set_here and is_in_its_module(function) and not _is_script(function.__module__):
            # The program may have set them, as `register` of a `singledispatch` function does.
            self.set_here = any(
                not each.startswith("__")
                and not issubclass(type(value), types.FunctionType | types.ModuleType | type)
                for each, value in vars(function).items()
            )
        if own:
            self._names(function, name)

    def _cell(
        self, part: str, cell: types.CellType, name: str, function: types.FunctionType
    ) -> object:
        """Collect a closure variable, except a memo that the function itself fills.

        Args:
            part: The name of the variable's part.
            cell: The variable's cell.
            name: The variable's name.
            function: The function.

        Returns:
            The variable's value, or `None` for a memo.
        """
        if self._is_memo(cell, name, function):
            known = id(cell), ""
            self.parts[part] = self._program.note_memo(known, cell, content_of(cell))
            self.memos.append(Memo(part, known, cell, lambda: _size(content_of(cell))))
            return None
        value = content_of(cell)
        self._used(part, value)
        self.cells.append((cell, value))
        return value

    def _is_memo(self, cell: types.CellType, name: str, function: types.FunctionType) -> bool:
        """Return True if a function fills a closure variable that was `None` or empty at first."""
        value, memos = content_of(cell), self._program.memos
        # Calls have their own cells, except for variables that are assigned with `nonlocal`.
        owner: object = cell if value is None else value
        known = id(owner), ""
        if (
            known not in memos
            and (id(cell), "") not in memos
            and not (_is_empty(value) and is_cache(name, self._names_of(function).caches))
        ):
            return False
        memos[known] = owner
        return True

    def _names_of(self, function: types.FunctionType) -> Names:
        return self._program.names(function.__code__, function.__globals__)

    def _names(self, function: types.FunctionType, name: str) -> None:
        """Collect the globals, imported modules and module members that a function uses."""
        code, variables = function.__code__, function.__globals__
        names, package = self._names_of(function), variables.get("__package__") or ""
        made = {each for each in names.made_once if not _is_read_alone(variables, each)}
        self._made_once.update((id(variables), each) for each in made)
        self._stored.update((id(variables), each) for each in names.stored - made)
        self._only_stored += [(variables, each, name) for each in sorted(names.only_stored)]
        self._caches |= names.caches
        for each in with_inner(code):
            if hidden := _HIDDEN.intersection(each.co_names):
                raise UnhashableError(
                    f"{name} uses {min(hidden)}, which gives access to any object"
                )
            if loaders := _LOADERS.intersection(each.co_names):
                raise UnhashableError(f"{name} uses {min(loaders)}, which may import any module")
            self.may_open = self.may_open or any(map(_OPENS.search, each.co_names))
            self.resolves = self.resolves or not _RESOLVERS.isdisjoint(each.co_names)
        self._evaluated(code, names, variables, name)
        for use in names.uses:
            self._global(variables, use, name)
        for module, taken in names.modules:
            self._imported(module, taken, package)
        for module, use in names.members:
            found = self._loaded(_resolved(module, package))
            if found is not None:
                self._member(found, use, variables, name)

    def _evaluated(
        self, code: types.CodeType, names: Names, variables: dict[str, Any], user: str
    ) -> None:
        """Collect the globals that are named in the texts of code which evaluates texts."""
        uses = [
            use
            for use in names.uses
            if issubclass(type(variables.get(use.chain[0])), types.ModuleType)
        ]
        uses += [use for _, use in names.members]
        read = {each for inner in with_inner(code) for each in inner.co_names}
        if (
            any(len(use.chain) > 1 and use.chain[-1] in _MODULE_EVALUATORS for use in uses)
            or not _EVALUATORS.isdisjoint(read)
            or any(module.partition(".")[0] in _EVALUATING for module, _ in names.modules)
            or any(_home_of(variables.get(use.chain[0])) in _EVALUATING for use in names.uses)
        ):
            pattern = _WORDS
        elif not _QUERIES.isdisjoint(read):
            pattern = _WORDS_AFTER_AT
        else:
            return
        texts = [text for each in with_inner(code) for text in each.co_consts]
        texts += [variables.get(use.chain[0]) for use in names.uses]
        words = {
            word for text in texts for each in _texts_in(text) for word in pattern.findall(each)
        }
        for word in sorted(words & variables.keys()):
            self._global(variables, Use((word,)), user)

    def _in_library(self, function: types.FunctionType | type) -> bool:
        """Return True if a function or class is found under its own name in a library's module."""
        if self._program.origins.own(file_of(function.__module__)):
            return False  # decorated with `functools.wraps`
        return is_in_its_module(function)

    def _class(self, cls: type, name: str) -> None:
        file = file_of(cls.__module__)
        own = self._own(cls.__module__, file)
        # A class made by a call of its metaclass, or by `exec`, may have the module of these.
        defaults = ("types", *(each.__module__ for each in getmro(type(cls))))
        by_python = bool(cls.__flags__ & _HEAP_TYPE)
        made_by_call = "<locals>" in cls.__qualname__ or (by_python and cls.__module__ in defaults)
        if not own and (not made_by_call or self._in_library(cls)):
            return
        variables = getattr(sys.modules.get(cls.__module__), "__dict__", {})
        body = self._program.sources.of_class(cls, file or "", variables) if own else None
        if body is not None:
            self.parts[name] = body[0]
            for chain in body[1]:
                self._global(variables, Use(chain), name)
        if cls.__name__ != cls.__qualname__.rpartition(".")[2]:
            self.parts[f"name of {name}"] = cls.__name__
        related = _related(cls)
        self.related.append((cls, related))
        for number, each in enumerate(related):
            self._used(f"class {number} related to {name}", each)
        made = body is not None and any(each in vars(cls) for each in _MAKERS)
        if (made or body is None) and "__dataclass_fields__" in vars(cls):
            self._used(f"the fields of {name}", _fields_of(cls))
        pydantic = {each for each in vars(cls) if each.startswith(_OF_PYDANTIC)}
        if body is None:  # made by `create_model`
            pydantic.discard("__pydantic_fields__")
        self._attributes(vars(cls), name, _OF_CLASSES | pydantic, made=made, owner=cls)

    def _attributes(
        self,
        attributes: Mapping[str, Any],
        name: str,
        without: frozenset[str] = frozenset(),
        *,
        made: bool = False,
        owner: type | None = None,
    ) -> None:
        """Collect all attributes of a function, class or module.

        Args:
            attributes: The attributes by name.
            name: The name of the part for the function, class or module.
            without: Names of attributes to ignore.
            made: True if the special methods of a class were generated from its body, which has
                been collected.
            owner: The class, or `None` for a function or module. Empty attributes of a class are
                collected later, because methods may fill them.
        """
        self.sizes.append((attributes, len(attributes)))
        for attribute, value in list(attributes.items()):
            if attribute in without or (without is _NOT_OF_MODULES and id(value) in _IMPORTERS):
                continue
            known = (id(owner), attribute) in self._program.memos
            if owner is not None and (known or _is_empty(value)):
                self._compare(attributes, attribute, value, owner)
                part = f"{attribute} of {name}"
                self._empty.append((part, attributes, attribute, value, owner))
                continue
            self.read.append((attributes, attribute, value))
            if attribute == "__init__" and owner is not None and _is_set_by_protocol(owner):
                continue
            file = getattr(attribute_of(value, "__code__"), "co_filename", "")
            special = made and attribute.startswith("__")
            if not special and (owner is not None or "__name__" in attributes):
                self._compare(attributes, attribute, value, owner)
            if owner is not None and issubclass(type(value), types.ModuleType):
                self._as_a_whole(value, name)
            if not (special and file.startswith("<")):
                self._used(f"{attribute} of {name}", value)

    def _used(self, name: str, value: object, largest: float = LARGE_VALUE) -> None:
        """Collect a value that code uses.

        Args:
            name: The name of the value's part.
            value: The value.
            largest: The size from which the value is digested only once per run.

        Raises:
            UnhashableError: The value has no digest.
        """
        if issubclass(type(value), types.FunctionType | types.ModuleType | type):
            self.parts[name] = self.code(value)
            return
        values = Values(self)
        try:
            digest = values.digest(value, whole=False)
        except UnhashableError as error:
            raise UnhashableError(f"{name}: {error}") from error
        self.parts[name] = digest.hex()
        if type(value) not in _PLAIN:
            compared = Unchanged(value, digest, values.size)
            if values.size < largest or compared.is_quick:
                self.inner.append(compared)

    def _global(self, variables: Mapping[str, Any], use: Use, user: str) -> None:
        """Collect a global that code reads.

        If the global is a module, collect the attributes that the code reads from it.

        Args:
            variables: The globals of the code.
            use: The code's use of the global.
            user: The name of the part for the code.
        """
        name = use.chain[0]
        if name in _OF_MODULES:
            return
        self._globals.add((id(variables), name))
        space = variables
        value = space.get(name, MISSING)
        if value is MISSING:
            self.read.append((variables, name, MISSING))
            around = variables.get("__builtins__", builtins)
            space = vars(around) if isinstance(around, types.ModuleType) else around
            value = space.get(name, MISSING)
            if value is MISSING or (_is_python_s(name, value) and id(value) not in _SPECIAL):
                return
        if issubclass(type(value), types.ModuleType):
            self.read.append((space, name, value))
            self._member(value, use, variables, user)
        elif not self._special(value, use.chain[1:], use, variables, user):
            self._variable(f"{name} used by {user}", space, name, value)

    def _member(
        self, module: types.ModuleType, use: Use, variables: Mapping[str, Any], user: str
    ) -> None:
        """Collect the attribute that code reads from a module.

        For a module of a library, collect the library's version.

        Args:
            module: The module.
            use: The code's use of the module.
            variables: The globals of the code.
            user: The name of the part for the code.

        Raises:
            UnhashableError: The attribute has no digest, or may lead to any module.
        """
        chain, depth = use.chain, 1
        value: Any = module
        while isinstance(value, types.ModuleType):
            inner = vars(value)
            if depth == len(chain):
                self._as_a_whole(value, user)
            elif self._imports_later(value, chain[depth]):
                if not self._is_own(value):
                    self._used(f"{'.'.join(chain[:depth])} used by {user}", value)
                return
            if depth == len(chain) or chain[depth] not in inner:
                made = inner.get("__getattr__")
                if made is not None and self._is_own(value) and not self._is_own_code(made):
                    raise UnhashableError(
                        f"{user} uses {'.'.join(chain[: depth + 1])}, which a library imports when "
                        "it is used; import the submodule itself at the top of the script"
                    )
                self._used(f"{'.'.join(chain[:depth])} used by {user}", value)  # all of it
                return
            own, member = self._is_own(value), inner[chain[depth]]
            if not own and not isinstance(member, types.ModuleType):
                self.parts[f"{'.'.join(chain[:depth])} used by {user}"] = self._name(value)
                self._own(value.__name__, inner.get("__file__"))  # its version
                if self._special(member, chain[depth + 1 :], use, variables, user):
                    return
                if id(member) in _IMPORTERS or (value is sys and chain[depth] == "path"):
                    what = ".".join(chain[: depth + 1])
                    raise UnhashableError(f"{user} uses {what}, which may import any module")
                if not self._is_changed(value, chain[depth], member):
                    self._draws(member)
                    self._library_s(".".join(chain[: depth + 1]), user, value, member)
                    return
            if chain[depth] in _OF_MODULES:
                return
            value, depth, name = member, depth + 1, chain[depth]
            if isinstance(value, types.ModuleType):
                self.read.append((inner, name, value))
        part = f"{'.'.join(chain[:depth])} used by {user}"
        self._variable(part, inner, name, value)

    def _is_own_code(self, function: object) -> bool:
        """Return True if a function is in the user's files."""
        code = getattr(function, "__code__", None)
        return code is not None and self._program.origins.own(code.co_filename)

    def _as_a_whole(self, module: types.ModuleType, user: str) -> None:
        """Collect what code may read from a module of which it does not name a member.

        Raises:
            UnhashableError: The module gives access to the environment or to any module.
        """
        if module.__name__ in _OPEN:
            raise UnhashableError(
                f"{user} uses the `{module.__name__}` module as a whole, so it can "
                f"{_OPEN[module.__name__]}"
            )
        if module.__name__ in ("random", "numpy", "numpy.random"):
            self._seeds()

    def _variable(self, part: str, variables: Mapping[str, Any], name: str, value: object) -> None:
        """Collect a variable. If it is empty, `_settle_empty` collects it later.

        Args:
            part: The name of the variable's part.
            variables: The namespace of the variable.
            name: The variable's name.
            value: The variable's value.
        """
        self._draws(value)
        self._globals.add((id(variables), name))
        self._compare_with_import(variables, name, value)
        if _is_empty(value) or (id(variables), name) in self._program.memos:
            self._empty.append((part, variables, name, value, variables))
        else:
            self._used(part, value)
            self.read.append((variables, name, value))

    def _draws(self, value: object) -> None:
        """Collect the seeds that the program sets, if a value draws from a global generator.

        The functions `seed` set the generator themselves.
        """
        is_method = issubclass(type(value), types.MethodType | types.BuiltinMethodType)
        if is_method and is_global_generator(cast("types.MethodType", value).__self__):
            self._seeds()

    def _seeds(self) -> None:
        if SEEDS not in self.parts:
            seeds = self.seeds = self._program.seeds()
            self.parts[SEEDS] = "; ".join(sorted(seeds))
            for part, seed in seeds.items():
                self._used(part, seed)

    def _compare(
        self, variables: Mapping[str, Any], name: str, value: object, owner: type | None = None
    ) -> None:
        """Set `set_here` to True if a variable may have another value on a worker."""
        holder = variables if owner is None else owner
        if not self.set_here and (id(holder), name) not in self._program.memos:
            self.set_here = not self._is_as_imported(variables, name, value, owner)

    def _compare_with_import(self, variables: Mapping[str, Any], name: str, value: object) -> None:
        """Set `set_here` and note the value on a worker, if it may be another one than here."""
        if (id(variables), name) in self._program.memos or self._is_as_imported(
            variables, name, value
        ):
            return
        self.set_here = True
        digest = self._program.digest_as_imported(variables, name)
        module, file = str(variables.get("__name__")), variables.get("__file__")
        if digest is None and isinstance(file, str):
            literal = self._literal(module, file, name)
            digest = None if literal is MISSING else Values(self).digest(literal)
        known = hashlib.blake2b(digest or b"", digest_size=DIGEST_SIZE)
        self.on_workers[f"{module}.{name}"] = known.hexdigest()

    def _is_as_imported(
        self, variables: Mapping[str, Any], name: str, value: Any, owner: type | None = None
    ) -> bool:
        """Return True if a variable has the value that a worker gets by importing the module.

        This holds for variables of the program's script, for modules, for functions and classes
        under their own names, for numbers in modules of libraries, and for values that are the same
        as when the module was imported. Other values may have been set by the program.

        Args:
            variables: The variables of the module, or the attributes of the class.
            name: The name of the variable or attribute.
            value: The value of the variable or attribute.
            owner: The class, or `None` for a variable of a module.
        """
        module = variables.get("__name__") if owner is None else owner.__module__
        if _is_script(module) or issubclass(type(value), types.ModuleType):
            return True  # the script's variables travel with its functions
        if str(module).startswith("namedtuple_"):  # the globals of a generated `__new__`
            return True
        if owner is not None and name == "__hash__" and value is None:
            return True  # Python has set it, because the class has `__eq__`
        file = variables.get("__file__") if owner is None else file_of(module)
        if not self._program.origins.own(file):  # only constants are the library's own
            return module == "sys" or (type(value) in (int, float, bool) and module != "builtins")
        inner, home = value, None
        if type(value) in _WRAPPERS:
            inner = getattr(value, _WRAPPERS[type(value)])
        if issubclass(type(inner), types.FunctionType):
            home = inner.__globals__.get("__name__")
        elif issubclass(type(inner), type):
            home = inner.__module__
        named = home is not None and inner.__qualname__.rpartition(".")[2] == name
        if named and not _is_script(home):
            return True
        holder = variables if owner is None else owner
        return self._program.is_as_imported(holder, name, value) or self._is_literal(
            str(module), file, name if owner is None else f"{owner.__qualname__}.{name}", value
        )

    def _is_literal(self, module: str, file: str, name: str, value: Any) -> bool:
        """Return True if a variable has the value of the only literal that the file assigns."""
        if type(value) not in (*_PLAIN, tuple, list, dict, set) or is_large(value):
            return False
        literal = self._literal(module, file, name)
        return type(literal) is type(value) and repr(literal) == repr(value)

    def _literal(self, module: str, file: str, name: str) -> Any:
        """Return the only literal that a module's file assigns to a variable, or `MISSING`."""
        variables = getattr(sys.modules.get(module), "__dict__", {})
        return self._program.sources.literal(file, variables, name)

    def _is_changed(self, module: types.ModuleType, name: str, member: Any) -> bool:
        """Return True if the program may have replaced a variable of a library's module."""
        if isinstance(member, types.FunctionType):
            return self._program.origins.own(member.__code__.co_filename)
        if isinstance(member, types.MethodType):
            return member.__name__ != name or self._is_changed(module, name, member.__func__)
        kind = member if isinstance(member, type) else type(member)
        replaced = kind.__module__ in _REPLACEMENTS and module.__name__ not in _REPLACEMENTS
        own = kind.__module__ in sys.modules and self.own(kind)
        if replaced or own or isinstance(member, partial):
            return True
        state = getattr(member, "__dict__", None)
        if type(state) is dict and any(map(self._is_own_function, state.values())):
            return True  # it wraps a function, as the result of `lru_cache` does
        if member is sys.flags or member is sys.argv or member is sys.orig_argv:
            return True
        return type(member) in (int, float, bool) and module.__name__ not in _ELSEWHERE

    def _is_own_function(self, value: object) -> bool:
        return isinstance(value, types.FunctionType) and self._program.origins.own(
            value.__code__.co_filename
        )

    def _library_s(self, part: str, user: str, module: types.ModuleType, member: Any) -> None:
        """Note the use of a library's function or class, and collect its name if it was moved.

        It was moved if it is defined under another name or in another top-level package than the
        code uses.

        Args:
            part: The dotted name that the code uses.
            user: The name of the part for the code.
            module: The module in which the code finds the object.
            member: The object, which may be of any type.
        """
        name = part.rpartition(".")[2]
        if callable(member):
            self.read.append((vars(module), name, member))
        if not isinstance(member, types.FunctionType | types.BuiltinFunctionType | type):
            if getattr(member, "__name__", name) != name and type(member).__module__ == "numpy":
                self.parts[f"{part} used by {user}"] = member.__name__
            return  # such as a function of NumPy
        self._note_kind(self._name(member))
        home = str(member.__module__).partition(".")[0]
        if member.__name__ != name or home != module.__name__.partition(".")[0]:
            self.parts[f"{part} used by {user}"] = self._name(member)

    def _special(
        self,
        value: object,
        rest: tuple[str, ...],
        use: Use,
        variables: Mapping[str, Any],
        user: str,
    ) -> bool:
        """Collect the values that code reads through a special object. See `_SPECIAL`.

        Args:
            value: The object, which may be special.
            rest: The attributes that the code reads from the object.
            use: The code's use of the object.
            variables: The globals of the code.
            user: The name of the part for the code.

        Returns:
            True if the object is special.

        Raises:
            UnhashableError: It cannot be determined which value is read.
        """
        if id(value) not in _SPECIAL:
            return False
        if not use.by:  # used in a class body: the attributes of the class are collected
            return True
        if value is sys.modules:
            if use.by != CONTAINS:
                raise UnhashableError(f"{user} reads sys.modules, which may return any module")
        elif value is os.path.expandvars:
            self.set_here = True  # workers have their own environment
            self._used(f"the environment used by {user}", os.environ)
        elif any(value is each for each in (os.environ, os.environb, os.getenv, os.getenvb)):
            self._environment(rest, use, variables, user)
        elif value is importlib.import_module or value is builtins.__import__:
            name = self._key(use, variables)
            if name is None:
                raise UnhashableError(f"{user} imports a module by a computed name")
            name = _resolved(name, variables.get("__package__") or "")
            self._imported(name, (), "")
            found = self._loaded(name)
            if found is not None and self._is_own(found):
                self._used(f"{name} imported by {user}", found)
        else:  # `globals()`, `eval` and `exec` see all variables
            self._attributes(variables, f"the globals around {user}", _NOT_OF_MODULES)
        return True

    def _environment(
        self, rest: tuple[str, ...], use: Use, variables: Mapping[str, Any], user: str
    ) -> None:
        if use.by in (ITEM_SET, ITEM_DELETED):
            return
        self.set_here = True  # workers have their own environment
        whole = use.by in (PASSED, MERGED, STORED)
        called = use.chain[-1] in ("getenv", "getenvb")
        if rest == ("copy",) or (not rest and not called and whole):
            self._used(f"the environment used by {user}", os.environ)
            return
        name = self._key(use, variables)
        if name is None or rest not in ((), ("get",), ("setdefault",), ("pop",)):
            raise UnhashableError(
                f"{user} reads environment variables whose names are not literals"
            )
        if counts(name):
            value = os.environ.get(name)
            # Only the digest is stored: the value may be a secret, and users can see the parts.
            self.parts[f"environment {name} used by {user}"] = Values(self).digest(value).hex()
            self.environment.append((name, value))

    def _key(self, use: Use, variables: Mapping[str, Any]) -> str | None:
        key = variables.get(use.key[0]) if isinstance(use.key, tuple) else use.key
        return key if isinstance(key, str) else None

    def _imported(self, name: str, taken: tuple[str, ...], package: str) -> None:
        """Collect the sources of imported modules and of their packages."""
        name = _resolved(name, package)
        self.reads_arguments |= f"{name}.".startswith(_ARGUMENT_READERS)
        names = name.split(".")
        path = None
        for number in range(1, len(names) + 1):
            full = ".".join(names[:number])
            spec = spec_of(full, path)
            self._module(full, spec)
            path = None if spec is None else spec.submodule_search_locations
            if path is None:
                return
        for each in taken:
            self._module(f"{name}.{each}", spec_of(f"{name}.{each}", path))

    def _loaded(self, name: str) -> types.ModuleType | None:
        """Return a module, or `None` if it was not loaded when it was first looked up.

        The variables of a module that a task loads later are ignored until they change, so that
        the next equal task has the same key; see `ImportedModules`. A module of a library
        must have been loaded when the run began, because a reused task does not load it.
        """
        program, found = self._program, sys.modules.get(name)
        if found is None or not (name in program.loaded or self._is_own(found)):
            program.unloaded.add(name)
        if name not in program.unloaded or (found is not None and program.has_changed(name)):
            return found
        self.absent.add(name)
        return None

    def _imports_later(self, package: types.ModuleType, name: str) -> bool:
        """Return True if code imports an attribute of a package, as a submodule, when it runs.

        Packages such as NumPy import some of their submodules when these are first used.
        """
        full, member = f"{package.__name__}.{name}", vars(package).get(name, MISSING)
        if member is MISSING and not self._is_own(package):
            self._program.unloaded.add(full)
        elif member is not MISSING and not isinstance(member, types.ModuleType):
            return False
        return full in self._program.unloaded and self._loaded(full) is None

    def _module(
        self, name: str, spec: ModuleSpec | None, whole: types.ModuleType | None = None
    ) -> None:
        """Collect a module's source, and the sources of the modules that it imports.

        Args:
            name: The module's name.
            spec: The module's spec, or `None` if there is none.
            whole: The module if all its variables are to be collected as well, otherwise `None`.

        Raises:
            UnhashableError: The module's source cannot be read.
        """
        variables = getattr(whole or sys.modules.get(name), "__dict__", {})
        origin = spec.origin if spec is not None and spec.has_location else None
        file = variables.get("__file__") or origin
        if not self._own(name, file) and not (whole is not None and self._is_own(whole)):
            return
        part = f"module {name if file is None else self._program.place(file)}"
        if whole is not None:
            self._attributes(variables, part, _NOT_OF_MODULES)
        if file is None:
            return
        if not variables and spec is not None:  # its loader can read it from a zip file
            variables = {"__name__": name, "__loader__": spec.loader, "__spec__": spec}
        if part in self.parts:
            return
        program, sources = self._program, self._program.sources
        imported_later = whole is None and self._loaded(name) is None
        if imported_later:
            self.sources[name] = file, None
            source, stamp = sources.of_import(file, variables, program.imported_from(name))
            self.sources[name] = file, stamp
        else:
            source = sources.of_module(file, variables)
        if source is None:
            if self._loaded(name) is None:
                raise UnhashableError(f"the source of module {name} cannot be read")
            self.parts[part] = "no source"
            return
        self.parts[part] = source.digest
        package = (None if spec is None else spec.parent) or ""
        names = names_in(source.tree)
        for module, taken in names.modules:
            self._imported(module, taken, package)
        if imported_later:  # a task will run it
            sources.require_current(name, spec, source.code)
            self._runs(names, {**dict(literals_in(source.tree)), "__package__": package}, part)

    def _runs(self, names: Names, variables: Mapping[str, Any], part: str) -> None:
        """Collect the members of loaded modules for a module that a task will import.

        Args:
            names: The names in the module's code.
            variables: The module's known variables: its package and its constants.
            part: The name of the module's part.
        """
        package = variables["__package__"]
        for use in names.uses:
            self._special(vars(builtins).get(use.chain[0]), use.chain[1:], use, variables, part)
        used = {use.chain[:2] for _, use in names.members}
        taken = [
            (module, Use((module,), OTHER))
            if each == "*"
            else (module, Use((module, each), "" if (module, each) in used else OTHER))
            for module, all_ in names.modules
            for each in all_
        ]
        for module, use in (*names.members, *taken):
            found = self._loaded(_resolved(module, package))
            if found is None:
                continue  # its source is collected
            known, member = vars(found), "".join(use.chain[1:2])
            if not member or member in known or "__getattr__" in known:
                self._member(found, use, variables, part)

    def _is_own(self, module: types.ModuleType) -> bool:
        """Return True if a module comes from the user's files or was created by the program."""
        variables = vars(module)
        file = variables.get("__file__")
        if file is not None:
            return self._program.origins.own(file)
        return "__path__" in variables or variables.get("__spec__") is None

    def _own(self, module: Any, file: Any) -> bool:
        """Return True if a module is the user's own.

        Otherwise, record the version of the library that contains it, and return False.

        Raises:
            UnhashableError: The module's file was changed after the program started.
        """
        program = self._program
        if program.origins.own(file):
            if altered(str(module)):  # workers would run its current content
                raise UnhashableError(source_changed(file))
            if file.endswith(tuple(EXTENSION_SUFFIXES)):
                self.parts[f"module {program.place(file)}"] = (program.file(file) or b"").hex()
            return True
        found = program.origins.version(str(module), file or file_of(module))
        if found is not None:
            self.may_open = self.may_open or found[0] not in _QUIET
            self.parts[found[0]] = found[1] or program.package(found[0])
        return False


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """Result of inspecting a function.

    Attributes:
        digest: The digest of the function's code and of everything that the code uses; empty if
            there is none.
        found: The parts of the digest, and the variables that were read.
        refused: The reason why the function has no digest, or `None` if it has one.
        plain: True if the digest is all that a key needs: the function opens no files, starts no
            programs, imports no modules, and reads neither the command line nor variables that the
            program has set.
    """

    digest: bytes
    found: CodeFingerprint
    refused: str | None = None
    plain: bool = False

    def is_current(self) -> bool:
        """Return True if all variables that were read still have the same values."""
        found = self.found
        for variables, name, value in found.read:
            if variables.get(name, MISSING) is not value:
                return False
        for sized, size in found.sizes:  # `for` loops are faster than generators here
            if len(sized) != size:
                return False
        for cell, content in found.cells:
            if content_of(cell) is not content:
                return False
        return not found.environment or all(
            os.environ.get(name) == text for name, text in found.environment
        )

    def is_unchanged(self) -> bool:
        """Return True if, in addition, no value has changed in place."""
        return self.is_current() and self.found.is_unchanged()


def _closed_over(function: types.FunctionType) -> Iterable[tuple[str, types.CellType]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)


def _texts_in(value: object) -> Iterable[str]:
    """Yield a text, or the texts in a container."""
    if type(value) is str:
        yield value
    elif type(value) in (tuple, list, set, frozenset):
        for each in cast("Iterable[object]", value):
            yield from _texts_in(each)
    elif type(value) is dict:
        yield from _texts_in(list(value.values()))


def _resolved(name: str, package: str) -> str:
    try:
        return importlib.util.resolve_name(name, package)
    except ImportError:  # it fails in the task, too
        return name.lstrip(".")


def _is_set_by_protocol(cls: type) -> bool:
    """Return True if `__init__` of a class is an inherited one.

    When a subclass of `typing.Protocol` is called for the first time, Python sets its `__init__` to
    the inherited one.
    """
    init, protocol = cls.__dict__.get("__init__"), cast("type", Protocol)
    return protocol in cls.__mro__ and any(
        init is base.__dict__.get("__init__") for base in cls.__mro__[1:]
    )


def _fields_of(cls: Any) -> list[tuple[Any, ...]]:
    """Return the options and fields of a dataclass. The class body may have computed them."""
    options, fields = cls.__dataclass_params__, cls.__dataclass_fields__
    found = [tuple(getattr(options, each) for each in _OPTIONS)]
    for name, field in fields.items():
        found.append((name, *(getattr(field, each) for each in _OF_FIELDS)))
    return found


def _related(cls: type) -> list[type]:
    """Return a class's bases, its metaclass, and the classes registered as its subclasses."""
    found = [*cls.__bases__, type(cls)]
    if not isinstance(cls, abc.ABCMeta):
        return found
    kinds = sorted(registered_with(cls), key=lambda each: (each.__module__, each.__qualname__))
    return found + kinds


def _is_read_alone(variables: Mapping[str, Any], name: str) -> bool:
    """Return True if a function of a module reads a global and uses no function that sets it.

    Such a function requires that another task has set the global.
    """
    values = [*variables.values()]
    module = variables.get("__name__")
    classes = [each for each in values if isinstance(each, type) and each.__module__ == module]
    values += [member for each in classes for member in vars(each).values()]
    functions = [
        each.__code__
        for each in map(_undecorated, values)
        if isinstance(each, types.FunctionType) and each.__globals__ is variables
    ]
    setters = {code.co_name for code in functions if name in names_stored(code, "GLOBAL")}
    return any(
        name in inner.co_names and setters.isdisjoint(inner.co_names)
        for code in functions
        if code.co_name not in setters
        for inner in with_inner(code)
    )


def _undecorated(value: Any) -> Any:
    """Return the function in a task or in the result of another decorator, or the value."""
    for _ in range(_MAX_DECORATORS):
        name = _WRAPPERS.get(type(value), "__wrapped__")
        inner = getattr(value, name) if type(value) in _WRAPPERS else attribute_of(value, name)
        if inner is None:
            break
        value = inner
    return value


def _made_of(function: types.FunctionType) -> tuple[object, ...]:
    """Return what a program can replace in a function; the ids of the defaults represent them."""
    keywords = {name: id(value) for name, value in (function.__kwdefaults__ or {}).items()}
    names = function.__name__, function.__qualname__
    return function.__code__, id(function.__defaults__), keywords, names


def _is_script(module: object) -> bool:
    """Return True if a name is that of the program's script, whose functions are sent by value."""
    return module in ("__main__", "__mp_main__", SCRIPT_MODULE)


def _home_of(value: object) -> str:
    """Return the name of the package of a module, function or class; empty for other objects."""
    is_module = issubclass(type(value), types.ModuleType)
    name = attribute_of(value, "__name__" if is_module else "__module__")
    return name.partition(".")[0] if isinstance(name, str) else ""


def _size_of_variable(variables: Mapping[str, Any], name: str) -> int:
    return _size(variables.get(name))


def _size(value: Any) -> int:
    """Return the number of items in a memo."""
    return 0 if value is None else len(value) if type(value) in _EMPTY else 1


def _is_empty(value: object) -> bool:
    return value is None or (type(value) in _EMPTY and not value)


def _is_python_s(name: str, value: Any) -> bool:
    """Return True if a name in `builtins` still refers to Python's own object."""
    if isinstance(value, types.BuiltinFunctionType):
        return value.__name__ == name
    if isinstance(value, type):
        return value.__module__ == "builtins"
    constant = name in ("NotImplemented", "Ellipsis", "__debug__", "__build_class__", "__doc__")
    return constant or type(value).__module__ == "_sitebuiltins"
