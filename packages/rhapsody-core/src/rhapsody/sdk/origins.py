"""Origin of modules: the program's own, an installed distribution, or Python itself."""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, TypeGuard

_distributions = functools.cache(metadata.packages_distributions)


@functools.cache
def real_path(path: str) -> str:
    """Return `os.path.realpath(path)`, which is computed once."""
    return os.path.realpath(path)


class Origins:
    """Origin of modules by the places of their files."""

    def __init__(self) -> None:
        paths = sysconfig.get_paths()
        places = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
        self._places = _below([*places, site.getusersitepackages()])
        self._standard = _below([paths["stdlib"], paths["platstdlib"]])
        self._ours = _below([os.path.dirname(os.path.dirname(__file__))])
        self._versions: dict[str, tuple[str, str]] = {}

    def own(self, file: object) -> TypeGuard[str]:
        """Return whether a file is the user's own, so that its source counts, not its version."""
        if not isinstance(file, str):
            return False
        if file.startswith("<"):  # a cell of a notebook, or the text of `exec`
            return not file.startswith("<frozen")
        path = real_path(file) + os.sep
        return not (self._installed(path) or path.startswith((*self._standard, *self._ours)))

    def version(self, module: str, file: object) -> tuple[str, str] | None:
        """Return the name and version of an installed module's package, `None` for other modules.

        The version is empty if the package belongs to no distribution.
        """
        if not isinstance(file, str) or not self._installed(real_path(file)):
            return None
        name = module.partition(".")[0]
        if name not in self._versions:
            self._versions[name] = _version(name)
        return self._versions[name]

    def _installed(self, path: str) -> bool:
        """Return whether a file is in a directory of installed packages, in any environment."""
        return path.startswith(self._places) or "/site-packages/" in path


def _below(places: Iterable[str]) -> tuple[str, ...]:
    return tuple({real_path(place) + os.sep for place in places})


def _version(name: str) -> tuple[str, str]:
    try:
        files = metadata.distribution(name).read_text("RECORD")
        if files is None or any(f"\n{name}{end}" in f"\n{files}" for end in "/."):
            return name, metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
    several = sorted(set(_distributions().get(name, ())))  # as for `google`
    return name, ", ".join(f"{each} {metadata.version(each)}" for each in several)


def file_of(module: Any) -> str | None:
    """The file of the module with a name; `<text>` for a module created from text."""
    found = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    if isinstance(file, str):
        return file
    return "<text>" if getattr(found, "__spec__", None) is None else None


def spec_of(name: str, path: Any) -> ModuleSpec | None:
    """Return the spec of a module without importing it.

    Args:
        name: Its full name.
        path: The `__path__` of its parent package, `None` for a module of the top level.
    """
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if isinstance(spec, ModuleSpec):
        return spec
    try:
        return PathFinder.find_spec(name, path)
    except KeyError:  # a namespace package whose parent is not imported
        places = [os.path.join(each, name.rpartition(".")[2]) for each in path]
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [each for each in places if os.path.isdir(each)]
        return spec
