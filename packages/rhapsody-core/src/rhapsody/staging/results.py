"""Files that tasks made and that stay: where each is put, which may be, and which there are.

A file is put beside its place under a name of its own and renamed: who looks there sees the one
before or the whole new one. It is a copy and never a link, so that nobody changes it through the
sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rhapsody.data import OutputFile, SavedFile
from rhapsody.errors import DataError
from rhapsody.sdk.threads import in_thread
from rhapsody.staging.outputs import future_uid
from rhapsody.task import TaskDescription

log: logging.Logger = logging.getLogger(__name__)

_AT_ONCE = 8
"""How many files are copied at once, each on a thread."""

Copy = Callable[[Path], Awaitable[None]]
"""Writes a file of a sandbox to a path where nothing is."""


class Results:
    """The files that one engine saves.

    Its methods are called on the engine's loop, but for `add`.

    Args:
        directory: `results_dir`, which relative places are below.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writers: dict[str, tuple[str, str]] = {}  # the call and its task, by the file
        self._readers: dict[str, str] = {}  # the task, by the file that is none of ours
        self._saved: dict[str, SavedFile] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._own_directory: int | None = None
        self._shared = False

    @property
    def saved(self) -> list[SavedFile]:
        """What was saved, in the order of the first time; a file that was saved again, once."""
        return list(self._saved.values())

    def add(self, files: Iterable[SavedFile]) -> None:
        """Takes in files that stay where the task wrote them. Any thread."""
        for file in files:
            self._saved.setdefault(str(file.path), file)

    def place(self, save: str, filename: str) -> Path:
        """Where a file is put.

        Args:
            save: As in `OutputFile`, checked.
            filename: The file's own name.

        Raises:
            DataError: There is a directory of that name.
        """
        path = os.path.join(self.directory, save)
        if save.endswith("/") or os.path.isdir(path):
            path = os.path.join(path, filename)
        path = os.path.normpath(path)
        if os.path.isdir(path):
            raise DataError(f"{filename!r} cannot be saved as {path!r}: that is a directory")
        return Path(path)

    def reads(self, task: TaskDescription, path: str) -> None:
        """A task is about to read a file of this file system.

        Raises:
            DataError: Another task is about to write it.
        """
        key = os.path.realpath(path)
        writer = self._writers.get(key)
        if writer is not None and writer[0] != _call(task):
            raise DataError(
                f"task {task['name']!r} reads {path!r} while task {writer[1]!r} is about to "
                "write it; pass the future of that task, too"
            )
        if key not in self._saved:
            self._readers[key] = task["name"]

    def claim(self, task: TaskDescription, outputs: Sequence[OutputFile]) -> dict[str, Path]:
        """Where the files of an attempt are to be put, by their names; no other call may then.

        Raises:
            DataError: A place is a file that the run reads, or that another call is about to
                write; or two of the files have one name or place.
        """
        names = [output.filename for output in outputs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(
                f"task {task['name']!r} has two output files called {twice!r}; rename one of them"
            )
        places = {
            output.filename: self.place(output.save, output.filename)
            for output in outputs
            if output.save
        }
        keys = {os.path.realpath(path): (name, path) for name, path in places.items()}
        if len(keys) < len(places):
            raise DataError(
                f"task {task['name']!r} saves two files in one place: "
                f"{', '.join(f'{name!r} as {str(path)!r}' for name, path in places.items())}"
            )
        for key, (name, path) in keys.items():
            self._check(task, key, name, path)
        self._writers.update(dict.fromkeys(keys, (_call(task), task["name"])))
        return places

    def _check(self, task: TaskDescription, key: str, name: str, path: Path) -> None:
        what = f"task {task['name']!r} cannot save {name!r} as {str(path)!r}"
        reader, writer = self._readers.get(key), self._writers.get(key)
        if reader is not None:
            raise DataError(
                f"{what}: task {reader!r} reads that file, and this would change what the run "
                "began with; save it elsewhere"
            )
        if writer is not None and writer[0] != _call(task):
            raise DataError(
                f"{what}: task {writer[1]!r} is about to save one there, too; save it elsewhere, "
                "or let one of them wait for the other"
            )

    def release(self, task: TaskDescription) -> None:
        """Lets others write where an attempt was to, as its work has ended; twice is harmless."""
        if self._writers:
            call = _call(task)
            for key in [key for key, writer in self._writers.items() if writer[0] == call]:
                del self._writers[key]

    async def save(
        self, task: Mapping[str, Any], places: Mapping[str, Path], copies: Mapping[str, Copy]
    ) -> None:
        """Puts files in their places.

        Args:
            task: The description of the attempt that made them, or its `uid` and `name`.
            places: Where each is to be, by its name.
            copies: What writes each.

        Raises:
            DataError: One could not be saved; it says why.
        """
        title, uid = task["name"], future_uid(task)
        for name, path in places.items():
            async with self._slots:
                try:
                    await _put(path, copies[name])
                except Exception as error:  # a full disk, a directory that nobody may write to
                    raise DataError(
                        f"task {title!r} ({uid}) is done, and its file {name!r} could not be "
                        f"saved as {str(path)!r}: {error}"
                    ) from error
            self._saved[str(path)] = SavedFile(path, title, uid)
        self._look_for_others()

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


def copy_of(path: str) -> Copy:
    """What copies a file of this file system."""

    async def copy(part: Path) -> None:
        await in_thread(partial(shutil.copy, path, part))

    return copy


def _call(task: TaskDescription) -> str:
    """What all attempts of a call have in common."""
    return task["uid"].rpartition(".")[0]


async def _put(path: Path, copy: Copy) -> None:
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    await in_thread(partial(path.parent.mkdir, parents=True, exist_ok=True))
    try:
        await copy(part)
        await in_thread(partial(os.replace, part, path))
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
