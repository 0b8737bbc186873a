"""A run's directory: one for each process and `.rhapsody`, with its engines' directories in it.

Its name sorts by time and says what ran; `latest` beside it leads to the last one. It is made
when it is first needed, and locked while an engine of the process is alive.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from pathlib import Path

from rhapsody.staging.locks import FileLock
from rhapsody.staging.runlog import RunLog

BASE = ".rhapsody"
"""Where runs are, in the current directory."""

LATEST, LOCK, LOG = "latest", ".lock", "log.txt"
"""The link to the newest run; the files in a run's directory beside those of its engines."""

PARTS = ".parts"
"""File that lists where the run's live engines save files, see `staging.parts`."""

NAME: re.Pattern[str] = re.compile(r"\d{8}T\d{6}-[A-Za-z0-9_.-]{1,32}-[0-9a-f]{4}")
"""What a run's directory is called."""

LONGEST = 32
"""Characters of a program's name in that of a directory."""

ATTEMPTS = 100
"""How often it is tried to make a directory while others remove it, or take its name."""


class Run:
    """The directory of one run; `path` may change until it is made.

    Its methods may be called from any thread.

    Args:
        base: The `.rhapsody` that it is in.
    """

    def __init__(self, base: Path) -> None:
        self.base: Path = base
        self.path: Path = base / new_name()
        self._engines: list[str] = []
        self._made = False
        self._held: FileLock | None = None
        self._lock = threading.Lock()
        self._log = RunLog(self._log_file)

    def enter(self, uid: str) -> None:
        """An engine begins. What is logged while there is one is in the run's log."""
        with self._lock:
            self._engines.append(uid)
        self._log.begin()

    def make(self) -> Path:
        """Makes the directory, which no other process has, and says where it is.

        Raises:
            OSError: It cannot be made.
        """
        with self._lock:
            for attempt in range(ATTEMPTS):
                if self._held is not None:
                    break
                try:
                    self._claim()
                except FileNotFoundError:  # it was removed, as it was empty
                    if attempt == ATTEMPTS - 1:
                        raise
            return self.path

    def _claim(self) -> None:
        self.base.mkdir(exist_ok=True)
        try:
            self.path.mkdir(0o700)
        except FileExistsError:
            if not self._made and not any(os.path.exists(self.path / uid) for uid in self._engines):
                self.path = self.base / new_name()
                return
        self._made = True
        try:
            self._held = FileLock(self.path / LOCK)
        except BlockingIOError:  # it is being removed
            self.path, self._made = self.base / new_name(), False
            return
        point_latest(self.base)

    def leave(self, uid: str) -> bool:
        """An engine has ended. With the last one the directory goes, where it is empty.

        Returns:
            Whether the run is over.
        """
        with self._lock:
            if uid not in self._engines:
                return False
            self._engines.remove(uid)
            if self._engines:
                return False
        self._log.end()
        with self._lock:
            if self._held is not None:
                with contextlib.suppress(OSError):
                    os.unlink(self.path / PARTS)
                self._held.release()
                self._held = None
            with contextlib.suppress(OSError):  # there is something in it, or it was never made
                self.path.rmdir()
                point_latest(self.base)
                self.base.rmdir()
            return not os.path.exists(self.path)

    def note(self, text: str) -> None:
        """Write a text into the run's log."""
        self._log.note(text)

    def forget(self) -> None:
        """Lets go of what is the parent's, in a forked child."""
        if self._held is not None:
            self._held.let_go()

    def _log_file(self) -> str:
        return os.fspath(self.make() / LOG)


class _Process:
    """The runs of one process, by the directory they are in."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.runs: dict[Path, Run] = {}
        self.lock = threading.Lock()


_process = _Process()


def enter_run(base: Path, uid: str) -> Run:
    """The run of this process in a `.rhapsody`, for an engine that begins; nothing is made."""
    global _process
    if _process.pid != os.getpid():  # a forked child has runs of its own
        parents, _process = _process, _Process()
        for run in parents.runs.values():
            run.forget()
    with _process.lock:
        if base not in _process.runs:
            _process.runs[base] = Run(base)
        run = _process.runs[base]
        run.enter(uid)
    return run


def leave_run(run: Run, uid: str) -> None:
    """An engine of the run has ended; twice is harmless."""
    process = _process
    with process.lock:
        if run.leave(uid) and process.runs.get(run.base) is run:
            del process.runs[run.base]


def note_in_log(work_dir: Path, text: str) -> None:
    """Write a text into the log of the run of an engine in this process, if there is one."""
    with _process.lock:
        runs = list(_process.runs.values())
    for run in runs:
        if run.path == work_dir.parent:
            run.note(text)


def new_name() -> str:
    """What a run that begins now is called."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{program()}-{digits(2)}"


def digits(count: int) -> str:
    """Hexadecimal digits of so many random bytes."""
    return os.urandom(count).hex()


def program() -> str:
    """What this process runs: its script or module, in characters that every file may have."""
    started = str((getattr(sys, "argv", None) or [""])[0])
    place, name = os.path.split(os.path.splitext(started)[0])
    if name == "__main__":  # `python -m package`
        name = os.path.basename(place)
    if name.startswith(("ipykernel", "colab_kernel")):
        name = "notebook"
    if started.startswith("-"):  # `python -c`, or a program from standard input
        name = ""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:LONGEST].strip("_.-") or "python"


def runs_in(base: Path) -> list[str]:
    """The names of the runs in a `.rhapsody`, the oldest first."""
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        return sorted(
            entry.name
            for entry in entries
            if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        )
    return []


def point_latest(base: Path) -> None:
    """Lets `latest` lead to the newest run that there is; does nothing where it cannot."""
    link, pointed = base / LATEST, None
    for _ in range(ATTEMPTS):  # another process may begin or end a run meanwhile
        newest = runs_in(base)[-1:]
        if newest == pointed:
            return
        pointed = newest
        with contextlib.suppress(OSError):
            if link.is_symlink() or not link.exists():  # else somebody has something there
                _replace(link, newest)


def _replace(link: Path, newest: list[str]) -> None:
    new = link.with_name(f".{LATEST}.{digits(4)}")
    try:
        for name in newest:
            new.symlink_to(name)
            os.replace(new, link)
            return
        link.unlink(missing_ok=True)
    finally:
        new.unlink(missing_ok=True)
