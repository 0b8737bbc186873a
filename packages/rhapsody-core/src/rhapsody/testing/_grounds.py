"""Fresh directories in which the checks run, so that what a backend leaves in them is seen.

Each check has a current directory of its own. The temporary directory is one for the whole
process, because Python keeps files of its own in it (`multiprocessing` does). Another one is
on `sys.path`, as the directory of a program's script is, with a module for the checks.
Everything is removed when the process ends: workers may have been started in any of them.
"""

from __future__ import annotations

import atexit
import importlib
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

NEIGHBOR = "rhapsody_kit_neighbor"
_SOURCE = '''"""A module next to the script: only `sys.path` of the program leads to it."""


def triple(number):
    return 3 * number


async def triple_async(number):
    return 3 * number
'''


class Grounds:
    """The directories of this process, made when the first check runs.

    Attributes:
        temporary: The temporary directory while a check runs, else `None`.
        home: The current directory outside of checks.
        system: The temporary directory outside of checks.
    """

    def __init__(self) -> None:
        self.temporary: str | None = None
        self.home = Path()
        self.system: str | None = None
        self._root: Path | None = None
        self._numbers = itertools.count(1)
        self._seen: set[str] = set()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Enter a fresh current directory, with the other two in force."""
        if self.temporary is not None:  # already
            yield
            return
        root = self._made()
        self.home, self.system = Path.cwd(), tempfile.gettempdir()
        directory, self.temporary = root / f"{next(self._numbers)}", os.fspath(root / "t")
        directory.mkdir()
        former = tempfile.tempdir, os.environ.get("TMPDIR")
        tempfile.tempdir = os.environ["TMPDIR"] = self.temporary
        sys.path.insert(0, os.fspath(root / "m"))
        os.chdir(directory)
        try:
            yield
        finally:
            os.chdir(self.home)
            with suppress(ValueError):  # the backend took it out, which a check reports
                sys.path.remove(os.fspath(root / "m"))
            tempfile.tempdir = former[0]
            if former[1] is None:
                os.environ.pop("TMPDIR", None)
            else:
                os.environ["TMPDIR"] = former[1]
            self.temporary = None

    def written(self) -> list[str]:
        """Return what was written into current directories since this was last called."""
        if self._root is None:
            return []
        directories = [entry for entry in self._root.iterdir() if entry.name.isdigit()]
        found = {os.fspath(entry) for directory in directories for entry in directory.iterdir()}
        new, self._seen = found - self._seen, found
        return sorted(os.path.basename(path) for path in new)

    def neighbor(self) -> ModuleType:
        """Return the module next to the script, imported."""
        return importlib.import_module(NEIGHBOR)

    def _made(self) -> Path:
        if self._root is None:
            root = self._root = Path(tempfile.mkdtemp(prefix="rk-"))
            for name in ("t", "m"):
                (root / name).mkdir()
            (root / "m" / f"{NEIGHBOR}.py").write_text(_SOURCE)
            owner = os.getpid()

            def remove() -> None:
                if os.getpid() == owner:  # not in a fork of it
                    shutil.rmtree(root, ignore_errors=True)

            atexit.register(remove)
        return self._root


grounds = Grounds()
