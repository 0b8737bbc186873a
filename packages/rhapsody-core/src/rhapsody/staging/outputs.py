"""Outputs of tasks: checked in the sandbox, and saved to their destinations.

Saved files are copies, never links, so that they cannot be changed through the sandbox. A file is
copied next to its destination and then renamed: readers see the old file or the complete new one.
Directories are handled in a similar way; see `save_directory`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import hashlib
import logging
import os
import re
import socket
import stat
import threading
import time
import uuid
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rhapsody.copying import copy_file
from rhapsody.data import PATTERN, RESERVED, Output, OutputDir, OutputFile, SavedFile
from rhapsody.errors import DataError
from rhapsody.fsutil import (
    COPY,
    files_in,
    kind_of,
    open_directory,
    remove_content,
    save_directory,
)
from rhapsody.sdk.threads import ThreadPool
from rhapsody.staging.claims import Kind, PathClaims, task_call
from rhapsody.task import AttemptInfo, TaskDescription

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend

log: logging.Logger = logging.getLogger(__name__)

_MAX_NAMES = 5
"""Maximum number of files that a message names."""


def check_outputs(
    task: TaskDescription,
    outputs: Sequence[Output],
    backend: BaseExecutionBackend | None = None,
    given: Collection[str] = (),
) -> dict[str, tuple[str, ...]]:
    """Check that a successful attempt wrote its declared outputs.

    The backend checks sandboxes that are not on this file system.

    Args:
        task: The attempt's description.
        outputs: The outputs among the attempt's arguments.
        backend: The backend that ran the attempt; `None` if the sandbox is on this file system.
        given: Names of files that were put into the sandbox for the attempt, and that the attempt
            has not changed. These are not outputs.

    Returns:
        The names of the files that match each pattern, by pattern.

    Raises:
        DataError: An output is missing or is a link out of the sandbox; no file matches a pattern;
            or the task wrote a directory instead of a file, or vice versa.
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
        mode = None if name in given else _mode(task, name)
        kind = _dangling(sandbox, name) if mode is None else kind_of(mode)
        if mode is None or kind is not None:
            what = f"the directory {name!r}" if directory else repr(name)
            missing.append(f"{what}, which is {kind}," if kind else what)
        elif stat.S_ISDIR(mode) is not directory:
            declared, wrote, cure = ("directory", "file", "OutputFile") if directory else (
                "file", "directory", "OutputDir",
            )  # fmt: skip
            raise DataError(
                f"task {task['name']!r} declared a {declared} {name!r}, but wrote a {wrote} with "
                f"that name in {sandbox!r}; declare {cure}({name!r}), or write a {declared}"
            )
    if missing:
        known = {*given, *(output.filename for output in outputs)}
        pattern = next(filter(PATTERN.search, (output.filename for output in outputs)), None)
        cure = f". For all files that match, write OutputFile({pattern!r}, many=True)"
        raise DataError(
            f"task {task['name']!r} did not write {', '.join(missing)} (declared as output) in "
            f"{sandbox!r}; {_wrote_instead(task, known)}{cure if pattern else ''}"
        )
    return matches


def _mode(task: TaskDescription, name: str) -> int | None:
    """Return the mode of an output, or `None` if it is missing.

    Raises:
        DataError: The output is a link out of the sandbox.
    """
    path = os.path.join(task.get("sandbox", ""), name)
    try:
        mode = os.lstat(path).st_mode
        if not stat.S_ISLNK(mode):
            return mode
        real = os.path.realpath(path)
        if not real.startswith(os.path.realpath(os.path.dirname(path)) + os.sep):
            raise DataError(_outside(task, name, real))
        return os.stat(real).st_mode
    except OSError:
        return None


def _outside(task: TaskDescription, name: str, real: str) -> str:
    return (
        f"task {task['name']!r}: its output file {name!r} is a link to {real!r}, outside the "
        "sandbox; write the file itself"
    )


def _dangling(sandbox: str, name: str) -> str | None:
    """Describe a missing output if there is a link of its name."""
    try:
        return f"a dangling link to {os.readlink(os.path.join(sandbox, name))!r}"
    except OSError:
        return None


def _wrote_instead(task: TaskDescription, given: Collection[str]) -> str:
    """Describe what a task left in its sandbox, for the error about missing outputs.

    Args:
        task: The attempt's description.
        given: Names of files that are not mentioned.

    Returns:
        The description, followed by advice.
    """
    files = sorted(files_in(task.get("sandbox", "")))
    wrote = [name for name in files if not name.startswith(RESERVED) and name not in given]
    how = "Commands must write output files by their plain names"
    if task.get("function") is not None or "cwd" in task:
        how = "Write the file to the path that the task receives"
    return f"it wrote {_some(wrote)}. {how}"


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and the number of the others, as text."""
    return _listed([repr(name) for name in names]) or "nothing else"


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MAX_NAMES} more" if len(items) > _MAX_NAMES else ""
    return ", ".join(items[:_MAX_NAMES]) + more


def _matching(task: TaskDescription, pattern: str, given: Collection[str]) -> tuple[str, ...]:
    """Return the names of the files that a task wrote and that match a pattern, sorted.

    Only files directly in the sandbox are considered.

    Args:
        task: The attempt's description.
        pattern: The pattern.
        given: Names of files that were put into the sandbox for the attempt, which do not match.

    Raises:
        DataError: No file matches, or the task has made a link out of the sandbox that matches.
    """
    place = task.get("sandbox", "")
    wrote, others = [], []
    matches = re.compile(fnmatch.translate(pattern)).match
    for entry in sorted(_made_in(place), key=lambda entry: entry.name):
        hidden = entry.name.startswith(".") and not pattern.startswith(".")
        if entry.name in given or hidden:
            continue
        if _leaves(entry, place):
            # Backends link files by absolute paths, so the task itself has made relative links.
            if matches(entry.name) and not os.path.isabs(os.readlink(entry.path)):
                raise DataError(_outside(task, entry.name, os.path.realpath(entry.path)))
            continue
        if matches(entry.name) and entry.is_file():
            wrote.append(entry.name)
        else:
            others.append(entry.name + "/" * entry.is_dir())
    if wrote:
        return tuple(wrote)
    raise DataError(
        f"task {task['name']!r} declared files that match {pattern!r}, but wrote none in "
        f"{place!r}; it wrote {_some(others)}"
    )


def _made_in(sandbox: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(sandbox) as entries:
            return [entry for entry in entries if not entry.name.startswith(RESERVED)]
    except FileNotFoundError:
        return []


def _leaves(entry: os.DirEntry[str], sandbox: str) -> bool:
    """Return True if an entry of a sandbox is a link out of the sandbox, such as an input."""
    own = os.path.realpath(sandbox) + os.sep
    return entry.is_symlink() and not os.path.realpath(entry.path).startswith(own)


def without_place(
    task: TaskDescription,
    sandbox: str,
    outputs: Sequence[Output],
    matches: Mapping[str, tuple[str, ...]],
) -> dict[str, SavedFile]:
    """Return the outputs of an attempt that are not temporary and have no destination, by name."""
    uid = task_call(task).label
    results = [each for each in outputs if each.save is None and not each.temporary]
    return {
        name: SavedFile(Path(sandbox, name), task["name"], uid)
        for name in names_of(results, matches)
    }


def names_of(outputs: Iterable[Output], matches: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the names of outputs, with each pattern replaced by the files that match it."""
    names = (matches.get(output.filename, (output.filename,)) for output in outputs)
    return tuple(dict.fromkeys(chain.from_iterable(names)))


def found_in(
    producer: AttemptInfo, names: Iterable[str], save: str | os.PathLike[str]
) -> list[Output]:
    """Return named files and directories of an ended task as outputs with the destination `save`.

    Args:
        producer: The outcome of the task.
        names: The names of the files and directories.
        save: See `OutputFile`.
    """
    return [
        OutputDir(name, save=save)
        if os.path.isdir(producer.files.path_of(name))
        else OutputFile(name, save=save)
        for name in names
    ]


_MAX_COPIES = 8
"""Number of files that are saved at the same time."""


class Put(NamedTuple):
    """File or directory to save.

    Attributes:
        name: The name in the sandbox.
        source: The path, or a function that copies the file or directory to a given path.
        kind: The kind of output.
        root: The argument `root` of `copy_file`.
    """

    name: str
    source: str | Callable[[Path], Awaitable[None]]
    kind: Kind
    root: str | None = None


_PART = re.compile(r"\..{1,40}\.([0-9a-f]{16})[0-9a-f]{16}\.part", re.DOTALL)
"""Name of an incomplete copy, which begins with the id of the process that makes it."""

_ABANDONED = 86_400.0
"""Minimum age in seconds of the last change to an incomplete copy that another host has left."""


def part_of(path: Path) -> Path:
    """Return a new path next to a destination, for the copy that will be renamed."""
    return path.with_name(f".{path.name[:40]}.{_process_id()}{uuid.uuid4().hex[:16]}.part")


def _process_id(process: int | None = None) -> str:
    """Return 16 hexadecimal digits for a process of this host, by default this process."""
    host = hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
    return f"{host}{os.getpid() if process is None else process:08x}"


def remove_parts(directory: Path) -> None:
    """Remove incomplete copies that processes of earlier runs left when they were killed.

    Copies of other hosts are removed once they are a day old. Copies of other users are kept, and
    so are directories that contain anything except a copy. Errors are ignored.
    """
    with (
        contextlib.suppress(OSError),
        open_directory(directory) as base,
        os.scandir(base) as entries,
    ):
        for entry in entries:
            found = _PART.fullmatch(entry.name) if entry.name.endswith(".part") else None
            if found is not None:
                with contextlib.suppress(OSError):
                    status = os.lstat(entry.name, dir_fd=base)
                    if status.st_uid == os.geteuid() and _is_abandoned(found[1], status.st_mtime):
                        _remove_part(entry.name, base)


def _remove_part(name: str, base: int) -> None:
    if not stat.S_ISDIR(os.lstat(name, dir_fd=base).st_mode):
        os.unlink(name, dir_fd=base)
        return
    with open_directory(name, base) as directory:
        is_own = os.fstat(directory).st_uid == os.geteuid()
        if is_own and {*os.listdir(directory)} <= {COPY}:
            remove_content(directory)
            os.rmdir(name, dir_fd=base)


def _is_abandoned(owner: str, changed: float) -> bool:
    """Return True if an incomplete copy will not be completed.

    Args:
        owner: The id of the process that made it.
        changed: The time of its last change.
    """
    process = int(owner[8:], 16)
    if owner != _process_id(process):
        return time.time() - changed > _ABANDONED
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


class SavedFiles:
    """Files of one engine's results: saves outputs to their destinations, and lists kept files.

    All methods except `add` are called on the engine's loop.

    Args:
        directory: `results_dir`, the base directory of relative destinations.
        needed: Other directories that must not be replaced.
        threads: The threads on which files are copied.

    Attributes:
        directory: The argument `directory`.
        places: The destinations of the engine's tasks.
    """

    def __init__(
        self,
        directory: Path,
        needed: Iterable[Path],
        threads: ThreadPool,
    ) -> None:
        self.directory = directory
        self.claims: PathClaims = PathClaims(directory, needed)
        self._saved: dict[str, SavedFile] = {}
        self._missing: dict[tuple[str, str], SavedFile] = {}
        self._read: set[tuple[str, str]] = set()
        self._cleaned: set[Path] = set()  # directories without incomplete copies of earlier runs
        self._threads = threads
        self._slots = asyncio.Semaphore(_MAX_COPIES)

    @property
    def saved(self) -> list[SavedFile]:
        """Kept files that still exist, in the order in which they were first saved or added."""
        return [
            replace(file, intermediate=True) if (file.uid, file.path.name) in self._read else file
            for file in self._saved.values()
            if os.path.exists(file.path)
        ]

    @property
    def missing(self) -> list[SavedFile]:
        """Files of reused tasks that no longer exist and that were neither read nor saved."""
        return [file for key, file in self._missing.items() if key not in self._read]

    def is_read(self, producer: str, name: str) -> None:
        """Record that a task reads a file that the task with the uid `producer` wrote."""
        self._read.add((producer, os.path.basename(name)))

    def add(self, files: Iterable[SavedFile]) -> None:
        """Add files that stay where their task wrote them. May be called on any thread."""
        for file in files:
            self._saved.setdefault(str(file.path), file)

    def miss(self, files: Iterable[SavedFile]) -> None:
        """Add files of a reused task that no longer exist."""
        self._missing |= {(file.uid, file.path.name): file for file in files}

    def found(self, producer: str, names: Iterable[str]) -> None:
        """Record that files of the task with the uid `producer` are saved by `flow.save`."""
        for name in names:
            self._missing.pop((producer, name), None)

    async def save(
        self, task: TaskDescription, puts: Mapping[Path, Put], there: Collection[Path] = ()
    ) -> None:
        """Save files and directories.

        Args:
            task: The description of the attempt that wrote the files, or its `uid` and `name`.
            puts: The files and directories, by destination.
            there: Destinations that are already up to date, to which nothing is copied.

        Raises:
            DataError: A file or directory could not be saved.
        """
        title, uid = task["name"], task_call(task).label
        self.claims.take(task, {path: put.name for path, put in puts.items()})
        for path, put in puts.items():
            what = f"its {put.kind} {put.name!r}"
            skipped: Sequence[str] = ()
            async with self._slots:
                try:
                    if path not in there:
                        skipped = await self._put(path, put)
                except Exception as error:  # such as a full disk or a read-only directory
                    raise DataError(
                        f"task {title!r} ({uid}) succeeded, but {what} could not be saved as "
                        f"{str(path)!r}: {error}"
                    ) from error
            self._saved[str(path)] = SavedFile(path, title, uid)
            if skipped:
                log.warning(
                    "task %r (%s): entries of its directory %r are not saved, because they have no "
                    "content: %s",
                    title, uid, put.name, _listed(skipped),
                )  # fmt: skip

    async def _put(self, path: Path, put: Put) -> Sequence[str]:
        """Save a file or directory, and return the entries that were skipped."""
        run = self._threads.run
        if path.parent not in self._cleaned:
            self._cleaned.add(path.parent)
            await run(partial(remove_parts, path.parent))
        part = part_of(path)
        stop = threading.Event()
        try:
            if isinstance(put.source, str):
                return await run(partial(_copy_in, put.source, put.root, part, path, stop))
            await run(partial(path.parent.mkdir, parents=True, exist_ok=True))
            await put.source(part)
            await run(partial(os.replace, part, path))
            return ()
        except BaseException:
            stop.set()
            with contextlib.suppress(OSError):
                await run(partial(part.unlink, missing_ok=True))
            raise


def _copy_in(
    source: str, root: str | None, part: Path, path: Path, stop: threading.Event
) -> Sequence[str]:
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.isdir(source):
        return save_directory(source, path, part.name, stop)
    copy_file(source, part, root)
    if not stop.is_set():
        os.replace(part, path)
    return ()
