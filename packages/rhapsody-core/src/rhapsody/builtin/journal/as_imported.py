"""Values that the variables of the program's modules had when the code of the module had run.

A worker imports the module again, so its variables have these values. A variable with another value
was set by the program, and has that value only in the program's own process.
"""

from __future__ import annotations

import dis
import functools
import random
import sys
import types
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from typing import Any, cast

from rhapsody.builtin.journal.values import Feed, UnhashableError, Values, is_large
from rhapsody.sdk.introspect import MISSING, cached_properties, content_of, with_inner
from rhapsody.sdk.modules import Origins, file_of

_DEPEND_ON_PROCESS = frozenset((
    "environ", "environb", "getenv", "getenvb", "expandvars", "expanduser", "gethostname",
    "getfqdn", "uname", "node", "getpid", "getppid", "cpu_count", "process_cpu_count",
    "sched_getaffinity", "argv", "getcwd", "cwd", "home", "gettempdir", "current_process",
    "parent_process", "getuser", "getlogin", "modules", "orig_argv", "currentframe",
    "_getframe", "getsignal", "getrecursionlimit", "main_thread", "current_thread", "__main__",
))  # fmt: skip
"""Names in code whose results may differ between the program and a worker."""

_INSPECTED = sys.stdlib_module_names | {"builtins", "numpy", "pandas"}
"""Libraries whose objects can be inspected without side effects."""

_IMPORTING = frozenset((
    "RESUME", "CACHE", "NOP", "EXTENDED_ARG", "LOAD_CONST", "LOAD_SMALL_INT", "LOAD_NAME",
    "STORE_NAME", "IMPORT_NAME", "IMPORT_FROM", "IMPORT_STAR", "CALL_INTRINSIC_1", "POP_TOP",
    "MAKE_FUNCTION", "PUSH_NULL", "NOT_TAKEN", "POP_JUMP_IF_FALSE", "POP_JUMP_FORWARD_IF_FALSE",
    "JUMP_FORWARD", "SETUP_FINALLY", "POP_BLOCK",
))  # fmt: skip
"""Instructions of a module that imports others and defines names, and changes nothing else."""

_CONSTANT = frozenset((type(None), bool, int, float, complex, str, bytes, type(...)))

_OF_PYTHON = frozenset(("__builtins__", "__loader__", "__spec__"))
"""Variables of modules that the import system sets and that contain many objects."""


class ImportedValues:
    """Values of the variables of modules, and of the attributes of the classes in them.

    The values of a module are unknown if the import may have another result on a worker, which
    imports other modules before it, or in another order. The same holds for all modules that name
    such a module.
    """

    def __init__(self) -> None:
        self._origins = Origins()
        self._names = _Names(self._origins)
        self._hasher = _Hasher(self._names)
        self._local: set[bytes] = set()  # digests that depend on addresses in this process
        # By the id of the namespace: the namespace, and each value with its digest.
        self._noted: dict[int, tuple[object, dict[str, tuple[object, bytes | None]]]] = {}
        self._words: dict[str, set[str]] = {}  # the names in the code of each noted module
        self._unknown: set[str] = set()
        self._compared: bool = True  # with the current values, after the last import
        self._drawn = _states_of_generators()

    def note(self, module: types.ModuleType) -> None:
        """Note the values of a module whose code has just run.

        Modules that mention what differs between processes, such as environment variables, are left
        out, and so are modules whose import may depend on what the program did before.
        """
        loader = getattr(module.__spec__, "loader", None)
        code = loader.get_code(module.__name__) if isinstance(loader, SourceFileLoader) else None
        self._unknown.add(module.__name__)  # if an error ends the inspection
        self._words.pop(module.__name__, None)  # it was reloaded
        former, self._drawn = self._drawn, _states_of_generators()
        drawn = any(one and one != self._drawn[name] for name, one in former.items())
        if not drawn and code is not None and self._is_repeatable(module.__name__, code):
            self._note(module)
            words = {each for inner in with_inner(code) for each in inner.co_names}
            self._words[module.__name__] = {part for each in words for part in each.split(".")}
            self._unknown.discard(module.__name__)
            self._compared = False
        self._forget()

    def _note(self, module: types.ModuleType) -> None:
        todo: list[object] = [module]
        while todo:
            holder = todo.pop()
            values = {name: each for name, each in vars(holder).items() if name not in _OF_PYTHON}
            self._noted[id(_namespace(holder))] = (
                holder,
                {name: (value, self._digest(value)) for name, value in values.items()},
            )
            for value in values.values():
                is_class = issubclass(type(value), type) and id(value) not in self._noted
                if is_class and value.__module__ == module.__name__:
                    todo.append(value)

    def _is_repeatable(self, name: str, code: types.CodeType) -> bool:
        """Return True if the import of a module has the same result on a worker.

        The program's code that imports the module must have done nothing but importing before,
        except in the packages that contain the module.
        """
        if any(map(_depends_on_process, with_inner(code))):
            return False
        frame = sys._getframe()
        while (frame := frame.f_back) is not None:  # type: ignore[assignment]
            user, package = frame.f_code, str(frame.f_globals.get("__name__"))
            if package.startswith("rhapsody.cli."):  # it runs the program
                break
            if not self._origins.own(user.co_filename) or f"{name}.".startswith(f"{package}."):
                continue
            if user.co_name != "<module>" or not _only_imports(user, frame.f_lasti):
                return False
        return True

    def is_unchanged(self, holder: object, name: str, value: object) -> bool:
        """Return True if a variable has the value that it had after the import.

        Args:
            holder: The variables of a module, or a class.
            name: The name of the variable or attribute.
            value: Its value.
        """
        if not self._compared:  # a module may have changed another one before a third was imported
            self._compared = True
            self._unknown |= self._changed()
            self._forget()
        _, values = self._noted.get(id(holder), (None, {}))
        former, digest = values.get(name, (MISSING, None))
        if former is not value:
            return False
        return type(value) in _CONSTANT or (digest is not None and digest == self._digest(value))

    def digest(self, holder: object, name: str) -> bytes | None:
        """Return a digest of the value that a variable had after the import.

        Return `None` if the value is unknown, or contains functions or objects of own classes.

        Args:
            holder: The variables of a module, or a class.
            name: The name of the variable or attribute.
        """
        _, values = self._noted.get(id(holder), (None, {}))
        former, digest = values.get(name, (MISSING, None))
        if type(former) in _CONSTANT:
            return ascii(former).encode()
        return None if digest in self._local else digest or None

    def _changed(self) -> set[str]:
        """Return the modules whose variables other code has changed since their import."""
        return {
            _module_of(holder)
            for holder, values in list(self._noted.values())
            if any(
                self._is_changed(value, *values.get(name, (MISSING, None)))
                for name, value in dict(vars(holder)).items()
                if not name.startswith("__")  # such as `__spec__`, which the import changes
            )
        }

    def _is_changed(self, value: object, former: object, digest: bytes | None) -> bool:
        if former is not value:
            return not isinstance(value, types.ModuleType)  # a submodule
        fixed = digest is None or isinstance(value, types.FunctionType | type)
        return not fixed and digest != self._digest(value)

    def _forget(self) -> None:
        """Forget the values of modules that name a module that is unknown or has changed."""
        while True:
            last = {name.rpartition(".")[2] for name in self._unknown}
            words = list(self._words.items())  # a copy, because other threads may import modules
            found = {name for name, used in words if not used.isdisjoint(last)}
            if not found:
                break
            self._unknown |= found
            for name in found:
                self._words.pop(name, None)
        for address, (holder, _) in list(self._noted.items()):
            if _module_of(holder) not in self._words:
                self._noted.pop(address, None)

    def _digest(self, value: object) -> bytes | None:
        """Return the digest of a value that may change in place; `None` if there is none.

        The digest of functions without a closure, of classes and of modules is empty, because only
        another object would be a change.
        """
        kind = type(value)
        if issubclass(kind, types.FunctionType | type | types.ModuleType) and not getattr(
            value, "__closure__", None
        ):
            return b""
        if kind in _CONSTANT or is_large(value):
            return None
        self._names.met = False
        try:
            digest = self._hasher.digest(value, whole=False)
        except UnhashableError:
            return None
        if self._names.met:
            self._local.add(digest)
        return digest


def _module_of(holder: Any) -> str:
    """Return the name of a module, or of the module of a class."""
    return holder.__name__ if isinstance(holder, types.ModuleType) else holder.__module__


def _states_of_generators() -> dict[str, object]:
    """Return the states of the global random number generators; `None` without NumPy."""
    numpy = sys.modules.get("numpy.random.mtrand")
    state = None if numpy is None else numpy.get_state(legacy=False)["state"]
    return {
        "random": random.getstate(),
        "numpy": state and (state["pos"], state["key"].tobytes()),
    }


@functools.lru_cache(maxsize=1024)
def _only_imports(code: types.CodeType, end: int) -> bool:
    """Return True if a module has only imported others and defined names up to an offset."""
    for each in dis.get_instructions(code):
        if each.offset >= end:
            break
        if each.opname not in _IMPORTING:
            return False
    return True


def _namespace(holder: object) -> object:
    return vars(holder) if isinstance(holder, types.ModuleType) else holder


def _depends_on_process(code: types.CodeType) -> bool:
    return not _DEPEND_ON_PROCESS.isdisjoint(code.co_names)


class _Names:
    """Collector that identifies functions, classes and modules in values by name and address.

    Attributes:
        met: True if there was one since this was set to False.
    """

    def __init__(self, origins: Origins) -> None:
        self.met: bool = False
        self._origins = origins
        self.open: set[int] = set()
        self.own = functools.cache(self._own)

    def _own(self, kind: type) -> bool:
        return self._origins.own(file_of(kind.__module__))

    def code(self, thing: Any) -> str:
        """Return a text for a function, class or module that differs from that of all others."""
        self.met = True
        name = f"{getattr(thing, '__qualname__', thing.__name__)} {id(thing)}"
        cells = getattr(thing, "__closure__", None)
        if not cells or id(thing) in self.open:
            return name
        self.open.add(id(thing))
        try:
            contents = [content_of(cell) for cell in cells]
            return f"{name} {_Hasher(self).digest(contents, whole=False).hex()}"
        finally:
            self.open.discard(id(thing))

    def caches(self, value: object, state: Mapping[str, Any]) -> frozenset[str]:
        """Return the names of the attributes that do not count: those of cached properties."""
        return cached_properties(cast("Any", type(value)))

    def path(self, text: str) -> None:
        """Return `None`: paths are texts."""

    def input_name(self, path: object, name: str) -> str:
        """Return the path of a file."""
        return str(path)

    def worker_value(self, handle: object) -> None:
        """Note nothing."""

    def memoized(self, function: object) -> None:
        """Note nothing."""


class _Hasher(Values):
    """Hasher that refuses objects of libraries that may do anything when they are inspected."""

    __slots__ = ()

    def _object(self, value: Any, feed: Feed) -> None:
        kind = type(value)
        library = str(kind.__module__).partition(".")[0]
        if library not in _INSPECTED and not self._collector.own(kind):
            raise UnhashableError(f"an object of {library} is not inspected")
        super()._object(value, feed)

    def _composed(self, value: Any, feed: Feed) -> None:
        if is_large(value):
            raise UnhashableError("a large value is not inspected")
        super()._composed(value, feed)


VALUES: ImportedValues = ImportedValues()
"""The values of this process."""
