"""State of the program's modules when their import ended.

A task may be the first one to import a module of the program. The key of the task does not cover
the variables of that module, because the module is not loaded when the key is computed. Whether the
task has changed them, or drawn numbers from a generator among them, is found by comparison with the
state of the module when its import ended.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from weakref import WeakSet

from rhapsody.journal.code import LARGE_VALUE, NOT_OF_MODULES, OF_CLASSES, CodeFingerprint, is_empty
from rhapsody.journal.program import Program
from rhapsody.journal.values import UnhashableError, Values

_State = dict[str, object]
"""Variables of a module and its classes, by name: functions, classes and modules as they are, other
values as digests, and `None` for what is not compared."""


class ImportedModules:
    """States of the program's modules that were imported from source files after this object.

    Args:
        program: The state shared by the fingerprints of a run.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._states: dict[str, tuple[types.ModuleType, _State]] = {}
        _finder.listeners.add(self)
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)

    def note(self, module: types.ModuleType) -> None:
        """Note the state of a module, on the thread that has imported it."""
        if self._program.origins.own(module.__file__):
            self._states[module.__name__] = module, self._state(module)

    def changed(self, name: str) -> str | None:
        """Return the name of a variable of a module that has changed since the import, or `None`.

        Variables are not compared that were `None` or empty when the import ended, because they
        look like caches, and neither are large values and values without a digest.

        Args:
            name: The name of the module, which may be unknown.
        """
        module, before = self._states.get(name, (None, {}))
        if module is None:
            return None
        now = self._state(module)
        for each in before.keys() | now.keys():
            was, is_ = before.get(each, _MISSING), now.get(each, _MISSING)
            new_module = was is _MISSING and isinstance(is_, types.ModuleType)  # a submodule
            if was is not None and was != is_ and not new_module:
                return each
        return None

    def _state(self, module: types.ModuleType) -> _State:
        found: _State = {}
        values = Values(CodeFingerprint(self._program))
        todo: list[tuple[str, types.ModuleType | type, frozenset[str]]]
        todo = [("", module, NOT_OF_MODULES)]
        for prefix, space, without in todo:
            for name, value in list(vars(space).items()):
                if name in without:
                    continue
                if isinstance(value, type) and value.__module__ == module.__name__ and not prefix:
                    todo.append((f"{name}.", value, OF_CLASSES))
                if isinstance(value, types.FunctionType | types.ModuleType | type):
                    found[prefix + name] = value
                    continue
                try:
                    digest = None if is_empty(value) else values.digest(value, whole=False)
                except UnhashableError:
                    digest = None
                found[prefix + name] = digest if values.size < LARGE_VALUE else None
        return found


_MISSING = object()


class _Finder(MetaPathFinder):
    """Import hook that tells listeners when the import of a source file has ended.

    It is the first finder, finds modules with the other finders, and stays until the program ends.
    Modules that are imported by another module are reported together with it, because the other
    one may set their variables.
    """

    def __init__(self) -> None:
        self.listeners: WeakSet[ImportedModules] = WeakSet()
        self._local = _Imports()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module. See `importlib.abc.MetaPathFinder`."""
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find and find(name, path, target)
            if spec is not None:
                if type(spec.loader) is SourceFileLoader and self.listeners:
                    vars(spec.loader)["exec_module"] = self._reporting(spec.loader)
                return spec
        return None

    def _reporting(self, loader: SourceFileLoader) -> Callable[[types.ModuleType], None]:
        """Return the method of a loader that runs a module, extended by the report."""

        def exec_module(module: types.ModuleType) -> None:
            del vars(loader)["exec_module"]
            local = self._local
            local.depth += 1
            try:
                loader.exec_module(module)
                local.ended.append(module)
            finally:
                local.depth -= 1
                if not local.depth:
                    ended, local.ended = local.ended, []
                    for each in ended:
                        for listener in list(self.listeners):
                            listener.note(each)

        return exec_module


class _Imports(threading.local):
    """Imports on one thread: their depth, and the modules whose import has ended."""

    depth = 0

    def __init__(self) -> None:
        self.ended: list[types.ModuleType] = []


_finder = _Finder()
