"""Where what tasks make is put, and which of them may put something there.

A call claims its places before it runs, so that two cannot write one file at once, and nothing
is written over that the run reads. Files that match a pattern are known only when their task is
done, and are claimed then.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from rhapsody.data import Output, OutputDir
from rhapsody.errors import DataError
from rhapsody.staging.fsutil import RealPaths
from rhapsody.task import TaskDescription

Kind = Literal["file", "directory", "matches"]
"""What is put somewhere: one file, one directory, or the files that match a pattern."""


class Target(NamedTuple):
    """Where an output is to be put.

    Attributes:
        path: Its place; for files that match a pattern, the directory they are put in.
        kind: What it is.
    """

    path: Path
    kind: Kind = "file"


@dataclass(slots=True)
class _Claim:
    """A call that is about to write somewhere.

    Attributes:
        call: What all attempts of the call have in common.
        task: Its task's name.
    """

    call: str
    task: str

    def __str__(self) -> str:
        return f"task {self.task!r} ({'.'.join(self.call.split('.')[-2:])})"


@dataclass(slots=True)
class _Written:
    """A file or directory that the run has written.

    Attributes:
        number: How many were written before.
        claim: The call that wrote it.
    """

    number: int
    claim: _Claim


class Places:
    """The places that the tasks of one engine write to, and read from.

    All paths are compared as the file system does, with links followed.

    Args:
        directory: `results_dir`, which relative places are below.
        needed: Other directories that nothing may take the place of.
    """

    def __init__(self, directory: Path, needed: Iterable[Path] = ()) -> None:
        self._directory = directory
        self._needed = (directory, *needed)
        self._claims: dict[str, _Claim] = {}
        self._below: Counter[str] = Counter()  # claims, by each directory that they are in
        self._by_call: dict[str, list[str]] = {}
        self._began: dict[str, int] = {}  # files written before, by each call with a pattern
        self._count = 0  # of files written
        self._real = RealPaths()
        self._writable: set[str] = set()  # directories that files can be put into
        self._readers: dict[str, str] = {}  # the task, by the file that is none of ours
        self._readers_below: dict[str, str] = {}  # one of them, by each directory it is in
        self._ours: dict[str, _Written] = {}

    def reads(self, task: TaskDescription, path: str) -> None:
        """A task is about to read a file of this file system.

        Raises:
            DataError: Another task is about to write it.
        """
        key = self._real.of(path)
        claim = self._claim_on(key, task_call(task), directory=True)
        if claim is not None:
            raise DataError(
                f"task {task['name']!r} reads {path!r} while {claim} is about to "
                "write it; call that task first, or pass its future"
            )
        if self._ours and any(place in self._ours for place in (key, *_parents(key))):
            return
        self._readers[key] = task["name"]
        for parent in _parents(key):
            if parent in self._readers_below:
                break  # and those above it
            self._readers_below[parent] = task["name"]

    def is_read(self, path: Path) -> bool:
        """Return whether a task has read a file that is none of the run's own."""
        return self._real.of(str(path)) in self._readers

    def claim(self, task: TaskDescription, outputs: Sequence[Output]) -> dict[str, Target]:
        """Where the outputs of an attempt are to be put, by their names; no other call may then.

        Raises:
            DataError: A place is a file that the run reads, or that another call is about to
                write; it cannot be written; or two of the outputs have one name or place.
        """
        names = [output.filename for output in outputs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise DataError(
                f"task {task['name']!r} has two output files called {twice!r}; rename one of them"
            )
        targets = {each.filename: self._target(each) for each in outputs if each.save}
        if not targets:
            return targets
        for name, target in targets.items():
            self._require_room(name, target)
        call = task_call(task)
        keys = {self._key(name, target, call): name for name, target in targets.items()}
        if len(keys) < len(targets) or any(not keys.keys().isdisjoint(_parents(k)) for k in keys):
            raise DataError(
                f"task {task['name']!r} saves two files in one place: "
                f"{', '.join(f'{name!r} as {str(t.path)!r}' for name, t in targets.items())}"
            )
        for key, name in keys.items():
            self._check(task, key, name, targets[name])
        for key, name in keys.items():
            self._enter(key, _Claim(call, task["name"]))
            if targets[name].kind == "matches":
                self._began.setdefault(call, self._count)
        return targets

    def take(self, task: TaskDescription, files: Mapping[Path, str]) -> None:
        """Record that a call is about to put files into their places.

        Args:
            task: The description of the call's attempt, which has ended.
            files: Their names, by their places.

        Raises:
            DataError: The run reads one of the places, or another call writes to it. Only files
                that match a pattern can fail here.
        """
        claim = _Claim(task_call(task), task["name"])
        keys = {self._real.of(str(path)): (path, name) for path, name in files.items()}
        for key, (path, name) in keys.items():
            former = self._claims.get(key)
            if former is None or former.call != claim.call:
                self._check(task, key, name, Target(path))
            other = self._ours.get(key)
            began = self._began.get(claim.call, self._count)
            if other is not None and other.claim.call != claim.call and other.number >= began:
                raise DataError(
                    f"task {task['name']!r} cannot save {name!r} as {str(path)!r}: task "
                    f"{other.claim.task!r} has saved one there while it ran; save it elsewhere"
                )
        for key in keys:
            self._enter(key, claim)
            self._ours[key] = _Written(self._count, claim)
            self._count += 1

    def release(self, task: TaskDescription) -> None:
        """Lets others write where an attempt was to, as its work has ended; twice is harmless."""
        if not self._by_call:
            return
        call = task_call(task)
        for key in self._by_call.pop(call, ()):
            del self._claims[key]
            for parent in _parents(key):
                self._below[parent] -= 1
                if not self._below[parent]:
                    del self._below[parent]
        self._began.pop(call, None)

    def _enter(self, key: str, claim: _Claim) -> None:
        if key not in self._claims:
            self._claims[key] = claim
            self._below.update(_parents(key))
            self._by_call.setdefault(claim.call, []).append(key)

    def _target(self, output: Output) -> Target:
        path = os.path.join(self._directory, output.save or "")
        if isinstance(output, OutputDir):
            return self._directory_target(output, path)
        if output.many:
            bare = path.rstrip("/")
            if os.path.lexists(bare) and not os.path.isdir(bare):
                raise DataError(f"{output!r}: {bare!r} is no directory to put files in")
            if not path.endswith("/") and not os.path.isdir(path):
                raise DataError(
                    f"{output!r}: save is the place of one file; give a directory, "
                    f"save='{output.save}/'"
                )
            return Target(Path(os.path.normpath(path)), "matches")
        if path.endswith("/") or os.path.isdir(path):
            path = os.path.join(path, output.filename)
        path = os.path.normpath(path)
        if os.path.isdir(path):
            raise DataError(f"{output.filename!r} cannot be saved as {path!r}: that is a directory")
        return Target(Path(path))

    def _directory_target(self, output: OutputDir, path: str) -> Target:
        path = os.path.normpath(os.path.join(path, output.filename))
        if os.path.lexists(path) and not os.path.isdir(path):
            raise DataError(
                f"directory {output.filename!r} cannot be saved as {path!r}: that is a file"
            )
        real = os.path.realpath(path)
        for needed in self._needed:
            if f"{os.path.realpath(needed)}/".startswith(f"{real}/"):
                raise DataError(
                    f"directory {output.filename!r} cannot be saved as {path!r}: it would take the "
                    f"place of {os.path.realpath(needed)!r}; save it elsewhere, or rename it"
                )
        return Target(Path(path), "directory")

    def _require_room(self, name: str, target: Target) -> None:
        """Raise if nothing can be put at a place, because of the directory that it is in."""
        path, kind = target
        directory = nearest = str(path if kind == "matches" else path.parent)
        if directory in self._writable:
            return
        while not os.path.lexists(nearest):
            nearest = os.path.dirname(nearest)
        if not os.path.exists(nearest):
            problem = "a link to a place that does not exist; create that, or remove the link"
        elif not os.path.isdir(nearest):
            problem = "a file, and cannot hold others; save it elsewhere, or move that file"
        elif not os.access(nearest, os.W_OK | os.X_OK):
            problem = "not writable for you; save it elsewhere, or change its mode"
        else:
            if nearest == directory:
                self._writable.add(directory)
            return
        raise DataError(f"{name!r} cannot be saved as {str(path)!r}: {nearest!r} is {problem}")

    def _key(self, name: str, target: Target, call: str) -> str:
        """Return what is claimed: a place, or for a pattern a unique name in its directory."""
        real = self._real.of(str(target.path))
        return os.path.join(real, f"{name}\0{call}") if target.kind == "matches" else real

    def _check(self, task: TaskDescription, key: str, name: str, target: Target) -> None:
        what = f"task {task['name']!r} cannot save {name!r} as {str(target.path)!r}"
        directory = target.kind == "directory"
        read = self._read_there(key, directory=directory)
        if read is not None:
            reader, thing = read
            raise DataError(
                f"{what}: task {reader!r} reads {thing}, and this would change what the run "
                "began with; save it elsewhere"
            )
        claim = self._claim_on(key, task_call(task), directory=directory)
        if claim is not None:
            raise DataError(
                f"{what}: {claim} is about to save one there, too; save it elsewhere, or let one "
                f"wait for the other: {task['name']}.options(after=[future])(...)"
            )

    def _read_there(self, key: str, *, directory: bool) -> tuple[str, str] | None:
        """Which task reads what is there, what that is in, or what is in it; and which of these."""
        if key in self._readers:
            return self._readers[key], "that directory" if directory else "that file"
        if directory and key in self._readers_below:
            return self._readers_below[key], "a file in that directory"
        for place in (key, *_parents(key)):
            if place in self._ours:
                return None
            if place in self._readers:
                # A directory that the run puts files into may get more, as in the run before.
                growing = any(each.startswith(f"{place}/") for each in self._ours)
                return None if growing else (self._readers[place], f"{place!r}, which it is in")
        return None

    def _claim_on(self, key: str, call: str, *, directory: bool = False) -> _Claim | None:
        """What another call is about to write there: the same, what it is in, or what is in it."""
        if not self._claims:
            return None
        claim = self._claims.get(key)
        if claim is not None and claim.call != call:
            return claim
        for parent in _parents(key):
            claim = self._claims.get(parent)
            if claim is not None and claim.call != call:
                return claim
        if not directory or not self._below[key]:
            return None
        inside = ((k, claim) for k, claim in self._claims.items() if claim.call != call)
        return next((claim for k, claim in inside if k.startswith(f"{key}/")), None)


def task_call(task: TaskDescription) -> str:
    """What all attempts of a call have in common."""
    return task["uid"].rpartition(".")[0]


def _parents(path: str) -> Iterator[str]:
    """The directories that a path is in, the nearest first."""
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent
