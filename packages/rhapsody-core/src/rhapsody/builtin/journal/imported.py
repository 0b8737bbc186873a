"""State of the program's modules when their import ended.

A task may be the first one to import a module of the program. The key of the task does not cover
the variables of that module, because the module is not loaded when the key is computed. Whether the
task has changed them, or drawn numbers from a generator among them, is found by comparison with the
state of the module when its import ended.
"""

from __future__ import annotations

import logging
import types
from typing import NamedTuple

from rhapsody.builtin.journal.code import CodeFingerprint, Known
from rhapsody.builtin.journal.files import stamp_of
from rhapsody.builtin.journal.import_hook import hook
from rhapsody.builtin.journal.program import Surroundings
from rhapsody.errors import describe_error

log: logging.Logger = logging.getLogger("rhapsody.journal")


class _State(NamedTuple):
    """State of a module.

    Attributes:
        module: The module.
        known: What the module's variables depend on: values, and the functions and classes with
            their defaults, closures and attributes.
        refused: Names of variables that are not compared, because they are large or have no digest.
    """

    module: types.ModuleType
    known: Known
    refused: set[str]


class ImportedModules:
    """States of the program's modules that were imported from source files after this object.

    Args:
        program: The state shared by the fingerprints of a run.
    """

    def __init__(self, program: Surroundings) -> None:
        self._program = program
        self._states: dict[str, _State] = {}
        hook.listeners.add(self)
        hook.install()

    def note(self, module: types.ModuleType) -> None:
        """Note the state of a module, on the thread that has imported it."""
        file = getattr(module, "__file__", None)
        if not self._program.origins.own(file):
            return
        if (stamp := stamp_of(file)) is not None:  # later than the import has read the file
            self._program.imported[module.__name__] = stamp
        try:
            self._states[module.__name__] = self._state(module)
        except Exception as error:  # any error raised by an object that is inspected
            log.warning(
                "module %r cannot be inspected, so changes of its variables are not noticed: %s",
                module.__name__, describe_error(error),
            )  # fmt: skip

    def changed(self, name: str) -> str | None:
        """Return what has changed in a module since its import, or `None`.

        Args:
            name: The name of the module, which may be unknown.
        """
        state = self._states.get(name)
        if state is None or state.known.is_unchanged():
            return None
        now = self._state(state.module)
        before, after = state.known.found.parts, now.known.found.parts
        names = [
            each for each in before.keys() | after.keys() if before.get(each) != after.get(each)
        ]
        names += now.refused - state.refused
        what = min(set(names) - state.refused, key=len, default=None)
        if what is None:  # such as a cache
            self._states[name] = now
        return what

    def _state(self, module: types.ModuleType) -> _State:
        found = CodeFingerprint(self._program)
        refused = found.module(module)
        return _State(module, Known(b"", found), refused)
