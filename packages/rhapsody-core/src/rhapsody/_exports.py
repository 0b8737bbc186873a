"""Names that a package offers and imports when they are first used (PEP 562).

For `rhapsody` and `rhapsody.backends` alone. A name that comes with a plugin is
listed only while it can be found and no import of it has failed, and says what to
install otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

_IMPORT_SYSTEM = ("importlib._bootstrap", "_frozen_importlib")


class FromPlugin(NamedTuple):
    """A name that comes with a plugin.

    Attributes:
        module: The module of ours that has it, see `rhapsody.backends.execution`.
        needs: Modules that must be there for it.
    """

    module: str
    needs: tuple[str, ...]


DASK = FromPlugin("rhapsody.backends.execution.dask_parallel", ("rhapsody_dask", "distributed"))
RADICAL = FromPlugin(
    "rhapsody.backends.execution.radical_pilot", ("rhapsody_radical", "radical.pilot")
)


def lazy(
    package: str, exports: Mapping[str, str | FromPlugin]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes a package's `__getattr__` and `__dir__`.

    `__all__` is answered by `__getattr__`, because it changes with what is installed.

    Args:
        package: The package's name.
        exports: For each public name the module that has it.

    Returns:
        The two functions.
    """
    namespace = sys.modules[package].__dict__
    broken: set[str] = set()

    def available() -> list[str]:
        return sorted(
            name
            for name, source in exports.items()
            if isinstance(source, str) or (name not in broken and _found(source))
        )

    def get(name: str) -> Any:
        if name == "__all__":
            if _asked_by_import(sys._getframe(1)):  # `import *`, which takes all of them next
                for each in available():
                    with suppress(AttributeError):
                        namespace[each] = get(each)
            return available()
        source = exports.get(name)
        if source is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
        if isinstance(source, str):
            value = getattr(import_module(source), name)
        else:
            broken.add(name)  # unless the next line is got over
            value = _optional(source, name, from_import=_asked_by_import(sys._getframe(1)))
            broken.discard(name)
        namespace[name] = value
        return value

    def listed() -> list[str]:
        return sorted({*(name for name in namespace if name not in exports), *available()})

    return get, listed


def _optional(source: FromPlugin, name: str, *, from_import: bool) -> Any:
    """A plugin's name, or the error that suits how it was asked for.

    `hasattr` wants an AttributeError and `from rhapsody import ...` is to raise
    the ModuleNotFoundError that says what to install. No exception can be both
    (the two classes' layouts differ), and the import statement drops the text of
    an AttributeError; so the two are told apart by who asks.
    """
    try:
        return getattr(import_module(source.module), name)
    except (Exception, SystemExit) as error:  # whatever a broken plugin raises when imported
        if from_import:
            raise
        raise AttributeError(str(error), name=name) from error


def _asked_by_import(frame: Any) -> bool:
    """Whether a `from package import name` statement asks.

    It looks the name up with `hasattr` in `importlib._bootstrap._handle_fromlist`.
    Should that change one day, such a statement raises an ImportError without our hint.
    """
    return (
        frame.f_code.co_name == "_handle_fromlist"
        and frame.f_globals.get("__name__") in _IMPORT_SYSTEM
    )


def _found(source: FromPlugin) -> bool:
    from importlib.util import find_spec

    try:
        return all(find_spec(module) is not None for module in source.needs)
    except (ImportError, ValueError):  # no parent package; a module without a spec
        return False
