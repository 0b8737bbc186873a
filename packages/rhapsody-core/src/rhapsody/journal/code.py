"""What a function's results depend on besides its arguments, as far as its code says.

Its own code and, through all that they use, that of functions and classes of its module and of the
program's own; the values in its closure, its defaults and the globals it reads; the versions of
installed distributions that other names come from. What it does beside that cannot be known.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rhapsody.journal.files import FileDigests
from rhapsody.journal.syntax import Names, Sources, names_in
from rhapsody.journal.values import NoDigestError, Values

_MISSING = object()

_real = functools.lru_cache(maxsize=None)(os.path.realpath)


class Origins:
    """Tells where modules come from."""

    def __init__(self) -> None:
        paths = sysconfig.get_paths()
        places = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
        self._installed = _below([*places, site.getusersitepackages()])
        self._standard = _below([paths["stdlib"], paths["platstdlib"]])
        self._ours = _below([os.path.dirname(os.path.dirname(__file__))])
        self._versions: dict[str, tuple[str, str] | None] = {}

    def own(self, module: str, file: object) -> bool:
        """Whether a module is the user's own: its source counts, and not its version."""
        if not isinstance(file, str) or file.startswith("<frozen"):
            return False
        path = _real(file) + os.sep
        return not path.startswith((*self._installed, *self._standard, *self._ours))

    def version(self, module: str, file: object) -> tuple[str, str] | None:
        """The distribution that an installed module is from, and its version; none for others."""
        if not isinstance(file, str) or not _real(file).startswith(self._installed):
            return None
        name = module.partition(".")[0]
        if name not in self._versions:
            self._versions[name] = _version(name)
        return self._versions[name]


def _below(places: Iterable[str]) -> tuple[str, ...]:
    return tuple({_real(place) + os.sep for place in places})


def _version(name: str) -> tuple[str, str] | None:
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        for distribution in metadata.packages_distributions().get(name, ()):
            return distribution, metadata.version(distribution)
    return None


class Ingredients:
    """Collects what results depend on, by what it is called; also that of values with code in them.

    Args:
        program: What is the same for all functions of a run.
        sandbox: The sandbox of the task; a path in it is told by its name there.

    Attributes:
        parts: The digest or version of each ingredient.
        paths: The strings that may name files, each with the digest of its file.
        lines: Where functions among the ingredients begin.
    """

    def __init__(self, program: Program, sandbox: str = "") -> None:
        self._sandbox = sandbox
        self.parts: dict[str, str] = {}
        self.paths: dict[str, bytes | None] = {}
        self.lines: dict[str, int] = {}
        self._program = program
        self._values = Values(self)
        self._todo: list[Any] = []
        self._collecting = False
        self._seen: dict[int, Any] = {}

    # What the digests of values ask.

    def code(self, thing: Any) -> str:
        """Notes a function, class or module; returns what it is called."""
        if id(thing) not in self._seen:
            self._seen[id(thing)] = thing
            self._todo.append(thing)
        name = str(getattr(thing, "__qualname__", None) or thing.__name__)
        module = getattr(thing, "__module__", None) or ""
        file = getattr(sys.modules.get(module), "__file__", None)
        return name if self._program.origins.own(module, file) else f"{module}.{name}"

    def path(self, text: str) -> tuple[str, bytes] | None:
        """The portable form of a path and its file's digest; `None` where there is no file."""
        if self._collecting:  # a constant of the program's; a function may write there, too
            return None
        if self._sandbox and text.startswith(self._sandbox):
            return text.removeprefix(self._sandbox), b""  # its content is that of an input file
        digest = self.paths[text] = self._program.file(text)
        return None if digest is None else (self._program.place(text), digest)

    # What is collected.

    def value(self, value: object) -> bytes:
        """The digest of a value; what code it brings is collected, too.

        Raises:
            NoDigestError: It has none.
        """
        digest = self._values.digest(value)
        self._collect()
        return digest

    def function(self, function: object) -> None:
        """Collects a function, or whatever else can be called."""
        self._collecting = True
        self._used("the function", function)
        self._collect()

    def _collect(self) -> None:
        self._collecting = True
        while self._todo:
            thing = self._todo.pop()
            if isinstance(thing, types.FunctionType):
                self._function(thing)
            elif isinstance(thing, type):
                self._class(thing)
            elif isinstance(thing, types.ModuleType):
                self._module(thing.__name__, getattr(thing, "__file__", None), vars(thing))
            else:
                self._named(getattr(thing, "__module__", None) or "")
        self._collecting = False

    def _function(self, function: types.FunctionType) -> None:
        program, code = self._program, function.__code__
        if not self._own(function.__module__ or "", code.co_filename):
            return
        name = f"{function.__qualname__} in {program.place(code.co_filename)}"
        self.parts[name] = program.sources.of_function(function)
        self.lines[name] = code.co_firstlineno
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
            try:
                self._used(f"{variable} around {name}", cell.cell_contents)
            except ValueError:  # nothing is in it yet
                self.parts[f"{variable} around {name}"] = "empty"
        defaults = {"": function.__defaults__ or (), **(function.__kwdefaults__ or {})}
        for argument, default in defaults.items():
            if default != ():
                self._used(f"the default {argument} of {name}", default)
        names = program.names(code)
        for chain in names.chains:
            self._global(function.__globals__, chain, name)
        package = function.__globals__.get("__package__") or ""
        for level, module in names.modules:
            self._imported("." * level + module, package)

    def _class(self, cls: type) -> None:
        module = sys.modules.get(cls.__module__)
        if not self._own(cls.__module__, getattr(module, "__file__", None)):
            return
        place = self._program.place(getattr(module, "__file__", None) or cls.__module__)
        name = f"class {cls.__qualname__} in {place}"
        body = self._program.sources.of_class(cls)
        if body is not None:
            self.parts[name] = body
        for base in (*cls.__bases__, type(cls)):
            self.code(base)
        for attribute, value in list(vars(cls).items()):
            for inner in _functions_of(value):
                if body is None or not inner.__code__.co_filename.startswith("<"):  # as `__init__`
                    self.code(inner)
            if not (attribute.startswith("__") or callable(value) or hasattr(value, "__get__")):
                self._used(f"{attribute} of {name}", value)

    def _used(self, name: str, value: object) -> None:
        """A value that code uses: its digest, or that of its class where it has none."""
        if isinstance(value, types.FunctionType | types.ModuleType | type):
            self.code(value)
            return
        try:
            if type(value).__module__.partition(".")[0] == "rhapsody":
                raise NoDigestError("engines and tasks are not looked into")
            self.parts[name] = self._values.digest(value).hex()
        except NoDigestError:
            self.parts[name] = f"a {type(value).__qualname__}"
            self.code(type(value))

    def _global(self, variables: Mapping[str, Any], chain: tuple[str, ...], user: str) -> None:
        value: Any = variables.get(chain[0], _MISSING)
        depth = 1
        while isinstance(value, types.ModuleType) and depth < len(chain):
            if not self._program.origins.own(value.__name__, getattr(value, "__file__", None)):
                break  # its version, whatever is used of it
            value, depth = vars(value).get(chain[depth], value), depth + 1
        if value is not _MISSING:
            self._used(f"{'.'.join(chain[:depth])} used by {user}", value)

    def _imported(self, name: str, package: str) -> None:
        try:
            name = importlib.util.resolve_name(name, package)
            module = sys.modules.get(name)
            file = getattr(module, "__file__", None)
            if module is None:
                spec = importlib.util.find_spec(name)
                file = None if spec is None else spec.origin
        except (ImportError, ValueError, AttributeError):  # it fails in the task, too
            return
        self._module(name, file, {} if module is None else vars(module))

    def _module(self, name: str, file: Any, variables: dict[str, Any]) -> None:
        """A module of which it is not known what is used."""
        if not self._own(name, file):
            return
        whole = self._program.sources.of_module(file, variables)
        self.parts[f"module {self._program.place(file)}"] = whole or "no source"

    def _own(self, module: str, file: object) -> bool:
        """Whether a module's own code counts; the version of its distribution is noted."""
        if self._program.origins.own(module, file):
            return True
        self._named(module)
        return False

    def _named(self, module: str) -> None:
        file = getattr(sys.modules.get(module), "__file__", None)
        found = self._program.origins.version(module, file)
        if found is not None:
            self.parts[found[0]] = found[1]


def _functions_of(value: object) -> list[types.FunctionType]:
    """The functions that an attribute of a class is made of."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, functools.cached_property):
        value = value.func
    parts = (value.fget, value.fset, value.fdel) if isinstance(value, property) else (value,)
    return [part for part in parts if isinstance(part, types.FunctionType)]


class Program:
    """What is the same for all functions of a run.

    Args:
        directory: The program's: paths below it are told relative to it.
        files: Makes digests of files.
    """

    def __init__(self, directory: Path, files: FileDigests) -> None:
        self.sources: Sources = Sources()
        self.origins: Origins = Origins()
        self._directory = _real(directory) + os.sep
        self._files = files
        self._names: dict[types.CodeType, Names] = {}

    def names(self, code: types.CodeType) -> Names:
        """What code takes from outside itself."""
        found = self._names.get(code)
        if found is None:
            found = self._names[code] = names_in(code)
        return found

    def place(self, file: str) -> str:
        """A file's path as it is told: from the program's directory, where it is below that."""
        return str(_real(file)).removeprefix(self._directory)

    def file(self, path: str) -> bytes | None:
        """The digest of a file's content; `None` where no file is there that can be read."""
        return self._files.of(path)

    def content(self, name: str, path: str | None) -> bytes:
        """The digest of an input file or directory.

        Raises:
            NoDigestError: It cannot be read from here.
        """
        digest = None if path is None else self._files.of_any(path)
        if digest is None:
            raise NoDigestError(f"its input file {name!r} cannot be read from here")
        return digest
