"""Removes what runs have left in a `.rhapsody`: the directories of those that have ended.

Only what has the name of a run's directory or an engine's is looked at, and is this user's own.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rhapsody.staging.fsutil import remove
from rhapsody.staging.locks import FileLock, State, state_of
from rhapsody.staging.manifest import LIST, read_list
from rhapsody.staging.parts import remove_parts
from rhapsody.staging.runs import LOCK, NAME, point_latest

ENGINE: re.Pattern[str] = re.compile(r"engine\.[0-9a-f]{8}")
"""The name of an engine's directory that is in no run's: earlier versions made them."""


@dataclass(frozen=True, slots=True)
class LeftRun:
    """The directory of a run.

    Attributes:
        path: Where it is.
        lock: The file that it locks while it lives.
        state: `"held"` while the run lives, `"free"` where it ended, `"left"` where it was
            killed, `"unknown"` where that cannot be seen from here.
        changed: When something in it was last made or removed, by the system's clock.
    """

    path: Path
    lock: Path
    state: State
    changed: float

    def results(self) -> set[str]:
        """The paths of its results, and of the lists of them.

        Raises:
            ValueError: Which they are is not known.
        """
        if self.state != "free" or not NAME.fullmatch(self.path.name):
            raise ValueError("it did not end by itself, so that its results are not known")
        found: set[str] = set()
        for engine in _directories(self.path):
            named = {os.path.normpath(os.path.join(engine, name)) for name in read_list(engine)}
            there = {path for path in named if os.path.lexists(path)}
            found |= {*there, str(engine / LIST)} if there else set()
        return found

    def goes(self, kept: set[str]) -> dict[str, int]:
        """What is removed where some paths stay, with its sizes in bytes."""
        above = {str(parent) for path in kept for parent in Path(path).parents}
        stays = kept | {str(self.lock)}
        return {path: _size(path) for path in _others(self.path, stays, above)}

    def remove(self, paths: Iterator[str]) -> bool:
        """Remove paths in it, and with the last one the directory itself.

        Its unfinished copies of results are removed, too.

        Returns:
            `False` where the run has come back to life meanwhile.

        Raises:
            OSError: Something cannot be removed.
        """
        try:
            lock = FileLock(self.lock)
        except BlockingIOError:
            return False
        try:
            remove_parts(self.path)
            for path in paths:
                remove(path)
        finally:
            lock.release()
        with contextlib.suppress(OSError):  # results are in it
            self.path.rmdir()
        return True


def left_runs(base: Path) -> list[LeftRun]:
    """The directories of runs in a `.rhapsody`, the oldest first."""
    found = []
    for path in _directories(base):
        if NAME.fullmatch(path.name):
            lock = path / LOCK
        elif ENGINE.fullmatch(path.name):
            lock = path / f".{path.name}.lock"
        else:
            continue
        with contextlib.suppress(FileNotFoundError):  # it has gone meanwhile
            changed = max(os.lstat(each).st_mtime for each in (path, *path.iterdir()))
            found.append(LeftRun(path, lock, state_of(lock), changed))
    return sorted(found, key=lambda run: run.path.name)


def tidy(base: Path) -> None:
    """Lets `latest` lead to the newest run that is left; removes a `.rhapsody` without any."""
    point_latest(base)
    with contextlib.suppress(OSError):  # there is something in it
        base.rmdir()


def _directories(place: Path) -> list[Path]:
    """The directories in a directory that are this user's, and no links."""
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if entry.is_dir(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
        ]
    return []


def _others(directory: Path, kept: set[str], above: set[str]) -> Iterator[str]:
    """What is in a directory besides `kept`, and besides the directories `above` those."""
    for path in directory.iterdir():
        if str(path) in kept:
            continue
        if str(path) in above and path.is_dir() and not path.is_symlink():
            yield from _others(path, kept, above)
        else:
            yield str(path)


def _size(path: str) -> int:
    """The bytes of the files in a path that are nowhere else; links are not followed."""
    paths = [path]
    for place, _, names in () if os.path.islink(path) else os.walk(path):
        paths += [os.path.join(place, name) for name in names]
    size = 0
    for each in paths:
        with contextlib.suppress(OSError):
            status = os.lstat(each)
            if status.st_nlink == 1:
                size += status.st_size
    return size
