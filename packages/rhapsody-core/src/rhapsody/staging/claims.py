"""Claims on the paths that the tasks of an engine read and write.

A call claims the destinations of its outputs before it runs, and releases them when its work has
ended. Files that match a pattern are known only when their task is done, and are claimed then.
Paths are compared after links in them have been resolved. The following always holds:

1. A path is claimed by at most one call, and no path that a call has claimed is inside one that
   another call has claimed.
2. A file that the run reads is claimed only if the run wrote it before it was read. A directory in
   which the run reads a file is not claimed.
3. Nothing is read that another call has claimed.
4. A call whose work has ended claims nothing.

A call that would violate one of these rules is refused, and changes nothing.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from rhapsody.data import Output, OutputDir
from rhapsody.errors import DataError
from rhapsody.fsutil import RealPaths, kind_of
from rhapsody.identity import AttemptId, TaskId
from rhapsody.task import TaskDescription

Kind = Literal["file", "directory", "matches"]
"""Kind of a destination: for a file, a directory, or the files that match a pattern."""


class Target(NamedTuple):
    """Destination of an output.

    Attributes:
        path: The path; for files that match a pattern, the directory into which they are copied.
        kind: The kind of output that is saved.
    """

    path: Path
    kind: Kind = "file"


@dataclass(slots=True)
class _Claim:
    """Claim on a destination, by the call that is about to write to it.

    Attributes:
        call: The identity of the call.
        task: The name of the call's task.
    """

    call: TaskId
    task: str

    def __str__(self) -> str:
        return f"task {self.task!r} ({self.call.label})"


@dataclass(slots=True)
class _Written:
    """File or directory that the run has written.

    Attributes:
        number: The number of files and directories that the run wrote before this one.
        claim: The call that wrote the file or directory.
    """

    number: int
    claim: _Claim


class PathClaims:
    """Registry of the paths that the tasks of one engine read and write, to prevent conflicts.

    Paths are compared after links in them have been resolved.

    Args:
        directory: `results_dir`, the base directory of relative destinations.
        needed: Other directories that must not be replaced.
    """

    def __init__(self, directory: Path, needed: Iterable[Path] = ()) -> None:
        self._directory = directory
        self._needed = (directory, *needed)
        self._claims: dict[str, _Claim] = {}
        self._below: Counter[str] = Counter()  # number of claims below each directory
        self._by_call: dict[TaskId, list[str]] = {}
        self._began: dict[TaskId, int] = {}  # by call with a pattern: files written before
        self._count = 0  # number of files written
        self._real = RealPaths()
        self._writable: set[str] = set()  # directories in which files can be created
        self._readers: dict[str, str] = {}  # by file that no task writes: a task that reads it
        self._readers_below: dict[str, str] = {}  # by directory: a task that reads a file below it
        self._written: dict[str, _Written] = {}

    def reads(self, task: TaskDescription, path: str) -> None:
        """Record that a task is about to read a file on this file system.

        Raises:
            DataError: Another task is about to write the file.
        """
        key = self._real.of(path)
        claim = self._claim_on(key, task_call(task))
        if claim is not None:
            cure = "call that task first, or pass its future"
            if self._claims.get(key) is not claim:
                cure = (
                    "a file in a declared directory, or one that matches a pattern, creates no "
                    "dependency: pass the future of that task as an argument, or in after=[future]"
                )
            raise DataError(
                f"task {task['name']!r} reads {path!r} while {claim} is about to write it; {cure}"
            )
        if self._written and any(place in self._written for place in (key, *_parents(key))):
            return
        self._readers[key] = task["name"]
        for parent in _parents(key):
            if parent in self._readers_below:
                break  # the directories above it are entered as well
            self._readers_below[parent] = task["name"]

    def is_read(self, path: Path) -> bool:
        """Return True if a task has read the file and the run had not written it by then."""
        return self._real.of(str(path)) in self._readers

    def claim(
        self, task: TaskDescription, outputs: Sequence[Output], repeats: TaskId | None = None
    ) -> dict[str, Target]:
        """Claim the destinations of an attempt's outputs.

        Args:
            task: The attempt's description.
            outputs: The outputs.
            repeats: The call that this call repeats, or `None`. The destinations to which others
                have written since are not claimed.

        Returns:
            The claimed destinations, by name of the output.

        Raises:
            DataError: A destination is a file that the run reads or that another call is about to
                write; a destination is not writable; or two outputs have the same destination.
        """
        targets = {each.filename: self._target(each) for each in outputs if each.save}
        if repeats is not None:
            targets = {
                name: target
                for name, target in targets.items()
                if not self.is_replaced(target.path, repeats, directory=target.kind == "directory")
            }
        if not targets:
            return targets
        for name, target in targets.items():
            self._require_room(name, target)
        call = task_call(task)
        keys = {self._key(name, target, call): name for name, target in targets.items()}
        if len(keys) < len(targets) or any(not keys.keys().isdisjoint(_parents(k)) for k in keys):
            raise DataError(
                f"task {task['name']!r} saves two files to the same destination: "
                f"{', '.join(f'{name!r} as {str(t.path)!r}' for name, t in targets.items())}; "
                "choose another destination for one of them"
            )
        for key, name in keys.items():
            self._check(task, key, name, targets[name])
        for key, name in keys.items():
            self._enter(key, _Claim(call, task["name"]))
            if targets[name].kind == "matches":
                self._began.setdefault(call, self._count)
        return targets

    def take(self, task: TaskDescription, files: Mapping[Path, str]) -> None:
        """Record that a call is about to save files to their destinations.

        Args:
            task: The description of the call's attempt, which has ended.
            files: The names of the files, by destination.

        Raises:
            DataError: The run reads one of the destinations, or another call writes to it. This can
                happen only for files that match a pattern: all others were claimed before the call
                ran.
        """
        claim = _Claim(task_call(task), task["name"])
        keys = {self._real.of(str(path)): (path, name) for path, name in files.items()}
        for key, (path, name) in keys.items():
            former = self._claims.get(key)
            if former is None or former.call != claim.call:
                self._check(task, key, name, Target(path))
            other = self._written.get(key)
            began = self._began.get(claim.call, self._count)
            if other is not None and other.claim.call != claim.call and other.number >= began:
                raise DataError(
                    f"task {task['name']!r} cannot save {name!r} as {str(path)!r}: task "
                    f"{other.claim.task!r} saved a file there while it ran; choose another "
                    "destination"
                )
        for key in keys:
            self._enter(key, claim)
            self._written[key] = _Written(self._count, claim)
            self._count += 1

    def has_written(self, path: Path) -> bool:
        """Return True if the run has saved a file or directory to a destination."""
        return self._real.of(str(path)) in self._written

    def is_replaced(self, path: str | Path, call: TaskId, *, directory: bool = False) -> bool:
        """Return True if a call's saved file is no longer there: another call writes to its path.

        Args:
            path: A destination of the call, or the path of a file that was saved there.
            call: The call.
            directory: True for a directory, which is also replaced if something in it was written.

        Returns:
            True if another call is about to write the file, or has written it since `call` did.
        """
        key = self._real.of(str(path))
        if self._claim_on(key, call) is not None:
            return True
        places = [key, *_parents(key)]
        if directory:
            places += [each for each in self._written if each.startswith(f"{key}/")]
        written = [self._written[each] for each in places if each in self._written]
        last = max(written, key=lambda each: each.number, default=None)
        return last is not None and last.claim.call != call

    def release(self, task: TaskDescription) -> None:
        """Release the claims of an attempt whose work has ended. A second call has no effect."""
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
                raise DataError(
                    f"{output!r}: save={bare!r} is not a directory; pass a directory for several "
                    "files"
                )
            if not path.endswith("/") and not os.path.isdir(path):
                raise DataError(
                    f"{output!r}: save must be a directory for several files; write "
                    f"save='{output.save}/'"
                )
            return Target(Path(os.path.normpath(path)), "matches")
        if path.endswith("/") or os.path.isdir(path):
            path = os.path.join(path, output.filename)
        path = os.path.normpath(path)
        try:
            mode = os.stat(path).st_mode
        except OSError:  # it does not exist, or `_require_room` says what is wrong
            return Target(Path(path))
        if stat.S_ISDIR(mode):
            raise DataError(
                f"{output.filename!r} cannot be saved as {path!r}, which is a directory; choose "
                "another destination"
            )
        kind = kind_of(mode)
        if kind is not None:  # to replace `/dev/null` would break the machine
            raise DataError(
                f"{output.filename!r} cannot be saved as {path!r}, which is {kind}; choose another "
                "destination, or save=False to keep the file in the sandbox"
            )
        return Target(Path(path))

    def _directory_target(self, output: OutputDir, path: str) -> Target:
        path = os.path.normpath(os.path.join(path, output.filename))
        if os.path.lexists(path) and not os.path.isdir(path):
            raise DataError(
                f"directory {output.filename!r} cannot be saved as {path!r}, which is a file; "
                "choose another destination"
            )
        real = os.path.realpath(path)
        for needed in self._needed:
            if f"{os.path.realpath(needed)}/".startswith(f"{real}/"):
                raise DataError(
                    f"directory {output.filename!r} cannot be saved as {path!r}: it would replace "
                    f"{os.path.realpath(needed)!r}; choose another destination, or rename it"
                )
        return Target(Path(path), "directory")

    def _require_room(self, name: str, target: Target) -> None:
        """Raise an error if the directory of a destination is not writable or cannot be created."""
        path, kind = target
        directory = nearest = str(path if kind == "matches" else path.parent)
        if directory in self._writable:
            return
        while not os.path.lexists(nearest):
            nearest = os.path.dirname(nearest)
        if not os.path.exists(nearest):
            problem = "a broken link; create its target, or remove the link"
        elif not os.path.isdir(nearest):
            problem = "a file, not a directory; choose another destination, or move that file"
        elif not os.access(nearest, os.W_OK | os.X_OK):
            problem = "not writable; choose another destination, or change its mode"
        else:
            if nearest == directory:
                self._writable.add(directory)
            return
        raise DataError(f"{name!r} cannot be saved as {str(path)!r}: {nearest!r} is {problem}")

    def _key(self, name: str, target: Target, call: TaskId) -> str:
        """Return the path to claim: the destination or, for a pattern, a unique path inside."""
        real = self._real.of(str(target.path))
        return os.path.join(real, f"{name}\0{call}") if target.kind == "matches" else real

    def _check(self, task: TaskDescription, key: str, name: str, target: Target) -> None:
        what = f"task {task['name']!r} cannot save {name!r} as {str(target.path)!r}"
        directory = target.kind == "directory"
        read = self._read_there(key, directory=directory)
        if read is not None:
            reader, thing = read
            raise DataError(
                f"{what}: task {reader!r} reads {thing}, which this run must not change; choose "
                "another destination"
            )
        claim = self._claim_on(key, task_call(task))
        if claim is not None:
            raise DataError(
                f"{what}: {claim} is also about to write there; choose another destination, or let "
                f"one task wait for the other: {task['name']}.options(after=[future])(...)"
            )

    def _read_there(self, key: str, *, directory: bool) -> tuple[str, str] | None:
        """Return the name of a task that reads a destination, and a phrase for the error message.

        Directories above the destination are considered as well and, if `directory` is True, files
        below the destination. Return `None` if the destination may be written.
        """
        if key in self._readers:
            return self._readers[key], "that directory" if directory else "that file"
        if directory and key in self._readers_below:
            return self._readers_below[key], "a file in that directory"
        for place in (key, *_parents(key)):
            if place in self._written:
                return None
            if place in self._readers:
                # A directory that the run saves files to may receive more, as in the last run.
                growing = any(each.startswith(f"{place}/") for each in self._written)
                return None if growing else (self._readers[place], f"the directory {place!r}")
        return None

    def _claim_on(self, key: str, call: TaskId) -> _Claim | None:
        """Return another call's claim on a path, a directory above it or an entry below it."""
        if not self._claims:
            return None
        claim = self._claims.get(key)
        if claim is not None and claim.call != call:
            return claim
        for parent in _parents(key):
            claim = self._claims.get(parent)
            if claim is not None and claim.call != call:
                return claim
        if not self._below[key]:
            return None
        inside = ((k, claim) for k, claim in self._claims.items() if claim.call != call)
        return next((claim for k, claim in inside if k.startswith(f"{key}/")), None)


def task_call(task: TaskDescription) -> TaskId:
    """Return the identity of the call that an attempt belongs to."""
    return AttemptId.of(task["uid"]).task


def _parents(path: str) -> Iterator[str]:
    """Yield the parent directories of a real path, nearest first."""
    while (end := path.rfind("/")) > 0:
        path = path[:end]
        yield path
    yield "/"
