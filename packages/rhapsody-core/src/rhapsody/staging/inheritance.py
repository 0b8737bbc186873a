"""Undeclared files that an attempt receives from its dependencies: conflicts, inputs, changes."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rhapsody.errors import DataError
from rhapsody.task import AttemptInfo
from rhapsody.undeclared import left_in, outside, too_large


class FileState(NamedTuple):
    """Properties of a file that change when a program writes to it.

    Attributes:
        size: The size in bytes.
        mtime_ns: The modification time.
        digest: A digest of the content, if the other properties may be the same after a change;
            otherwise `None`.
    """

    size: int
    mtime_ns: int
    digest: bytes | None = None

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        """Return the state of a file from the result of `os.stat`."""
        return cls(found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Inheritance:
    """Undeclared files that one attempt receives.

    Attributes:
        origins: The paths of the files and directories of which the attempt receives copies, by
            name. A file that was passed on from task to task has the path of the first one.
        states: The states of the files among them, by name.
        left_out: The names that an attempt receives from none of its dependencies, by the uid of
            the dependency.
        linked: The states of the files that may be linked instead of copied, by path.
        large: The paths in `linked` of files that are in a dependency's sandbox.
        linked_uids: The uids of the dependencies to whose files links lead.
    """

    origins: Mapping[str, str]
    states: Mapping[str, FileState]
    left_out: Mapping[str, frozenset[str]]
    linked: Mapping[str, FileState]
    large: frozenset[str]
    linked_uids: frozenset[str]

    def unchanged(self, sandbox: str) -> Iterator[str]:
        """Yield the names of the copies in a sandbox that have not been written since."""
        for name, state in self.states.items():
            if file_state(os.path.join(sandbox, name)) == state:
                yield name


def inherit(task: str, sources: Sequence[AttemptInfo], taken: Collection[str]) -> Inheritance:
    """Find the undeclared files that an attempt receives from its dependencies.

    Args:
        task: The name of the task, for messages.
        sources: The dependencies, whose sandboxes this process can read.
        taken: Names of the task's declared inputs, which it receives instead.

    Returns:
        The files, with their owners and their states.

    Raises:
        DataError: Two dependencies have left files with the same name.
    """
    owners: dict[str, AttemptInfo] = {}
    states: dict[str, FileState] = {}
    inputs: dict[str, dict[str, tuple[str, ...]]] = {}  # of the dependencies, by uid, by name
    linked: dict[str, FileState] = {}
    large: set[str] = set()
    linked_uids: set[str] = set()
    for source in sources:
        root = os.path.abspath(source.files.sandbox or "")
        entries = [entry for entry in left_in(root) if entry.name not in taken]
        for entry in entries:
            if (links := _only_links(entry.path, root)) is not None:
                inputs.setdefault(entry.name, {})[source.uid] = links
                continue
            other = owners.setdefault(entry.name, source)
            if entry.is_file(follow_symlinks=False):
                states.setdefault(entry.name, FileState.of(entry.stat(follow_symlinks=False)))
            if other is not source and not _same_origin(other, source, entry.name):
                raise DataError(_conflict(task, other, source, entry.name))
        for path, size in too_large(entries).items():
            linked[path] = FileState.of(size)
            large.add(path)
            linked_uids.add(source.uid)
    left_out: dict[str, set[str]] = {}
    for name, found in inputs.items():
        if name in owners or len(set(found.values())) > 1:
            for uid in found:
                left_out.setdefault(uid, set()).add(name)
            continue
        linked_uids.update(found)
        for target in next(iter(found.values()))[1::2]:
            if (state := file_state(target)) is not None and os.path.isfile(target):
                linked[target] = state
    return Inheritance(
        {name: _origin(source, name) for name, source in owners.items()},
        states,
        {uid: frozenset(names) for uid, names in left_out.items()},
        linked,
        frozenset(large),
        frozenset(linked_uids),
    )


def _conflict(task: str, one: AttemptInfo, other: AttemptInfo, name: str) -> str:
    what, kind = repr(name), "OutputFile"
    if os.path.isdir(one.files.path_of(name)) and os.path.isdir(other.files.path_of(name)):
        what, kind = f"the directory {name!r}", "OutputDir"
    return (
        f"task {task!r}: {what} was left by two of its dependencies, {one.task} and {other.task}, "
        "neither of which declares it. If the task needs only the values, set implicit_data=False "
        f"for it; otherwise, let each of them declare an {kind} with a different name"
    )


def _only_links(path: str, root: str) -> tuple[str, ...] | None:
    """Return the links of which an entry of a sandbox consists, if these are inputs of its task.

    Returns:
        The names and targets of the links, which alternate; `None` if the entry contains anything
        other than links out of the sandbox.
    """
    if os.path.islink(path):
        target = outside(path, root)
        return None if target is None else (os.path.basename(path), target)
    if not os.path.isdir(path):
        return None
    found: list[str] = []
    for name in sorted(os.listdir(path)):
        if (links := _only_links(os.path.join(path, name), root)) is None:
            return None
        found += links
    return tuple(found) or None


def _origin(source: AttemptInfo, name: str) -> str:
    return source.files.inherited.get(name) or source.files.path_of(name)


def _same_origin(one: AttemptInfo, other: AttemptInfo, name: str) -> bool:
    """Return True if two tasks have passed on the same file without changing it."""
    same = _origin(one, name) == _origin(other, name)
    return same and _equal(one.files.path_of(name), other.files.path_of(name))


def _equal(one: str, other: str) -> bool:
    if os.path.islink(one) or os.path.islink(other):
        return (
            os.path.islink(one) and os.path.islink(other) and os.readlink(one) == os.readlink(other)
        )
    if not (os.path.isdir(one) and os.path.isdir(other)):
        # Two tasks may change their copies at the same time, as far as clocks of files tell.
        same = os.path.isfile(one) and os.path.isfile(other)
        return same and filecmp.cmp(one, other, shallow=False)
    names = os.listdir(one)
    return set(names) == set(os.listdir(other)) and all(
        _equal(os.path.join(one, name), os.path.join(other, name)) for name in names
    )


def file_state(path: str) -> FileState | None:
    """Return the state of a file, or `None` if it does not exist."""
    try:
        return FileState.of(os.stat(path))
    except OSError:
        return None
