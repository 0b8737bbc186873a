"""What a function's results depend on besides its arguments, as far as its code says.

Its own code and, through all that they use, that of functions and classes of its module and of the
program's own; the values in its closure, its defaults and the globals it reads; the versions of
installed distributions that other names come from.

What it does beside that cannot be known: modules and names that it makes up as it runs
(`importlib.import_module`, `globals()`, `eval`), files and variables of the environment that it
reads without being given their names, random numbers, the time. Objects of libraries that no
process could send to another (a `struct.Struct`, say) count by their class where they are globals.
What is changed in place (a list, say) counts as it is when the function is first submitted.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Mapping
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from typing import Any

from rhapsody.journal.program import Program
from rhapsody.journal.syntax import names_in
from rhapsody.journal.values import NoDigestError, Values
from rhapsody.sdk._origins import file_of, spec_of

MISSING: object = object()
"""Stands for the value of a global that is not set."""

_OF_MODULES = frozenset(
    ("__name__", "__file__", "__path__", "__package__", "__spec__", "__loader__", "__cached__")
)
"""Names that the import system sets; they differ between a program that runs and one imported."""


class Ingredients:
    """Collects what results depend on, by what it is called; also that of values with code in them.

    Args:
        program: What is the same for all functions of a run.

    Attributes:
        parts: The digest or version of each ingredient.
        paths: The strings that may name files, each with the digest of its file.
        lines: Where functions among the ingredients begin.
        read: The globals that were read: the variables of a module, a name, and the value.
        cells: The same of variables in closures.
    """

    __slots__ = (
        "_called",
        "_collecting",
        "_program",
        "_sandbox",
        "_seen",
        "_stored",
        "_todo",
        "_values",
        "cells",
        "lines",
        "parts",
        "paths",
        "read",
    )

    def __init__(self, program: Program) -> None:
        self._program = program
        self._values = Values(self)
        self._forget()
        self.begin()

    def begin(self, sandbox: str = "") -> None:
        """Begins anew, for another task.

        Args:
            sandbox: Its sandbox; a path in it is told by its name there.
        """
        if self._seen:
            self._forget()
        self._sandbox = sandbox
        self.paths: dict[str, bytes | None] = {}

    def _forget(self) -> None:
        """Forgets what code was collected; where there was none, there is nothing to forget."""
        self.parts: dict[str, str] = {}
        self.lines: dict[str, int] = {}
        self.read: list[tuple[Mapping[str, Any], str, object]] = []
        self.cells: list[tuple[types.CellType, object]] = []
        self._stored: set[tuple[int, str]] = set()
        self._todo: list[tuple[Any, str]] = []
        self._seen: dict[int, tuple[Any, str]] = {}
        self._called: dict[str, int] = {}
        self._collecting = False

    # What the digests of values ask.

    def code(self, thing: Any) -> str:
        """Notes a function, class or module; returns what it is called, and nothing else is."""
        known = self._seen.get(id(thing))
        if known is None:
            name = self._name(thing)
            number = self._called[name] = self._called.get(name, 0) + 1
            if number > 1:  # closures of one function, say
                name = f"{name} ({number})"
            known = self._seen[id(thing)] = thing, name
            self._todo.append(known)
        return known[1]

    def own(self, kind: type) -> bool:
        """Whether a class is of the program itself, and of no library."""
        return self._program.origins.own(file_of(kind.__module__))

    def path(self, text: str) -> str | None:
        """Notes that a text may name a file; the portable form of one in the program's places."""
        if self._collecting:  # a constant of the program's; a function may write there, too
            return None
        sandbox, program = self._sandbox, self._program
        if sandbox and (text == sandbox or text.startswith(sandbox + os.sep)):
            return "\0sandbox" + text.removeprefix(sandbox)  # its content is that of an input file
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

    # What is collected.

    def value(self, value: object) -> str:
        """What tells a value from others; what code it brings is collected, too.

        Raises:
            NoDigestError: It has no digest.
        """
        shown = self._values.shown(value)
        if self._todo:
            self._collect()
        return shown

    def function(self, function: object) -> None:
        """Collects a function, or whatever else wraps one.

        Raises:
            NoDigestError: What is in its closure or its defaults has no digest.
        """
        self._collecting = True
        self._used("the function", function)
        self._collect()
        self.read = [each for each in self.read if (id(each[0]), each[1]) not in self._stored]

    def _collect(self) -> None:
        self._collecting = True
        while self._todo:
            thing, name = self._todo.pop()
            if isinstance(thing, types.FunctionType):
                self._function(thing, name)
            elif isinstance(thing, type):
                self._class(thing, name)
            elif isinstance(thing, types.ModuleType):
                self._module(thing.__name__, spec_of(thing.__name__, None))
            else:
                self._own(thing.__module__, file_of(thing.__module__))
        self._collecting = False

    def _function(self, function: types.FunctionType, name: str) -> None:
        code, variables = function.__code__, function.__globals__
        own = self._own(variables.get("__name__"), code.co_filename)
        if own:
            self.parts[name] = self._program.sources.of_function(function)
            self.lines[name] = code.co_firstlineno
        elif not self._wraps(function):
            return
        for variable, cell in _closed_over(function):
            value = content_of(cell)
            self._used(f"{variable} around {name}", value, whole=own)
            self.cells.append((cell, value))
        if function.__defaults__:
            self._used(f"the defaults of {name}", function.__defaults__, whole=own)
        for argument, default in (function.__kwdefaults__ or {}).items():
            self._used(f"the default {argument} of {name}", default, whole=own)
        for attribute, value in vars(function).items():
            self._used(f"{attribute} of {name}", value)
        if own:
            names = self._program.names(code)
            self._stored.update((id(variables), each) for each in names.stored)
            for chain in names.chains:
                self._global(variables, chain, name)
            for module, taken in names.modules:
                self._imported(module, taken, variables.get("__package__") or "")

    def _wraps(self, function: types.FunctionType) -> bool:
        """Whether a function of a library is one of the program's own, decorated."""
        own = self._program.origins.own
        if own(file_of(function.__module__)):
            return True  # so `functools.wraps` has it
        held = [content_of(cell) for _, cell in _closed_over(function)]
        return any(
            isinstance(each, types.FunctionType) and own(each.__code__.co_filename) for each in held
        )

    def _class(self, cls: type, name: str) -> None:
        file = file_of(cls.__module__)
        if not self._own(cls.__module__, file):
            return
        variables = getattr(sys.modules.get(cls.__module__), "__dict__", {})
        body = self._program.sources.of_class(cls, file or "", variables)
        if body is not None:
            self.parts[name] = body[0]
            for chain in body[1]:
                self._global(variables, chain, name)
        for number, base in enumerate((*cls.__bases__, type(cls))):
            self._used(f"base {number} of {name}", base)
        for attribute, value in list(vars(cls).items()):
            functions = _functions_of(value)
            if body is not None and any(each.__code__.co_filename[0] == "<" for each in functions):
                continue  # a `__init__` that was made of the body
            if functions:
                self.parts[f"{attribute} of {name}"] = ", ".join(map(self.code, functions))
            elif callable(value) or not attribute.startswith("__"):
                self._used(f"{attribute} of {name}", value)

    def _used(self, name: str, value: object, *, whole: bool = False) -> None:
        """A value that code uses."""
        try:
            if issubclass(type(value), types.FunctionType | types.ModuleType | type):
                self.parts[name] = self.code(value)
            else:
                self.parts[name] = Values(self).digest(value, whole=whole).hex()
        except NoDigestError as error:
            if whole:
                raise NoDigestError(f"{name}: {error}") from error
            self.parts[name] = self.code(type(value))

    def _global(self, variables: Mapping[str, Any], chain: tuple[str, ...], user: str) -> None:
        value, depth = variables.get(chain[0], MISSING), 1
        while issubclass(type(value), types.ModuleType) and depth < len(chain):
            inner = vars(value)
            space = "__path__" in inner and inner.get("__file__") is None
            own = space or self._program.origins.own(inner.get("__file__"))
            if not own or chain[depth] not in inner:
                break  # its version, or all of it, whatever is used
            value, variables, depth = inner[chain[depth]], inner, depth + 1
        if value is not MISSING and chain[depth - 1] not in _OF_MODULES:
            self._used(f"{'.'.join(chain[:depth])} used by {user}", value)
            self.read.append((variables, chain[depth - 1], value))

    def _imported(self, name: str, taken: tuple[str, ...], package: str) -> None:
        """What an import takes, with the packages it is in."""
        try:
            name = importlib.util.resolve_name(name, package)
        except ImportError:  # it fails in the task, too
            return
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

    def _module(self, name: str, spec: ModuleSpec | None) -> None:
        """A module of which it is not known what is used, and those that it imports."""
        variables = getattr(sys.modules.get(name), "__dict__", {})
        file = variables.get("__file__") or (None if spec is None else spec.origin)
        if not self._own(name, file) or file is None:
            return
        part = f"module {self._program.place(file)}"
        source = self._program.sources.of_module(file, variables)
        if source is None or part in self.parts:
            self.parts.setdefault(part, "no source")
            return
        self.parts[part], code = source
        package = None if spec is None else spec.parent
        for module, taken in names_in(code).modules:
            self._imported(module, taken, package or "")

    def _own(self, module: Any, file: Any) -> bool:
        """Whether a module's own code counts; the version of its distribution is noted."""
        program = self._program
        if program.origins.own(file):
            if file.endswith(tuple(EXTENSION_SUFFIXES)):
                self.parts[f"module {program.place(file)}"] = (program.file(file) or b"").hex()
            return True
        found = program.origins.version(str(module), file or file_of(module))
        if found is not None:
            self.parts[found[0]] = found[1]
        return False


def _closed_over(function: types.FunctionType) -> Iterable[tuple[str, types.CellType]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)


def content_of(cell: types.CellType) -> object:
    """What is in a variable of a closure, `MISSING` where nothing is."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _functions_of(value: object) -> list[types.FunctionType]:
    """The functions that an attribute of a class is made of."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, functools.cached_property):
        value = value.func
    parts = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,)
    return [part for part in parts if isinstance(part, types.FunctionType)]
