"""Where modules come from: of the program's own the source counts, of others the version."""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterable
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, TypeGuard

from rhapsody.journal.files import FileDigests
from rhapsody.journal.syntax import Names, Sources, names_in
from rhapsody.journal.values import NoDigestError

_distributions = functools.cache(metadata.packages_distributions)

_real = functools.lru_cache(maxsize=None)(os.path.realpath)


class Origins:
    """Tells where modules come from."""

    def __init__(self) -> None:
        paths = sysconfig.get_paths()
        places = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
        self._places = _below([*places, site.getusersitepackages()])
        self._standard = _below([paths["stdlib"], paths["platstdlib"]])
        self._ours = _below([os.path.dirname(os.path.dirname(__file__))])
        self._versions: dict[str, tuple[str, str] | None] = {}

    def own(self, file: object) -> TypeGuard[str]:
        """Whether a module's file is the user's own: its source counts, and not its version."""
        if not isinstance(file, str):
            return False
        if file.startswith("<"):  # a cell of a notebook, or the text of `exec`
            return not file.startswith("<frozen")
        path = _real(file) + os.sep
        return not (self._installed(path) or path.startswith((*self._standard, *self._ours)))

    def version(self, module: str, file: object) -> tuple[str, str] | None:
        """The distribution that an installed module is from, and its version; none for others."""
        if not isinstance(file, str) or not self._installed(_real(file)):
            return None
        name = module.partition(".")[0]
        if name not in self._versions:
            self._versions[name] = _version(name)
        return self._versions[name]

    def _installed(self, path: str) -> bool:
        """Whether a file is where packages are installed, also those of another environment."""
        return path.startswith(self._places) or "/site-packages/" in path


def _below(places: Iterable[str]) -> tuple[str, ...]:
    return tuple({_real(place) + os.sep for place in places})


def _version(name: str) -> tuple[str, str] | None:
    try:
        return name, metadata.version(name)
    except metadata.PackageNotFoundError:  # several may share a name, as `google`
        found = sorted(set(_distributions().get(name, ())))
        versions = [f"{each} {metadata.version(each)}" for each in found]
        return (name, ", ".join(versions)) if found else None


def file_of(module: Any) -> str | None:
    """The file of a module that is called so; `<text>` for one that was made of a text."""
    found = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    if isinstance(file, str):
        return file
    return "<text>" if getattr(found, "__spec__", None) is None else None


def spec_of(name: str, path: Any) -> ModuleSpec | None:
    """Where a module is from that need not be imported yet; nothing is imported for it."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec if isinstance(spec, ModuleSpec) else PathFinder.find_spec(name, path)


class Program:
    """What is the same for all functions of a run.

    Args:
        directory: The program's: paths below it are told relative to it.
        files: Makes digests of files.
    """

    def __init__(self, directory: Path, files: FileDigests) -> None:
        self.sources: Sources = Sources()
        self.origins: Origins = Origins()
        self._directory = _real(str(directory))
        self._roots = self._directory, os.path.abspath(directory)
        self._files = files
        self._names: dict[types.CodeType, Names] = {}

    def names(self, code: types.CodeType) -> Names:
        """What code takes from outside itself."""
        found = self._names.get(code)
        if found is None:
            found = self._names[code] = names_in(code)
        return found

    def place(self, file: str) -> str:
        """What a file with source is called: its path from the program's directory."""
        if file.startswith("<") or not os.path.exists(file):  # a cell of a notebook has a number
            return "a text"
        return os.path.relpath(os.path.realpath(file), self._directory)

    def portable(self, path: str) -> str:
        """A path as an argument: below the program's directory it does not tell where that is."""
        if path.startswith(self._roots):
            for root in self._roots:
                if path == root or path.startswith(root + os.sep):
                    return "\0" + path.removeprefix(root)
        return path

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
