"""Files that tasks made and that stay: how each is put in its place, and which there are.

A file is put beside its place under a name of its own and renamed: who looks there sees the one
before or the whole new one. It is a copy and never a link, so that nobody changes it through the
sandbox. Directories likewise, see `replace_directory`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rhapsody.data import SavedFile
from rhapsody.errors import DataError
from rhapsody.sdk.threads import in_thread
from rhapsody.staging.destinations import Kind, Places
from rhapsody.staging.fsutil import copy_directory, copy_file, remove, replace_directory
from rhapsody.staging.outputs import future_uid
from rhapsody.staging.parts import new_token, part_of
from rhapsody.task import TaskDescription

log: logging.Logger = logging.getLogger(__name__)

_AT_ONCE = 8
"""How many files are copied at once, each on a thread."""

Copy = Callable[[Path], Awaitable[None]]
"""Writes a file or directory of a sandbox to a path where nothing is."""


class Put(NamedTuple):
    """Something that is put in its place.

    Attributes:
        name: Its name in the sandbox.
        copy: What writes it.
        kind: A file or a directory.
    """

    name: str
    copy: Copy
    kind: Kind


class Results:
    """The files that one engine saves.

    Its methods are called on the engine's loop, but for `add`.

    Args:
        directory: `results_dir`, which relative places are below.
        needed: Other directories that nothing may take the place of.
        note_parts: Called on a thread with a token and each directory where copies are made.
    """

    def __init__(
        self,
        directory: Path,
        needed: Iterable[Path],
        note_parts: Callable[[str, Path], object],
    ) -> None:
        self.directory = directory
        self.places: Places = Places(directory, needed)
        self._saved: dict[str, SavedFile] = {}
        self._read: set[tuple[str, str]] = set()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._own_directory: int | None = None
        self._shared = False
        self._note_parts = note_parts
        self._token = new_token()
        self._noted: set[Path] = set()

    @property
    def saved(self) -> list[SavedFile]:
        """What was saved and is there, in the order of the first time, each once."""
        return [
            replace(file, intermediate=True) if (file.uid, file.path.name) in self._read else file
            for file in self._saved.values()
            if os.path.lexists(file.path)
        ]

    def is_read(self, producer: str, name: str) -> None:
        """Record that a task reads a file of the task with the uid `producer`."""
        self._read.add((producer, os.path.basename(name)))

    def add(self, files: Iterable[SavedFile]) -> None:
        """Takes in files that stay where the task wrote them. Any thread."""
        for file in files:
            self._saved.setdefault(str(file.path), file)

    async def save(
        self, task: TaskDescription, puts: Mapping[Path, Put], there: Collection[Path] = ()
    ) -> None:
        """Puts files and directories in their places.

        Args:
            task: The description of the attempt that made them, or its `uid` and `name`.
            puts: What each is, by its place.
            there: Places where it is already.

        Raises:
            DataError: One could not be saved; it says why.
        """
        title, uid = task["name"], future_uid(task)
        self.places.take(task, {path: put.name for path, put in puts.items()})
        for path, (name, copy, kind) in puts.items():
            async with self._slots:
                try:
                    if path not in there:
                        await self._put(path, copy)
                except Exception as error:  # a full disk, a directory that nobody may write to
                    raise DataError(
                        f"task {title!r} ({uid}) is done, and its {kind} {name!r} could not "
                        f"be saved as {str(path)!r}: {error}"
                    ) from error
            self._saved[str(path)] = SavedFile(path, title, uid)
            self.places.saved(path)
        self._look_for_others()

    async def _put(self, path: Path, copy: Copy) -> None:
        part = part_of(path, self._token)
        await in_thread(partial(self._make_room, path.parent))
        try:
            await copy(part)
            await in_thread(partial(_rename, part, path))
        except BaseException:
            with contextlib.suppress(OSError):
                await in_thread(partial(remove, part))
            raise

    def _make_room(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        if directory not in self._noted:
            self._note_parts(self._token, directory)
            self._noted.add(directory)

    def _look_for_others(self) -> None:
        """Warns, once, where another run saves files below the same directory."""
        if self._shared:
            return
        with contextlib.suppress(OSError):  # the file system has no locks, or not here
            if self._own_directory is None:
                self._own_directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(self._own_directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._shared = True
                log.warning(
                    "another run saves files in %s at this time: of two with one name the last "
                    "wins; give each run a results_dir of its own", self.directory,
                )  # fmt: skip
            fcntl.flock(self._own_directory, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def close(self) -> None:
        """Lets go of the directory; twice is harmless."""
        if self._own_directory is not None:
            self._look_for_others()
            os.close(self._own_directory)
            self._own_directory = None


def copy_of(path: str, sandbox: str | None = None) -> Copy:
    """What copies a file or directory of this file system, or of a sandbox alone."""

    async def copy(part: Path) -> None:
        stop = threading.Event()
        try:
            await in_thread(partial(_copy, path, part, stop, sandbox))
        except asyncio.CancelledError:
            stop.set()
            raise

    return copy


def _copy(path: str, part: Path, stop: threading.Event, sandbox: str | None) -> None:
    if os.path.isdir(path):
        copy_directory(path, part, stop)
    else:
        copy_file(path, part, sandbox)


def _rename(part: Path, path: Path) -> None:
    if part.is_dir():
        replace_directory(part, path)
    else:
        os.replace(part, path)
