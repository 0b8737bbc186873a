"""Where modules come from: of the program's own the source counts, of others the version."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import types
from collections.abc import Mapping
from pathlib import Path

from rhapsody.journal.files import FileDigests
from rhapsody.journal.names import Names, names_in
from rhapsody.journal.syntax import Sources
from rhapsody.journal.values import SIZE, UnhashableError
from rhapsody.sdk.origins import Origins, real_path, spec_of


class Program:
    """State shared by all functions of a run.

    Args:
        directory: The program's: paths below it are told relative to it.
        files: Makes digests of files.

    Attributes:
        memos: Variables that count as empty, because tasks fill them: a global by the address of
            the module's variables and its name, a variable in a closure by that of its cell.
        unloaded: Modules that were not loaded when they were first looked for.
    """

    def __init__(self, directory: Path, files: FileDigests) -> None:
        self.sources: Sources = Sources()
        self.origins: Origins = Origins()
        self._directory = real_path(str(directory))
        self._roots = self._directory, os.path.abspath(directory)
        self._files = files
        self._names: dict[types.CodeType, Names] = {}
        self._packages: dict[str, str] = {}
        self.memos: dict[tuple[int, str], object] = {}
        self.unloaded: set[str] = set()

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

    @property
    def pipes(self) -> set[str]:
        """The paths that `file` was called with and that name pipes."""
        return self._files.pipes

    def package(self, name: str) -> str:
        """Return the digest of an installed package that belongs to no distribution."""
        if name not in self._packages:
            spec, made = spec_of(name, None), hashlib.blake2b(digest_size=SIZE)
            places = spec and (spec.submodule_search_locations or [str(spec.origin)])
            for place in places or ():
                files = [Path(str(place)), *sorted(Path(str(place)).rglob("*"))]
                for file in files:
                    if "__pycache__" not in file.parts:
                        made.update(self.file(str(file)) or b"")
            self._packages[name] = made.hexdigest()
        return self._packages[name]

    def which(self, name: str, path: str | None) -> str | None:
        """Return the path of a program that a command names.

        Args:
            name: Its name.
            path: The `PATH` of the command, `None` for that of this process.
        """
        return self._files.once(shutil.which, name, os.F_OK | os.X_OK, path)

    def variables(self) -> Mapping[str, str | None]:
        """Return the variables of `os.environ` that have changed since the program started.

        One that was removed is `None`.
        """
        return self._files.once(_set_by_program)

    def content(self, name: str, path: str | None) -> bytes:
        """The digest of an input file or directory.

        Raises:
            UnhashableError: It cannot be read from here.
        """
        digest = None if path is None else self._files.of_any(path)
        if digest is None:
            raise UnhashableError(f"its input file {name!r} cannot be read from here")
        return digest


def _set_by_program() -> Mapping[str, str | None]:
    began, now = _began_with(), os.environb
    changed = {name: value for name, value in now.items() if began.get(name) != value}
    found: dict[str, str | None] = {os.fsdecode(n): os.fsdecode(v) for n, v in changed.items()}
    return found | {os.fsdecode(name): None for name in began.keys() - now.keys()}


@functools.cache
def _began_with() -> Mapping[bytes, bytes]:
    """Return the initial environment of this process, as far as the system reports it."""
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:  # not Linux: earlier changes are not detected
        return dict(os.environb)
    found: dict[bytes, bytes] = {}
    for entry in entries:
        name, given, value = entry.partition(b"=")
        if given:
            found.setdefault(name, value)
    return found
