"""What a task left in its sandbox: the files it promised, and those that its result names."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhapsody.data import RESERVED, File, Output, OutputDir, OutputFile, SavedFile
from rhapsody.errors import DataError
from rhapsody.staging.fsutil import files_in
from rhapsody.task import TaskDescription

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend


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
