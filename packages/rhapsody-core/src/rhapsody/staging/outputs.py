"""What a task left in its sandbox, and how it is saved.

Saved files are copies, never links, so that nothing changes them through the sandbox. A file is
copied next to its destination and renamed: readers see the old file or the whole new one.
Directories are handled likewise, see `replace_directory`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import fnmatch
import logging
import os
import re
import stat
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rhapsody.data import RESERVED, File, Output, OutputDir, OutputFile, SavedFile
from rhapsody.errors import DataError
from rhapsody.sdk.threads import ThreadPool
from rhapsody.staging.destinations import Kind, Places
from rhapsody.staging.fsutil import copy_directory, copy_file, files_in, remove, replace_directory
from rhapsody.staging.runs import new_token, part_of
from rhapsody.task import TaskDescription

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend

log: logging.Logger = logging.getLogger(__name__)

_SHOWN = 5
"""How many files a message names."""


def check_outputs(
    task: TaskDescription,
    outputs: Sequence[Output],
    backend: BaseExecutionBackend | None = None,
    given: Collection[str] = (),
) -> dict[str, tuple[str, ...]]:
    """Makes sure that a successful attempt wrote what it promised.

    Sandboxes that are not on this file system are the backend's to check.

    Args:
        task: The attempt's description.
        outputs: The outputs among its arguments.
        backend: The backend that ran it.
        given: Names of what was put into the sandbox for it, and matches no pattern.

    Returns:
        The files that match each pattern.

    Raises:
        DataError: Some are missing, are links that lead out of the sandbox, or are files where
            directories were promised, or the other way round.
    """
    if not outputs:
        return {}
    sandbox = task.get("sandbox", "")
    shared = backend is None or backend.capabilities.shared_file_system
    if not shared and not os.path.isdir(sandbox):
        return {}
    missing, matches = [], {}
    for name, output in {output.filename: output for output in outputs}.items():
        if output.many:
            matches[name] = _matching(task, name, given)
            continue
        directory = isinstance(output, OutputDir)
        mode = _mode(task, name)
        if mode is None:
            missing.append(f"the directory {name!r}" if directory else repr(name))
        elif stat.S_ISDIR(mode) is not directory:
            promised, wrote, cure = ("directory", "file", "OutputFile") if directory else (
                "file", "directory", "OutputDir",
            )  # fmt: skip
            raise DataError(
                f"task {task['name']!r} promised a {promised} {name!r} and wrote a {wrote} of "
                f"that name in {sandbox!r}; declare {cure}({name!r}), or write a {promised}"
            )
    if missing:
        known = {*given, *(output.filename for output in outputs)}
        raise DataError(
            f"task {task['name']!r} promised and did not write {', '.join(missing)} in "
            f"{sandbox!r}; {_wrote_instead(task, known)}"
        )
    return matches


def _mode(task: TaskDescription, name: str) -> int | None:
    """Return the mode of an output, or `None` if it is missing.

    Raises:
        DataError: It is a link that leads out of the sandbox.
    """
    path = os.path.join(task.get("sandbox", ""), name)
    try:
        mode = os.lstat(path).st_mode
        if not stat.S_ISLNK(mode):
            return mode
        real = os.path.realpath(path)
        if not real.startswith(os.path.realpath(os.path.dirname(path)) + os.sep):
            raise DataError(
                f"task {task['name']!r}: its output file {name!r} is a link that leaves the "
                f"sandbox, to {real!r}; write the file itself"
            )
        return os.stat(real).st_mode
    except OSError:
        return None


def _wrote_instead(task: TaskDescription, given: Collection[str]) -> str:
    """What a task left in its sandbox, for the error about what it did not."""
    files = sorted(files_in(task.get("sandbox", "")))
    wrote = [name for name in files if not name.startswith(RESERVED) and name not in given]
    how = "commands write files by their names alone"
    if task.get("function") is not None or "cwd" in task:
        how = "it is to be written to the path that the task gets for it"
    return f"it wrote {_some(wrote)}; {how}"


def _some(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    there = ", ".join(map(repr, names[:_SHOWN])) or "nothing else"
    return there + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _matching(task: TaskDescription, pattern: str, given: Collection[str]) -> tuple[str, ...]:
    """The files that a task wrote into its sandbox itself and that match a pattern, sorted.

    Raises:
        DataError: There are none.
    """
    place = task.get("sandbox", "")
    wrote, others = [], []
    matches = re.compile(fnmatch.translate(pattern)).match
    for entry in sorted(_made_in(place), key=lambda entry: entry.name):
        hidden = entry.name.startswith(".") and not pattern.startswith(".")
        if entry.name in given or hidden or _leaves(entry, place):
            continue
        if matches(entry.name) and entry.is_file():
            wrote.append(entry.name)
        else:
            others.append(entry.name + "/" * entry.is_dir())
    if wrote:
        return tuple(wrote)
    raise DataError(
        f"task {task['name']!r} promised files that match {pattern!r} and wrote none in "
        f"{place!r}; it wrote {_some(others)}"
    )


def _made_in(sandbox: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(sandbox) as entries:
            return [entry for entry in entries if not entry.name.startswith(RESERVED)]
    except FileNotFoundError:
        return []


def _leaves(entry: os.DirEntry[str], sandbox: str) -> bool:
    """Whether something in a sandbox is a link that leads out of it, as what the task reads."""
    own = os.path.realpath(sandbox) + os.sep
    return entry.is_symlink() and not os.path.realpath(entry.path).startswith(own)


def without_place(
    task: TaskDescription,
    sandbox: str,
    outputs: Sequence[Output],
    matches: Mapping[str, tuple[str, ...]],
) -> dict[str, SavedFile]:
    """Return the results without a place that an attempt wrote, by their names."""
    uid = future_uid(task)
    results = [each for each in outputs if each.save is None and not each.temporary]
    return {
        name: SavedFile(Path(sandbox, name), task["name"], uid)
        for name in names_of(results, matches)
    }


def names_of(outputs: Iterable[Output], matches: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The names of what is there of some outputs: for a pattern those that match it."""
    names = (matches.get(output.filename, (output.filename,)) for output in outputs)
    return tuple(dict.fromkeys(chain.from_iterable(names)))


def found_in(sandbox: str, names: Iterable[str], save: str | os.PathLike[str]) -> list[Output]:
    """Files and directories of a sandbox as outputs that are to be saved."""
    return [
        OutputDir(name, save=save)
        if os.path.isdir(os.path.join(sandbox, name))
        else OutputFile(name, save=save)
        for name in names
    ]


def future_uid(task: Mapping[str, Any]) -> str:
    """The uid of the future that an attempt is for, `task.000001`."""
    return ".".join(task["uid"].split(".")[-3:-1])


def leads_into(value: object, sandbox: str | None) -> bool:
    """Whether a result is a path into a sandbox, or a collection with one in it."""
    if sandbox is None:
        return False
    try:
        if isinstance(value, Mapping):
            value = tuple(value.values())
        if isinstance(value, list | tuple | set | frozenset):
            return any(_is_path_into(item, sandbox) for item in value)
        return _is_path_into(value, sandbox)
    except BaseException:  # the result's own code; what cannot be looked into leads nowhere
        return False


def _is_path_into(value: object, sandbox: str) -> bool:
    if isinstance(value, File):
        value = value.filepath
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return isinstance(value, str) and (value == sandbox or value.startswith(sandbox + os.sep))


_AT_ONCE = 8
"""Number of files that are saved at the same time."""


class Put(NamedTuple):
    """A file or directory to save.

    Attributes:
        name: Its name in the sandbox.
        source: Its path, or what copies it from elsewhere to a path where nothing is.
        kind: A file or a directory.
        root: The directory that a file must be in, also if a link is changed meanwhile.
    """

    name: str
    source: str | Callable[[Path], Awaitable[None]]
    kind: Kind
    root: str | None = None


class Results:
    """The files that one engine saves.

    Its methods are called on the engine's loop, but for `add`.

    Args:
        directory: `results_dir`, which relative places are below.
        needed: Other directories that nothing may take the place of.
        note_parts: Called on a thread with a token and each directory where copies are made.
        threads: Copy the files.
    """

    def __init__(
        self,
        directory: Path,
        needed: Iterable[Path],
        note_parts: Callable[[str, Path], object],
        threads: ThreadPool,
    ) -> None:
        self.directory = directory
        self.places: Places = Places(directory, needed)
        self._saved: dict[str, SavedFile] = {}
        self._read: set[tuple[str, str]] = set()
        self._threads = threads
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
        for path, put in puts.items():
            what = f"its {put.kind} {put.name!r}"
            async with self._slots:
                try:
                    if path not in there:
                        await self._put(path, put)
                except Exception as error:  # a full disk, a directory that nobody may write to
                    raise DataError(
                        f"task {title!r} ({uid}) is done, and {what} could not be saved as "
                        f"{str(path)!r}: {error}"
                    ) from error
            self._saved[str(path)] = SavedFile(path, title, uid)
        self._look_for_others()

    async def _put(self, path: Path, put: Put) -> None:
        part, run = part_of(path, self._token), self._threads.run
        stop = threading.Event()
        try:
            if isinstance(put.source, str):
                await run(partial(self._copy_in, put.source, put.root, part, path, stop))
            else:
                await run(partial(self._make_room, path.parent))
                await put.source(part)
                await run(partial(_rename, part, path))
        except BaseException:
            stop.set()
            with contextlib.suppress(OSError):
                await run(partial(remove, part))
            raise

    def _copy_in(
        self, source: str, root: str | None, part: Path, path: Path, stop: threading.Event
    ) -> None:
        self._make_room(path.parent)
        if os.path.isdir(source):
            copy_directory(source, part, stop)
        else:
            copy_file(source, part, root)
        if not stop.is_set():
            _rename(part, path)

    def _make_room(self, directory: Path) -> None:
        if not directory.is_dir():
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


def _rename(part: Path, path: Path) -> None:
    if part.is_dir():
        replace_directory(part, path)
    else:
        os.replace(part, path)
