"""Digest of everything that a function's results depend on, except its arguments.

This covers the function's own code and the code of all the user's functions and classes that it
uses, directly or indirectly; the values in its closure, its defaults and the globals it reads;
environment variables that it reads by a literal name; and the versions of the installed
distributions that other names come from.

The rule is to fail closed. If code uses a value that has no digest, or reaches for something that
cannot be followed (`importlib.import_module(name)`, `os.environ[name]`), there is no digest and
the task is not recorded. If code uses a user's module as a whole, the digest covers the module's
source and all its variables. Only objects that do not affect results, such as loggers and locks,
are represented by their class alone; see `rhapsody.journal.values`.

State can change while the program runs. Globals, attributes of classes and variables of modules are
compared by identity before a digest is used again; values that can change in place are digested
again, once for each batch of lookups, up to a size. One case needs a different rule: a memo that
the task itself fills (`CACHE = {}`, `model = None`) must not change the key of the next equal task.
So a global that was empty when it was first seen, and that the reachable code fills, is treated as
empty for the whole run.

The digest does not cover files that are not arguments, changes inside installed libraries
(except functions and numbers that the program replaces in their modules), random numbers, and the
time.
"""

from __future__ import annotations

import abc
import builtins
import functools
import importlib.util
import os
import pkgutil
import runpy
import sys
import types
from collections.abc import Iterable, Mapping, Sized
from functools import partial
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from typing import Any

from rhapsody.journal.program import CALLS, Names, Program, Use, constants_in, names_in
from rhapsody.journal.values import UnhashableError, Values, counts
from rhapsody.sdk.modules import MISSING, altered, content_of, file_of, spec_of, with_inner

LARGE = 10_000
"""Size of a value, as `Values.size`, from which it is digested only once in a run."""

_OF_MODULES = frozenset(
    ("__name__", "__file__", "__path__", "__package__", "__spec__", "__loader__", "__cached__")
)
"""Names that the import system sets; they differ if a program is imported instead of run."""

_NOT_OF_MODULES = _OF_MODULES | {"__builtins__", "__doc__", "__annotations__", "__annotate__"}

_SPECIAL: frozenset[int] = frozenset(map(id, (
    os.environ, os.environb, sys.modules, os.getenv, os.getenvb, os.path.expandvars,
    importlib.import_module, builtins.__import__, globals, eval, exec,
)))  # fmt: skip
"""Objects from which code reads only the part that a subscript or an argument selects."""

_READERS = os.getenv, os.getenvb, os.path.expandvars
"""Functions that read variables of the environment."""

_IMPORTERS = frozenset(map(id, (
    importlib.import_module, builtins.__import__, pkgutil.resolve_name, importlib.__import__,
    importlib.util.spec_from_file_location, runpy.run_module, runpy.run_path, SourceFileLoader,
    SourcelessFileLoader,
)))  # fmt: skip
"""Functions that run a module by its name or path; code may use only those in `_SPECIAL`, and
those only in a call."""

_STARTERS = (
    "subprocess.", "os.popen", "os.spawn", "posix.system", "posix.posix_spawn",
    "asyncio.subprocess.create_subprocess",
)  # fmt: skip
"""Names of functions that start programs."""

_OF_CLASSES = frozenset((
    "__module__", "__qualname__", "__dict__", "__weakref__", "__doc__", "__annotations__",
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__conditional_annotations__",
    "__firstlineno__", "__static_attributes__", "__orig_bases__",
    "__parameters__", "__type_params__", "__abstractmethods__", "_abc_impl", "__final__",
    "__dataclass_fields__", "__dataclass_params__", "__protocol_attrs__",
    "__non_callable_proto_members__",
))  # fmt: skip
"""Attributes of classes that Python itself generates."""

_MAKERS = ("__dataclass_fields__", "_fields", "__attrs_attrs__")
"""Attributes of classes whose special methods a library has generated."""

_OPTIONS = ("init", "repr", "eq", "order", "unsafe_hash", "frozen")
"""Options of dataclasses that every version of Python has."""

_OF_FIELDS = (
    "default", "default_factory", "init", "repr", "hash", "compare", "kw_only", "metadata",
)  # fmt: skip
"""Attributes of the fields of dataclasses that the body of the class can compute."""

_HIDDEN = frozenset((
    "__globals__", "__subclasses__", "_getframe", "currentframe", "f_globals", "f_locals",
    "get_objects", "get_referrers",
))  # fmt: skip
"""Attributes that lead to objects without a name."""

_ELSEWHERE = frozenset(("os", "posix", "sys", "platform", "socket"))
"""Modules whose numbers differ between machines."""

_EMPTY = (dict, list, set)

_WRAPPERS: Mapping[type, str] = {
    classmethod: "__func__",
    staticmethod: "__func__",
    property: "fget",
    functools.cached_property: "func",
    functools._lru_cache_wrapper: "__wrapped__",
}
"""Types that Python's own decorators return, with the attribute that is the function."""

_PLAIN = frozenset((type(None), bool, int, float, complex, str, bytes, type(...)))


class CodeFingerprint:
    """Collector of everything that a task's results depend on, including values that contain code.

    Args:
        program: The state shared by all functions of a run.

    Attributes:
        parts: The digest or version of each ingredient, by name.
        paths: The strings that may name files, each with the digest of its file.
        lines: The line in which each function among the ingredients begins, by name.
        read: The variables that were read, each as a tuple of the namespace (of a module or class),
            the name and the value.
        cells: The closure cells that were read, with their content.
        sizes: Namespaces that were read as a whole, with their sizes.
        environment: The environment variables that were read, with their values.
        inner: Values that can change in place, with their digests.
        made_of: Functions, with their code, defaults and names, because programs can replace these.
        related: Classes, with their bases and other related classes, because programs can replace
            these.
        set_here: True if a variable that was read may have another value on a worker, which imports
            the module: one that is not a function, class or module, or an environment variable.
        starts_programs: True if the code starts programs, which inherit environment variables.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._values = Values(self)
        self._forget()
        self.begin()

    def begin(self, sandbox: str = "") -> None:
        """Start again for another task.

        Args:
            sandbox: The task's sandbox. Paths in it enter the digest relative to it.
        """
        if self._seen:
            self._forget()
        self._sandbox = sandbox
        self.paths: dict[str, bytes | None] = {}

    def _forget(self) -> None:
        """Discard everything that was collected."""
        self.parts: dict[str, str] = {}
        self.lines: dict[str, int] = {}
        self.read: list[tuple[Mapping[str, Any], str, object]] = []
        self.cells: list[tuple[types.CellType, object]] = []
        self.sizes: list[tuple[Sized, int]] = []
        self.environment: list[tuple[str, str | None]] = []
        self.inner: list[tuple[object, bytes]] = []
        self.made_of: list[tuple[types.FunctionType, tuple[object, ...]]] = []
        self.related: list[tuple[type, list[type]]] = []
        self.set_here: bool = False
        self.starts_programs: bool = False
        self._filled: set[tuple[int, str]] = set()
        self._empty: list[tuple[str, Mapping[str, Any], str, object, object]] = []
        self._fills: set[tuple[str, str, str]] = set()  # module, class if a method, and attribute
        self._todo: list[tuple[Any, str]] = []
        self._seen: dict[int, tuple[Any, str]] = {}
        self._called: dict[str, int] = {}
        self._collecting = False

    # Called by the digests of values.

    def code(self, thing: Any) -> str:
        """Collect a function, class or module and return a unique name for it."""
        known = self._seen.get(id(thing))
        if known is None:
            name = self._name(thing)
            number = self._called[name] = self._called.get(name, 0) + 1
            if number > 1:  # closures of one function, say
                name = f"{name} ({number})"
            known = self._seen[id(thing)] = thing, name
            self._todo.append(known)
            self.starts_programs = self.starts_programs or name.startswith(_STARTERS)
            if any(thing is each for each in _READERS):  # passed on, as to a `partial`
                self._used(f"the environment used by {name}", os.environ)
            elif id(thing) in _IMPORTERS:
                raise UnhashableError(f"{name} may import any module")
        return known[1]

    def own(self, kind: type) -> bool:
        """Return True if a class belongs to the program and not to a library."""
        return self._program.origins.own(file_of(kind.__module__))

    def path(self, text: str) -> str | None:
        """Collect a text that may name a file.

        Returns:
            The portable form of a path in the sandbox or the program's directory, else `None`.
        """
        sandbox, program = self._sandbox, self._program
        if sandbox and (text == sandbox or text.startswith(sandbox + os.sep)):
            return "\0sandbox" + text.removeprefix(sandbox)  # its content is that of an input file
        if not self._collecting:  # else a constant of the program, which may name an output
            self.paths[text] = program.file(text)
        place = program.portable(text)
        return None if place == text else place

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
        """Return the digest of a value, and collect the code that it contains.

        Raises:
            UnhashableError: It has no digest.
        """
        shown = self._values.shown(value)
        if self._todo:
            self._collect()
        return shown

    def function(self, function: object) -> None:
        """Collect a function, or an object that wraps one.

        Raises:
            UnhashableError: Something that it uses has no digest or cannot be followed.
        """
        self._collecting = True
        code = getattr(function, "__code__", None)
        if code is not None:  # only the engine calls it, so it owns the globals that it fills
            stored = self._program.names(code).stored
            self._filled.update((id(function.__globals__), each) for each in stored)  # type: ignore[attr-defined]
        self._used("the function", function)
        self._collect()

    def versioned(self, function: object, parts: dict[str, str]) -> None:
        """Collect a function whose `version` replaces its code.

        The function's module and name, the values in its closures, and its defaults are still
        included, and so is the code of functions and classes whose names do not identify them, such
        as one of two lambdas.

        Raises:
            UnhashableError: One of those has no digest.
        """
        sources = self._program.sources
        todo: list[tuple[str, object]] = [("function", function)]
        while todo:
            part, value = todo.pop()
            if part in parts:
                continue
            if not isinstance(value, types.FunctionType):
                named = isinstance(value, type) and _is_in_its_module(value)
                parts[part] = self._name(value) if named else self.value(value)
                continue
            parts[part] = self._name(value)
            if not sources.is_only_one(value.__code__, value.__globals__):
                parts[f"code of {part}"] = sources.of_function(value)
            filled = self._program.names(value.__code__).filled
            closed_over = [each for each in _closed_over(value) if each[0] not in filled]
            todo += [(f"{each} around {part}", content_of(cell)) for each, cell in closed_over]
            defaults = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items())
            todo += [(f"default {n} of {part}", each) for n, each in enumerate(defaults, 1)]

    def is_unchanged(self) -> bool:
        """Return True if values that can change in place are unchanged."""
        self._collecting = True
        if any(_made_of(each) != parts for each, parts in self.made_of):
            return False
        if any(list(map(id, _related(cls))) != list(map(id, was)) for cls, was in self.related):
            return False
        values = Values(self)
        try:
            return all(values.digest(value, whole=False) == was for value, was in self.inner)
        except UnhashableError:
            return False

    def _collect(self) -> None:
        self._collecting = True
        while self._todo or self._empty:
            if not self._todo:
                self._settle_empty()
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
        """Collect empty globals, after all code that may fill them was inspected."""
        empty, self._empty = self._empty, []
        for part, variables, name, value, owner in empty:
            known = id(owner), name
            if known in self._filled or (isinstance(owner, type) and self._is_filled(owner, name)):
                self.parts[part] = "filled by the task"
                self._program.memos[known] = owner
            else:
                self._used(part, value)
                self.read.append((variables, name, value))

    def _is_filled(self, owner: type, name: str) -> bool:
        """Return True if code fills an attribute of a class.

        The code is any function, or a method of the class or of a related one.
        """
        metaclass: type = type(owner)
        related = {*owner.__mro__, *metaclass.__mro__}
        for each, _ in self._seen.values():
            if isinstance(each, type) and owner in each.__mro__:
                related.update(each.__mro__)
        homes = {("", "")} | {(each.__module__, each.__qualname__) for each in related}
        return any((module, kind, name) in self._fills for module, kind in homes)

    def _function(self, function: types.FunctionType, name: str) -> None:
        code, variables = function.__code__, function.__globals__
        own = self._own(variables.get("__name__"), code.co_filename)
        if own:
            self.parts[name] = self._program.sources.of_function(function)
            self.lines[name] = code.co_firstlineno
        elif self._in_library(function):
            return
        for variable, cell in _closed_over(function):
            value = self._cell(f"{variable} around {name}", cell, variable, code)
            kind: type = type(value)
            kept = kind in _PLAIN or issubclass(kind, types.FunctionType | types.ModuleType | type)
            # Functions of modules are imported; other functions travel with their closures.
            if not kept and not _is_script(variables.get("__name__")):
                self.set_here = self.set_here or _is_in_its_module(function)
        if function.__defaults__:
            self._used(f"the defaults of {name}", function.__defaults__)
        for argument, default in (function.__kwdefaults__ or {}).items():
            self._used(f"the default {argument} of {name}", default)
        self.made_of.append((function, _made_of(function)))
        if own and (function.__name__, function.__qualname__) != (code.co_name, code.co_qualname):
            self.parts[f"names of {name}"] = f"{function.__name__} {function.__qualname__}"
        self._attributes(vars(function), name)
        if own:
            self._names(code, variables, name)

    def _cell(self, part: str, cell: types.CellType, name: str, code: types.CodeType) -> object:
        """Collect a variable of a closure, unless it was empty and the function fills it.

        Returns:
            Its value; `None` if the function fills it.
        """
        value, memos = content_of(cell), self._program.memos
        known = id(cell), ""
        if known not in memos and not (
            _is_empty(value) and name in self._program.names(code).filled
        ):
            self._used(part, value)
            self.cells.append((cell, value))
            return value
        self.parts[part] = "filled by the task"
        memos[known] = cell
        return None

    def _names(self, code: types.CodeType, variables: dict[str, Any], name: str) -> None:
        """Collect everything that compiled code uses from outside."""
        names, package = self._program.names(code), variables.get("__package__") or ""
        if not code.co_argcount and not code.co_kwonlyargcount:
            self._filled.update((id(variables), each) for each in names.stored)
        home = str(variables.get("__name__")), code.co_qualname.rpartition(".")[0]
        if not home[1] or home[1].endswith("<locals>"):
            home = "", ""
        self._fills.update((*home, each) for each in names.filled)
        for each in with_inner(code):
            if hidden := _HIDDEN.intersection(each.co_names):
                raise UnhashableError(f"{name} uses {min(hidden)}, which may return any object")
        for use in names.uses:
            self._fills.update(("", "", each) for each in use.filled())
            self._global(variables, use, name)
        for module, taken in names.modules:
            self._imported(module, taken, package)
        for module, use in names.members:
            found = self._loaded(_resolved(module, package))
            if found is not None:
                self._member(found, use, variables, name)

    def _in_library(self, function: types.FunctionType | type) -> bool:
        """Return True if a function or class is found under its own name in a library's module."""
        if self._program.origins.own(file_of(function.__module__)):
            return False  # decorated with `functools.wraps`
        return _is_in_its_module(function)

    def _class(self, cls: type, name: str) -> None:
        file = file_of(cls.__module__)
        own = self._own(cls.__module__, file)
        made_by_call = "<locals>" in cls.__qualname__ or cls.__module__ == "types"
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
        if made and "__dataclass_fields__" in vars(cls):
            self._used(f"the fields of {name}", _fields_of(cls))
        self._attributes(vars(cls), name, _OF_CLASSES, made=made, owner=cls)

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
            name: The name of their owner.
            without: Names of attributes to ignore.
            made: True if special methods are generated from the class body, which is collected
                itself.
            owner: The class that has the attributes, if any; its methods may fill empty ones.
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
            file = getattr(getattr(value, "__code__", None), "co_filename", "")
            special = made and attribute.startswith("__")
            if not special and (owner is not None or "__name__" in attributes):
                self._compare(attributes, attribute, value, owner)
            if not (special and file.startswith("<")):
                self._used(f"{attribute} of {name}", value)

    def _used(self, name: str, value: object) -> None:
        """Collect a value that code uses.

        Raises:
            UnhashableError: It has no digest.
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
        if type(value) not in _PLAIN and values.size < LARGE:
            self.inner.append((value, digest))

    def _global(self, variables: Mapping[str, Any], use: Use, user: str) -> None:
        """Collect a global that code reads, or for a module the attributes that it reads."""
        name = use.chain[0]
        if name in _OF_MODULES:
            return
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
            self._variable(f"{name} used by {user}", space, name, value, use, 1)

    def _member(
        self, module: types.ModuleType, use: Use, variables: Mapping[str, Any], user: str
    ) -> None:
        """Collect the attribute that code reads from a module; for a library, its version."""
        chain, depth = use.chain, 1
        value: Any = module
        while isinstance(value, types.ModuleType):
            inner = vars(value)
            if depth == len(chain) and value is builtins:
                raise UnhashableError(
                    f"{user} uses the `builtins` module as a whole, through which it can import "
                    "any module"
                )
            if depth == len(chain) or chain[depth] not in inner:
                self._used(f"{'.'.join(chain[:depth])} used by {user}", value)  # all of it
                return
            own, member = self._is_own(value), inner[chain[depth]]
            if not own and not isinstance(member, types.ModuleType):
                self._used(f"{'.'.join(chain[:depth])} used by {user}", value)  # its version
                if self._special(member, chain[depth + 1 :], use, variables, user):
                    return
                if id(member) in _IMPORTERS or (value is sys and chain[depth] == "path"):
                    what = ".".join(chain[: depth + 1])
                    raise UnhashableError(f"{user} uses {what}, which may import any module")
                if not self._is_changed(value, chain[depth], member):
                    self._library_s(".".join(chain[: depth + 1]), user, value, member)
                    return
            if chain[depth] in _OF_MODULES:
                return
            value, depth, name = member, depth + 1, chain[depth]
            if isinstance(value, types.ModuleType):
                self.read.append((inner, name, value))
        part = f"{'.'.join(chain[:depth])} used by {user}"
        self._variable(part, inner, name, value, use, depth)

    def _variable(
        self, part: str, variables: Mapping[str, Any], name: str, value: object, use: Use, rest: int
    ) -> None:
        """Collect a variable; postpone this for an empty one, see `_settle_empty`."""
        if use.filled() == (name,) and rest >= len(use.chain) - (use.by in CALLS):
            self._filled.add((id(variables), name))
        self._compare(variables, name, value)
        if _is_empty(value) or (id(variables), name) in self._program.memos:
            self._empty.append((part, variables, name, value, variables))
        else:
            self._used(part, value)
            self.read.append((variables, name, value))

    def _compare(
        self, variables: Mapping[str, Any], name: str, value: object, owner: type | None = None
    ) -> None:
        """Set `set_here` if a variable of a module or class may have another value on a worker."""
        holder = variables if owner is None else owner
        if not self.set_here and (id(holder), name) not in self._program.memos:
            self.set_here = not self._is_as_imported(variables, name, value, owner)

    def _is_as_imported(
        self, variables: Mapping[str, Any], name: str, value: Any, owner: type | None = None
    ) -> bool:
        """Return True if a variable has the value that a worker finds when it imports the module.

        Functions, classes and modules under their own names do. The program may have set other
        values itself.

        Args:
            variables: The variables of the module, or the attributes of the class.
            name: The variable's name.
            value: The variable's value.
            owner: The class, if it is an attribute of a class.
        """
        module = variables.get("__name__") if owner is None else owner.__module__
        if _is_script(module) or issubclass(type(value), types.ModuleType):
            return True  # the script's variables travel with its functions
        if owner is not None and name == "__hash__" and value is None:
            return True  # Python has set it, because the class has `__eq__`
        file = variables.get("__file__") if owner is None else file_of(module)
        if not self._program.origins.own(file):  # only constants are the library's own
            return module == "sys" or (type(value) in (int, float, bool) and module != "builtins")
        if type(value) in _WRAPPERS:
            value = getattr(value, _WRAPPERS[type(value)])
        if issubclass(type(value), types.FunctionType):
            home = value.__globals__.get("__name__")
        elif issubclass(type(value), type):
            home = value.__module__
        else:
            return False
        return not _is_script(home) and value.__qualname__.rpartition(".")[2] == name

    def _is_changed(self, module: types.ModuleType, name: str, member: Any) -> bool:
        """Return True if a library's variable may have been set by the program."""
        if isinstance(member, types.FunctionType):
            return self._program.origins.own(member.__code__.co_filename)
        if isinstance(member, types.MethodType):
            return member.__name__ != name or self._is_changed(module, name, member.__func__)
        kind = member if isinstance(member, type) else type(member)
        if isinstance(member, partial) or (kind.__module__ in sys.modules and self.own(kind)):
            return True
        if member is sys.flags or member is sys.argv:
            return True
        return type(member) in (int, float, bool) and module.__name__ not in _ELSEWHERE

    def _library_s(self, part: str, user: str, module: types.ModuleType, member: Any) -> None:
        """Record a library's function, and collect its name if it is not where it was defined."""
        if not isinstance(member, types.FunctionType | types.BuiltinFunctionType | type):
            return
        name = part.rpartition(".")[2]
        self.read.append((vars(module), name, member))
        self.starts_programs = self.starts_programs or self._name(member).startswith(_STARTERS)
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
        """Collect the values that are read through a special name, see `_SPECIAL`.

        Args:
            value: The object that may have a special name.
            rest: The attributes that are read from it.
            use: The use of the name.
            variables: The globals of the code.
            user: The name of the code that uses the object.

        Returns:
            True if the name is special.

        Raises:
            UnhashableError: It cannot be determined which value is read.
        """
        if id(value) not in _SPECIAL:
            return False
        if not use.by:  # the body of a class, whose attributes are collected
            return True
        if value is sys.modules:
            if use.by != "CONTAINS_OP":
                raise UnhashableError(f"{user} reads sys.modules, which may return any module")
        elif value is os.path.expandvars:
            self.set_here = True  # workers have an environment of their own
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
        if use.by in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            return
        self.set_here = True  # workers have an environment of their own
        whole = use.by in CALLS or use.by in ("DICT_UPDATE", "DICT_MERGE", "BINARY_OP")
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
            # As a digest, because it may be a secret, and the parts are shown to users.
            self.parts[f"environment {name} used by {user}"] = Values(self).digest(value).hex()
            self.environment.append((name, value))

    def _key(self, use: Use, variables: Mapping[str, Any]) -> str | None:
        key = variables.get(use.key[0]) if isinstance(use.key, tuple) else use.key
        return key if isinstance(key, str) else None

    def _imported(self, name: str, taken: tuple[str, ...], package: str) -> None:
        """Collect the sources of imported modules and of their packages."""
        name = _resolved(name, package)
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

        The variables of such a module are ignored: it is loaded by tasks, and the key of the next
        equal task must be the same.
        """
        found = sys.modules.get(name)
        if found is None:
            self._program.unloaded.add(name)
        return None if name in self._program.unloaded else found

    def _module(
        self, name: str, spec: ModuleSpec | None, whole: types.ModuleType | None = None
    ) -> None:
        """Collect a module's source, and the sources of the modules that it imports.

        Args:
            name: The module's name.
            spec: The module's spec.
            whole: The module itself if all its variables are collected as well.

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
        if not variables and spec is not None:  # it may be in a zip file, which its loader reads
            variables = {"__name__": name, "__loader__": spec.loader, "__spec__": spec}
        source = self._program.sources.of_module(file, variables)
        if source is None and part not in self.parts and self._loaded(name) is None:
            raise UnhashableError(f"the source of module {name} cannot be read")
        if source is None or part in self.parts:
            self.parts.setdefault(part, "no source")
            return
        self.parts[part], code = source
        package = (None if spec is None else spec.parent) or ""
        names = names_in(code)
        for module, taken in names.modules:
            self._imported(module, taken, package)
        if whole is None and self._loaded(name) is None:  # a task will run it
            self._runs(names, {**constants_in(code), "__package__": package}, part)

    def _runs(self, names: Names, variables: Mapping[str, Any], part: str) -> None:
        """Collect the members of loaded modules that a module uses when a task imports it.

        Args:
            names: The names in the importing module's code.
            variables: The module's known variables: its package and its constants.
            part: The name of the module.
        """
        package = variables["__package__"]
        for use in names.uses:
            self._special(vars(builtins).get(use.chain[0]), use.chain[1:], use, variables, part)
        taken = [(module, Use((module, each))) for module, all_ in names.modules for each in all_]
        for module, use in (*names.members, *taken):
            found = self._loaded(_resolved(module, package))
            if found is None:
                continue  # its source is collected
            known, member = vars(found), "".join(use.chain[1:2])
            if member in ("", "*") or member in known or "__getattr__" in known:
                self._member(found, use, variables, part)

    def _is_own(self, module: types.ModuleType) -> bool:
        """Return True if a module is the user's own: from a file, or created by the program."""
        variables = vars(module)
        file = variables.get("__file__")
        if file is not None:
            return self._program.origins.own(file)
        return "__path__" in variables or variables.get("__spec__") is None

    def _own(self, module: Any, file: Any) -> bool:
        """Return True if a module is the user's own; otherwise collect its library's version."""
        program = self._program
        if program.origins.own(file):
            if altered(str(module)):  # workers would run its current content
                raise UnhashableError(
                    f"{os.path.basename(file)} was changed after the program started; run the "
                    "program again"
                )
            if file.endswith(tuple(EXTENSION_SUFFIXES)):
                self.parts[f"module {program.place(file)}"] = (program.file(file) or b"").hex()
            return True
        found = program.origins.version(str(module), file or file_of(module))
        if found is not None:
            self.parts[found[0]] = found[1] or program.package(found[0])
        return False


def _closed_over(function: types.FunctionType) -> Iterable[tuple[str, types.CellType]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)


def _is_in_its_module(thing: types.FunctionType | type) -> bool:
    """Return True if a function or class is found under its own name in its module."""
    found: Any = sys.modules.get(thing.__module__)
    for part in thing.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is thing


def _resolved(name: str, package: str) -> str:
    try:
        return importlib.util.resolve_name(name, package)
    except ImportError:  # it fails in the task, too
        return name.lstrip(".")


def _fields_of(cls: Any) -> list[tuple[Any, ...]]:
    """Return the options and fields of a dataclass, which its body may have computed."""
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
    registry = abc._get_dump(cls)[0]  # type: ignore[attr-defined]
    kinds = [each for each in (made() for made in registry) if isinstance(each, type)]
    return found + sorted(kinds, key=lambda each: (each.__module__, each.__qualname__))


def _made_of(function: types.FunctionType) -> tuple[object, ...]:
    """Return the parts of a function that can be set, in a form that compares by identity."""
    keywords = {name: id(value) for name, value in (function.__kwdefaults__ or {}).items()}
    names = function.__name__, function.__qualname__
    return function.__code__, id(function.__defaults__), keywords, names


def _is_script(module: object) -> bool:
    """Return True if a module is the program's script, whose functions are sent by value."""
    return module in ("__main__", "__mp_main__")


def _is_empty(value: object) -> bool:
    return value is None or (type(value) in _EMPTY and not value)


def _is_python_s(name: str, value: Any) -> bool:
    """Return True if a name of `builtins` still has Python's own value."""
    if isinstance(value, types.BuiltinFunctionType):
        return value.__name__ == name
    if isinstance(value, type):
        return value.__module__ == "builtins"
    constant = name in ("NotImplemented", "Ellipsis", "__debug__", "__build_class__", "__doc__")
    return constant or type(value).__module__ == "_sitebuiltins"
