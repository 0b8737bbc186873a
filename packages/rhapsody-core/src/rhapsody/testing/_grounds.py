"""Fresh directories for the checks, in which files that a backend leaves are detected.

Each check has its own current directory. The temporary directory is shared by the whole process,
because Python itself (`multiprocessing`) keeps files in it. A third directory, with a module for
the checks, is on `sys.path`, like the directory of a program's script. All are removed when the
process ends, because workers may have been started in any of them.
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
            with suppress(ValueError):  # the backend removed it, which a check reports
                sys.path.remove(os.fspath(root / "m"))
            tempfile.tempdir = former[0]
            if former[1] is None:
                os.environ.pop("TMPDIR", None)
            else:
                os.environ["TMPDIR"] = former[1]
            self.temporary = None

    def written(self) -> list[str]:
        """Return the files written into current directories since the last call."""
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
