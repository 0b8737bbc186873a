"""Origins of modules, and the sources of the program's own modules, which are sent to workers.

A module is the program's own, part of an installed distribution, or part of Python (`Origins`). The
worker's half is `rhapsody.sdk.runner.SentModules`. The main program sends all of its own modules
that it has imported, and those that its code would import later, inside functions. Each file is
read once, when it is first seen. If it is edited while the program runs, neither the program nor
the workers use the new text until the program reloads the module.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import pickle
import re
import site
import sys
import sysconfig
import threading
import time
import types
import zlib
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ModuleSpec, PathFinder
from importlib.util import decode_source, resolve_name
from typing import Any, TypeGuard

from rhapsody.forks import PerProcess
from rhapsody.sdk.introspect import with_inner
from rhapsody.sdk.runner import REFERENCE, Source, digest_of, process_start_time, sent_modules

__all__ = ["REFERENCE", "altered", "own_modules"]

NAMESPACE = Source(None, True, "namespace package", None)

_IMPORT = re.compile(
    rb"(?:^|[:;])[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]*"
    rb"(\((?:[^)#]|#[^\n]*\n)*\)|(?:[^\n#;\\]|\\\r?\n)+)"
    rb"|import[ \t]+((?:[^\n#;\\]|\\\r?\n)+))",
    re.MULTILINE,
)
"""Matches import statements, and possibly other text: names that are not modules do no harm."""

_COMMENT = re.compile(rb"#[^\n]*")

_IMPORT_CALL = re.compile(rb"(?:import_module|__import__)\(\s*[\"']([\w.]+)[\"']")
"""Matches calls that import a module by a literal name."""


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    from importlib_metadata import packages_distributions

    return packages_distributions()


@functools.cache
def real_path(path: str) -> str:
    """Return `os.path.realpath(path)`, computed only once for each path."""
    return os.path.realpath(path)


class Origins:
    """Classifier of modules by origin, as determined by the locations of their files."""

    def __init__(self) -> None:
        paths = sysconfig.get_paths()
        places = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
        self._places = _below([*places, site.getusersitepackages()])
        self._standard = _below([paths["stdlib"], paths["platstdlib"]])
        self._rhapsody = _below([os.path.dirname(os.path.dirname(__file__))])
        self._versions: dict[str, tuple[str, str]] = {}

    def own(self, file: object) -> TypeGuard[str]:
        """Return True if a file is neither Python's own, nor installed, nor part of Rhapsody."""
        if not isinstance(file, str):
            return False
        if file.startswith("<"):  # a cell of a notebook, or the text of `exec`
            return not file.startswith("<frozen")
        path = real_path(file) + os.sep
        return not (self._installed(path) or path.startswith((*self._standard, *self._rhapsody)))

    def version(self, module: str, file: object) -> tuple[str, str] | None:
        """Return the package name and version of an installed module, or `None` for other modules.

        The version is an empty string if the package belongs to no distribution.
        """
        if not isinstance(file, str) or not self._installed(real_path(file)):
            return None
        name = module.partition(".")[0]
        if name not in self._versions:
            self._versions[name] = _version(name)
        return self._versions[name]

    def _installed(self, path: str) -> bool:
        """Return True if a file is in a directory of installed packages, in any environment."""
        return path.startswith(self._places) or "/site-packages/" in path


def _below(places: Iterable[str]) -> tuple[str, ...]:
    return tuple({real_path(place) + os.sep for place in places})


def _version(name: str) -> tuple[str, str]:
    import importlib_metadata as metadata  # not needed by all programs

    try:
        found = metadata.distribution(name)
        files = found.read_text("RECORD")
        if files is None or any(f"\n{name}{end}" in f"\n{files}" for end in "/."):
            return name, _version_of(found)
    except metadata.PackageNotFoundError:
        pass
    several = sorted(set(_distributions().get(name, ())))  # as for `google`
    versions = (f"{each} {_version_of(metadata.distribution(each))}" for each in several)
    return name, ", ".join(versions)


def _version_of(distribution: Any) -> str:
    """Return a distribution's version, with a digest of its files if they were local.

    Developers install from local files again and again without a new version.
    """
    origin = distribution.read_text("direct_url.json")
    version: str = distribution.version
    if origin is None or '"file://' not in origin:
        return version
    files = (distribution.read_text("RECORD") or "").splitlines()
    lines = sorted(line for line in files if ",sha256=" in line and ".dist-info/" not in line)
    return f"{version} ({digest_of(repr(lines).encode())[:16]})"


def file_of(module: Any) -> str | None:
    """Return the path of the source file of a module, given the module's name.

    Return `<text>` for a module that was created from text, and `None` for a module without a file,
    such as a built-in module.
    """
    found = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    if isinstance(file, str):
        return file
    return "<text>" if getattr(found, "__spec__", None) is None else None


def spec_of(name: str, path: Any) -> ModuleSpec | None:
    """Return the spec of a module without importing the module; `None` if it is not found.

    Args:
        name: The module's full name.
        path: The `__path__` of the module's parent package, or `None` for a top-level module.
    """
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if isinstance(spec, ModuleSpec):
        return spec
    try:
        return PathFinder.find_spec(name, path) or _spec_of_hook(name, path)
    except KeyError:  # a namespace package whose parent is not imported
        places = [os.path.join(each, name.rpartition(".")[2]) for each in path]
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [each for each in places if os.path.isdir(each)]
        return spec


def _spec_of_hook(name: str, path: Any) -> ModuleSpec | None:
    """Return the spec that an import hook finds, such as that of an editable installation."""
    for finder in sys.meta_path:
        if getattr(finder, "__module__", "").startswith("__editable__"):  # as setuptools names it
            spec: ModuleSpec | None = finder.find_spec(name, path, None)
            if spec is not None:
                return spec
    return None


def own_modules() -> bytes | None:
    """Return the program's own modules, packed for `CallSpec.modules`, or `None` if it has none.

    Returns the same object as long as the modules are unchanged, and is fast enough to be called
    for each task.
    """
    return _program.get().packed()


def altered(name: str) -> bool:
    """Return True if a module's file may differ from the version that this program imported."""
    return name in _program.get().altered


class _Program:
    """Collector of the program's own modules and their sources, which it packs for workers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.altered: set[str] = set()
        self._id = os.urandom(REFERENCE // 2)
        self._packed: bytes | None = None
        self._sources: dict[str, tuple[Any, Source]] = {}  # with specs if imported
        self._imported: list[tuple[str, types.ModuleType, Any]] = []
        self._count = 0
        self._before = process_start_time() or time.time_ns()
        self._scripts: dict[str, bytes | None] = {}  # the text of each script, by file
        self._path: list[str] = []
        self._elsewhere: set[str] = set()  # top-level modules in `_path` that are not own modules
        self._origins: Origins | None = None

    def packed(self) -> bytes | None:
        if not self._is_current():
            with self._lock:
                if not self._is_current():
                    self._look()
        return self._packed

    def _is_current(self) -> bool:
        modules = sys.modules
        if len(modules) != self._count or sys.path != self._path:
            return False
        for name, module, spec in self._imported:
            if modules.get(name) is not module or module.__spec__ is not spec:
                return False
        return True

    def _look(self) -> None:
        """Find the program's own modules.

        A file is read again only if its module has been imported or reloaded since the last call.
        """
        count, path, began = len(sys.modules), list(sys.path), time.time_ns()
        former, self._sources = self._sources, {}
        if path != self._path:
            self._elsewhere.clear()
        reloaded = False
        imported = list(_imported(self._own))
        for name, module, file in imported:
            spec = module.__spec__
            known = former.get(name)
            if known is None or known[0] is not spec:
                reloaded = reloaded or (known is not None and known[0] is not None)
                known = spec, self._read(name, module, file)
            self._sources[name] = known
        for name in list(self._sources):
            self._add_parents(name)
        self._follow({} if reloaded else former)
        sent = sent_modules()
        sent.program = self._id, os.getpid()
        sent.loaded.update(
            (name, (spec, source.digest))
            for name, (spec, source) in self._sources.items()
            if spec is not None
        )
        self._pack()
        # Last, because `_is_current` compares these without the lock.
        self._imported = [(name, module, self._sources[name][0]) for name, module, _ in imported]
        self._before, self._count, self._path = began, count, path

    def _pack(self) -> None:
        if not self._sources:
            self._packed = None
            return
        sources = {name: tuple(source) for name, (_, source) in sorted(self._sources.items())}
        data = pickle.dumps(sources, 5)
        reference = self._id + hashlib.blake2b(data, digest_size=REFERENCE // 2).digest()
        if self._packed is None or not self._packed.startswith(reference):
            self._packed = reference + zlib.compress(data, 1)

    def _own(self, name: str, file: Any) -> bool:
        if not isinstance(file, str) or file.startswith("<"):
            return False
        if name.partition(".")[0] in _plugins():
            return False
        if self._origins is None:
            self._origins = Origins()
        return self._origins.own(file)

    def _read(self, name: str, module: types.ModuleType, file: str) -> Source:
        """Read the source of an imported module; record if it may have changed since the import."""
        changed = 0
        try:
            if os.path.exists(file):
                changed = os.stat(file).st_ctime_ns
                with open(file, "rb") as stream:
                    content = stream.read()
            else:  # in a zip file, or this process has received the module
                content = module.__spec__.loader.get_data(file)  # type: ignore[union-attr]
        except (OSError, AttributeError):
            self.altered.add(name)
            return Source(file, hasattr(module, "__path__"), "a missing file", None)
        self.altered.discard(name)
        if changed > self._before and not _was_imported_from(content, file, module):
            self.altered.add(name)
        return _source(file, hasattr(module, "__path__"), content)

    def _add_parents(self, name: str) -> None:
        """Add the namespace packages that contain a module."""
        while name := name.rpartition(".")[0]:
            file = vars(sys.modules[name]).get("__file__") if name in sys.modules else None
            if file is None and name not in self._sources:
                self._sources[name] = None, NAMESPACE

    def _follow(self, former: dict[str, tuple[Any, Source]]) -> None:
        """Add the program's own modules that scripts and the modules found so far import.

        Imports inside functions are included.
        """
        todo: list[tuple[bytes | None, str]] = []
        for variables in _run_as_scripts():
            file = variables["__file__"]
            if file not in self._scripts:
                is_compiled = file.endswith(tuple(EXTENSION_SUFFIXES))  # and perhaps large
                self._scripts[file] = None if is_compiled else _content(file)
            todo.append((self._scripts[file], str(variables.get("__package__") or "")))
        todo += [
            (source.text, _package(name, source)) for name, (_, source) in self._sources.items()
        ]
        while todo:
            text, package = todo.pop()
            for name in imported_names(text) if text else ():
                for found in self._resolve(name, package, former):
                    source = self._sources[found][1]
                    todo.append((source.text, _package(found, source)))

    def _resolve(
        self, name: str, package: str, former: dict[str, tuple[Any, Source]]
    ) -> Iterator[str]:
        """Add a module and its parent packages, and yield the names of the added modules."""
        try:
            name = resolve_name(name, package)
        except ImportError:
            return
        path: Any = None
        words = name.split(".")
        if words[0] in self._elsewhere:
            return
        for number in range(1, len(words) + 1):
            full = ".".join(words[:number])
            if full not in self._sources and full in former and full not in sys.modules:
                self._sources[full] = None, former[full][1]
                yield full
            if full in sys.modules:
                module = sys.modules[full]
                if full not in self._sources and getattr(module, "__file__", None) is not None:
                    return  # an installed package
                path = getattr(module, "__path__", None)
            elif full in self._sources and (file := self._sources[full][1].file) is not None:
                path = [os.path.dirname(file)] if self._sources[full][1].package else None
            else:
                spec = spec_of(full, path)
                if spec is None:
                    return
                path = spec.submodule_search_locations
                if spec.origin is None and path is not None:
                    self._sources[full] = None, NAMESPACE
                    continue
                content = _content(spec.origin) if self._own(full, spec.origin) else None
                if content is None:
                    if number == 1:
                        self._elsewhere.add(full)
                    return
                self._sources[full] = None, _source(str(spec.origin), path is not None, content)
                yield full
            if path is None:
                return


def _imported(own: Any) -> Iterator[tuple[str, types.ModuleType, str]]:
    """Yield the imported modules that are the program's own, with their files."""
    for name, module in sys.modules.copy().items():
        if name in ("__main__", "__mp_main__"):
            continue
        if not issubclass(type(module), types.ModuleType):  # such as cffi's objects
            continue
        variables = object.__getattribute__(module, "__dict__")  # does not load a lazy module
        file, spec = variables.get("__file__"), variables.get("__spec__")
        if file is not None and getattr(spec, "name", None) == name and own(name, file):
            yield name, module, file


def _run_as_scripts() -> Iterator[dict[str, Any]]:
    """Yield the variables of modules that were run instead of imported, such as `__main__`."""
    for name, module in sys.modules.copy().items():
        if issubclass(type(module), types.ModuleType):
            variables = object.__getattribute__(module, "__dict__")
            made = name != "__main__" and variables.get("__spec__") is not None
            if not made and isinstance(variables.get("__file__"), str):
                yield variables


@functools.cache
def _plugins() -> frozenset[str]:
    """Return the top-level packages of Rhapsody and its backends, which workers have themselves."""
    from importlib_metadata import entry_points

    modules = [point.module for point in entry_points(group="rhapsody.backends")]
    return frozenset({"rhapsody", "rhapsody_guard", *(each.partition(".")[0] for each in modules)})


def _source(file: str, package: bool, content: bytes) -> Source:
    text = content if file.endswith(tuple(SOURCE_SUFFIXES)) else None
    return Source(file, package, digest_of(content), text)


def _content(file: Any) -> bytes | None:
    try:
        with open(file, "rb") as stream:
            return stream.read()
    except (OSError, TypeError):
        return None


def _package(name: str, source: Source) -> str:
    return name if source.package else name.rpartition(".")[0]


def imported_names(text: bytes) -> set[str]:
    """Return the modules that source text imports, and the names that it imports from them.

    The latter may be modules as well.
    """
    names = {each.decode(errors="replace") for each in _IMPORT_CALL.findall(text)}
    for module, taken, modules in _IMPORT.findall(text):
        words = (
            _COMMENT.sub(b"", taken or modules).replace(b"\\", b" ").strip(b"() \t\r\n").split(b",")
        )
        firsts = [word.split()[0].decode(errors="replace") for word in words if word.split()]
        if module:
            base = module.decode(errors="replace")
            names.add(base)
            names.update(f"{base}{'' if base.endswith('.') else '.'}{first}" for first in firsts)
        else:
            names.update(firsts)
    return names


def _was_imported_from(content: bytes, file: str, module: types.ModuleType) -> bool:
    """Return True if a module was imported from this content, as far as can be determined."""
    try:
        code = compile(content, file, "exec", dont_inherit=True)
        tree = ast.parse(decode_source(content))
    except (SyntaxError, ValueError, RecursionError):
        return False
    variables = vars(module)
    codes = set(with_inner(code))
    holders = [variables, *(vars(each) for each in variables.values() if isinstance(each, type)
                            and each.__module__ == module.__name__)]  # fmt: skip
    for value in [value for holder in holders for value in list(holder.values())]:
        own = isinstance(value, types.FunctionType) and value.__code__.co_filename == file
        if own and value.__code__ not in codes:
            return False
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                value = ast.literal_eval(node.value)
            except (ValueError, TypeError, SyntaxError, RecursionError):
                continue
            if repr(variables.get(node.targets[0].id)) != repr(value):
                return False
    return True


_program: PerProcess[_Program] = PerProcess(_Program)
