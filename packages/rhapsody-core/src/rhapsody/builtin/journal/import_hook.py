"""Import hook that reports when the program's modules were imported.

`rhapsody run` installs it before it runs the script; otherwise, a journal does when it is opened.
The module imports nothing else of the journal, because many programs import no modules of their
own.
"""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Protocol
from weakref import WeakSet

from rhapsody.plugins.manager import is_importing
from rhapsody.sdk.modules import Origins


class Listener(Protocol):
    """Receiver of imported modules; see `rhapsody.builtin.journal.imported`."""

    def note(self, module: types.ModuleType) -> None:
        """Note the state of a module, on the thread that has imported it."""


class _Finder(MetaPathFinder):
    """Import hook for the program's own modules that are imported from source files.

    It is the first finder, finds modules with the other finders, and stays until the program ends.
    Modules that the engine imports for plugins are not reported: this ends before the keys of tasks
    are computed.

    Attributes:
        listeners: Receivers of modules whose outermost import has ended, because the importing
            module may set variables of the imported one.
        at_end: Function that is called when a module's own code has run, or `None`.
    """

    def __init__(self) -> None:
        self.listeners: WeakSet[Listener] = WeakSet()
        self.at_end: Callable[[types.ModuleType], None] | None = None
        self._local = _Imports()
        self._origins = Origins()  # now, because it imports modules

    def install(self) -> None:
        """Become the first finder, if this object is not among the finders."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module. See `importlib.abc.MetaPathFinder`."""
        if name in self._local.searched:  # another finder asks all finders, as this one does
            return None
        self._local.searched.add(name)
        try:
            return self._found(name, path, target)
        finally:
            self._local.searched.discard(name)

    def _found(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path or ():  # it is `None` when Python ends
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find and find(name, path, target)
            if spec is not None:
                if (
                    type(spec.loader) is SourceFileLoader
                    and (self.listeners or self.at_end is not None)
                    and self._origins.own(spec.origin)
                ):
                    vars(spec.loader)["exec_module"] = self._reporting(spec.loader)
                return spec
        return None

    def _reporting(self, loader: SourceFileLoader) -> Callable[[types.ModuleType], None]:
        """Return the method of a loader that runs a module, extended by the report."""

        def exec_module(module: types.ModuleType) -> None:
            vars(loader).pop("exec_module", None)
            local = self._local
            local.depth += 1
            try:
                loader.exec_module(module)
                if self.at_end is not None and not is_importing():
                    self.at_end(module)
                local.ended.append(module)
            finally:
                local.depth -= 1
                if not local.depth:
                    ended, local.ended = local.ended, []
                    for each in () if is_importing() else ended:
                        for listener in list(self.listeners):
                            listener.note(each)

        return exec_module


class _Imports(threading.local):
    """Imports on one thread: their depth, the modules that have ended, and searched names."""

    depth = 0

    def __init__(self) -> None:
        self.ended: list[types.ModuleType] = []
        self.searched: set[str] = set()


hook: _Finder = _Finder()
"""The import hook of this process."""
