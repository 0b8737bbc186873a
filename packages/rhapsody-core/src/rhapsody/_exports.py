"""Lazy exports of a package: names that are imported on first use (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from types import FrameType
from typing import Any

from rhapsody.known import NEEDED


def lazy(
    package: str, table: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Create the functions `__getattr__` and `__dir__` of a package with lazy exports.

    A name that a plugin defines is listed only if the modules in `NEEDED` can be found and no
    import of the name has failed. The content of `__all__` can therefore change, and `__getattr__`
    computes it on each access.

    Args:
        package: The package's name.
        table: For each module, the public names that it defines, separated by spaces. The name of
            a module of the package stands for the module itself.

    Returns:
        `__getattr__` and `__dir__`.
    """
    modules = {name: module for module, names in table.items() for name in names.split()}
    namespace = vars(sys.modules[package])
    broken: set[str] = set()

    def load(name: str) -> Any:
        broken.add(name)
        module = import_module(modules[name])
        value = module if module.__name__ == f"{package}.{name}" else getattr(module, name)
        namespace[name] = value
        broken.discard(name)
        return value

    def available() -> list[str]:
        return sorted(
            name
            for name, module in modules.items()
            if name not in broken and all(map(_found, NEEDED.get(module, ())))
        )

    def get(name: str) -> Any:
        in_import = _is_import_statement(sys._getframe(1))
        if name == "__all__":
            for each in available() if in_import else ():  # `import *` requests all of them next
                with suppress(Exception, SystemExit):
                    load(each)
            return available()
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name)
        try:
            return load(name)
        except (Exception, SystemExit) as error:  # a broken plugin may raise anything
            if in_import or modules[name] not in NEEDED:
                raise
            raise AttributeError(str(error), name=name) from error

    return get, lambda: sorted({*(namespace.keys() - modules.keys()), *available()})


def _is_import_statement(frame: FrameType) -> bool:
    """Return True if the attribute is requested by `from package import name`, not by other code.

    If importing a plugin's name fails, `hasattr` needs an AttributeError. The import statement
    would discard the message of an AttributeError, which names the distribution to install. No
    exception can be both AttributeError and ModuleNotFoundError.
    """
    code = frame.f_code
    return code.co_name == "_handle_fromlist" and "importlib._bootstrap" in code.co_filename


def _found(module: str) -> bool:
    with suppress(ImportError, ValueError):  # no parent package; a module without a spec
        return find_spec(module) is not None
    return False
