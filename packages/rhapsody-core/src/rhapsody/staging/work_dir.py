"""Where one engine works: in a directory that its user named, or in that of this process's run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from rhapsody.data import SavedFile
from rhapsody.staging.locks import FileLock
from rhapsody.staging.manifest import write_list
from rhapsody.staging.parts import note, remove_parts_of_others
from rhapsody.staging.runs import BASE, LOCK, NAME, enter_run, leave_run


class WorkDir:
    """The directory of an engine, which is made when it is first needed.

    Args:
        place: The directory; with `in_run` the `.rhapsody` that the run's is in.
        in_run: The engine's uid, where it works in a directory of that name in the run's.

    Attributes:
        base: The directory of all runs if it is in one, otherwise the same as `path`.
        path: Where it is; may change until `settle` is called.
    """

    def __init__(self, place: str | os.PathLike[str], in_run: str | None = None) -> None:
        self.base: Path = Path(os.path.abspath(place))
        self.path: Path = self.base
        self._run = None
        self._used: dict[Path, Callable[[], object]] = {}
        if in_run is not None:
            self._run = enter_run(self.path, in_run)
            self.path = self._run.path / in_run
        self._existed = self.path.exists()
        self.settled: bool = self._run is None

    def settle(self) -> Path:
        """Makes the run's directory, so that `path` no longer changes, which it returns.

        Where it cannot be made, what is put into it fails. Any thread.
        """
        if self._run is not None and not self.settled:
            with contextlib.suppress(OSError):
                self.path = self._run.make() / self.path.name
                self.settled = True
            remove_parts_of_others(self.base, self.path.parent)
        return self.path

    def note_parts(self, token: str, directory: Path) -> None:
        """Record where files are saved, in case this process is killed."""
        if self._run is not None:
            with contextlib.suppress(OSError):  # a full disk
                note(self._run.make(), token, directory)

    def use(self, sandbox: str) -> None:
        """Keeps the directory of the run that a sandbox is in from being cleaned, until `leave`."""
        run = Path(sandbox).parent.parent
        if run in self._used or run.parent.name != BASE or NAME.fullmatch(run.name) is None:
            return
        with contextlib.suppress(OSError):  # another run uses it as well, or this one
            there = os.path.exists(run / LOCK)
            lock = FileLock(run / LOCK)
            self._used[run] = lock.let_go if there else lock.release

    def close(self, results: Iterable[SavedFile]) -> None:
        """Lists the results that stay in it; removes it where it is empty and was not there."""
        if self._run is not None and self.settled:
            write_list(results, self.path)
        if self._existed:
            return
        with contextlib.suppress(OSError):  # not empty, or never made
            self.path.rmdir()
        if self.path.parent.name == BASE:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def leave(self) -> None:
        """Says that the engine has ended: with the last one of a run its directory may go."""
        for let_go in self._used.values():
            let_go()
        self._used.clear()
        if self._run is not None:
            leave_run(self._run, self.path.name)
