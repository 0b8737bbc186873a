"""Files that Python scripts import.

A command may name a Python script, whose modules belong to the program as well. The import
statements of the script are read without running it, and the modules are searched where Python
would search them: in the directory of the script, and in the directories of its search path. The
latter is not known exactly, so files that the script would not import may count as well.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

from rhapsody.journal.program import Program
from rhapsody.sdk.modules import imported_names


class Scripts:
    """Finder of the source files that Python scripts import, directly and through other modules.

    Only files of the program count: those below its directory or the directory of the script that
    do not belong to an installed package.

    Args:
        program: The program's sources and directory.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._names: dict[bytes, frozenset[str]] = {}  # the imported names, by digest of the file

    def imports(self, script: str, search: Sequence[str] = ()) -> Sequence[str]:
        """Return the paths of the files that a script imports; none if it is not a Python script.

        Args:
            script: The path of the script.
            search: Directories that Python may search before the current directory, the program's
                directory and `sys.path`, but after the directory of the script.
        """
        return self._program.once(self._imports, script, tuple(search))

    def _imports(self, script: str, search: tuple[str, ...]) -> Sequence[str]:
        digest = self._program.file(script)
        if digest is None:
            return ()
        script = os.path.realpath(os.path.expandvars(os.path.expanduser(script)))
        if not self._is_python(script):
            return ()
        directory = os.path.dirname(script)
        search = (*search, os.curdir, self._program.roots[0], *sys.path)
        places = (directory, *dict.fromkeys(map(os.path.abspath, search)))
        below = tuple(f"{place}{os.sep}" for place in (directory, *self._program.roots))
        package = os.path.join(directory, "__init__.py")  # imported by `python -m`
        todo = [script, *([package] if os.path.isfile(package) else [])]
        found: dict[str, None] = dict.fromkeys(todo)
        while todo:
            file = todo.pop()
            for name in self._names_in(file):
                for each in _files_of(name, file, places):
                    if (
                        each not in found
                        and each.startswith(below)
                        and self._program.origins.own(each)
                    ):
                        found[each] = None
                        todo.append(each)
        del found[script]
        return tuple(found)

    def _is_python(self, script: str) -> bool:
        if script.endswith((".py", ".pyw")):
            return True
        return b"python" in self._program.once(_first_line, script)

    def _names_in(self, file: str) -> Iterable[str]:
        digest = self._program.file(file)
        if digest is None or file.endswith((".so", ".pyc")):
            return ()
        names = self._names.get(digest)
        if names is None:
            try:
                with open(file, "rb") as stream:
                    names = frozenset(imported_names(stream.read()))
            except OSError:
                return ()
            self._names[digest] = names
        return names


def _first_line(path: str) -> bytes:
    """Return the first line of a file if it names an interpreter, otherwise nothing."""
    try:
        with open(path, "rb") as file:
            line = file.readline(128)
    except OSError:
        return b""
    return line if line.startswith(b"#!") else b""


def _files_of(name: str, file: str, places: Iterable[str]) -> Iterator[str]:
    """Yield the files of a module and of its parent packages.

    Args:
        name: The name in an import statement, with leading dots if it is relative.
        file: The file that contains the statement.
        places: The directories in which Python searches modules.
    """
    words = name.lstrip(".").split(".")
    if level := len(name) - len(name.lstrip(".")):
        place = os.path.dirname(file)
        for _ in range(level - 1):
            place = os.path.dirname(place)
        places = [place]
    for word in filter(None, words):
        spec = _spec_in(word, places)
        if spec is None:
            return
        if spec.has_location and spec.origin is not None:
            yield spec.origin
        if spec.submodule_search_locations is None:
            return
        places = list(spec.submodule_search_locations)


def _spec_in(name: str, places: Iterable[str]) -> ModuleSpec | None:
    """Return the spec of the module with a name in some directories, or `None`."""
    portions: list[str] = []
    for place in places:
        finder: Any = pkgutil.get_importer(place)
        spec: ModuleSpec | None = finder and finder.find_spec(name)
        if spec is not None and spec.loader is not None:
            return spec
        if spec is not None:
            portions += spec.submodule_search_locations or ()
    if not portions:
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = portions
    return spec
