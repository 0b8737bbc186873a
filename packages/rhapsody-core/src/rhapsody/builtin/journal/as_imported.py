"""Values that the variables of the program's modules had when the code of the module had run.

A worker imports the module again, so its variables have these values. A variable with another value
was set by the program, and has that value only in the program's own process.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from typing import Any

from rhapsody.builtin.journal.values import Feed, UnhashableError, Values, is_large
from rhapsody.sdk.modules import MISSING, Origins, content_of, file_of, with_inner

_DEPEND_ON_PROCESS = frozenset((
    "environ", "environb", "getenv", "getenvb", "expandvars", "expanduser", "gethostname",
    "getfqdn", "uname", "node", "getpid", "getppid", "cpu_count", "process_cpu_count",
    "sched_getaffinity", "argv", "getcwd", "cwd", "home", "gettempdir", "current_process",
    "parent_process", "getuser", "getlogin",
))  # fmt: skip
"""Names in code whose results may differ between the program and a worker."""

_INSPECTED = sys.stdlib_module_names | {"builtins", "numpy", "pandas"}
"""Libraries whose objects can be inspected without side effects."""

_CONSTANT = frozenset((type(None), bool, int, float, complex, str, bytes, type(...)))

_OF_PYTHON = frozenset(("__builtins__", "__loader__", "__spec__"))
"""Variables of modules that the import system sets and that contain many objects."""


class ImportedValues:
    """Values of the variables of modules, and of the attributes of the classes in them."""

    def __init__(self) -> None:
        self._hasher = _Hasher(_Names())
        # By the id of the namespace: the namespace, and each value with its digest.
        self._noted: dict[int, tuple[object, dict[str, tuple[object, bytes | None]]]] = {}

    def note(self, module: types.ModuleType) -> None:
        """Note the values of a module whose code has just run.

        Modules that mention what differs between processes, such as environment variables, are left
        out.
        """
        loader = getattr(module.__spec__, "loader", None)
        if not isinstance(loader, SourceFileLoader):
            return
        code = loader.get_code(module.__name__)
        if code is None or any(map(_depends_on_process, with_inner(code))):
            return
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

    def is_unchanged(self, holder: object, name: str, value: object) -> bool:
        """Return True if a variable has the value that it had after the import.

        Args:
            holder: The variables of a module, or a class.
            name: The name of the variable or attribute.
            value: Its value.
        """
        _, values = self._noted.get(id(holder), (None, {}))
        former, digest = values.get(name, (MISSING, None))
        if former is not value:
            return False
        return type(value) in _CONSTANT or (digest is not None and digest == self._digest(value))

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
        try:
            return self._hasher.digest(value, whole=False)
        except UnhashableError:
            return None


def _namespace(holder: object) -> object:
    return vars(holder) if isinstance(holder, types.ModuleType) else holder


def _depends_on_process(code: types.CodeType) -> bool:
    return not _DEPEND_ON_PROCESS.isdisjoint(code.co_names)


class _Names:
    """Collector that identifies functions, classes and modules in values by name and address."""

    def __init__(self) -> None:
        self._origins = Origins()
        self.open: set[int] = set()
        self.own = functools.cache(self._own)

    def _own(self, kind: type) -> bool:
        return self._origins.own(file_of(kind.__module__))

    def code(self, thing: Any) -> str:
        """Return a text for a function, class or module that differs from that of all others."""
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

    def caches(self, value: object, state: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of attributes that do not count: none."""
        return ()

    def path(self, text: str) -> None:
        """Return `None`: paths are texts."""

    def input_name(self, path: object, name: str) -> str:
        """Return the path of a file."""
        return str(path)


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
