"""Stager of one engine, which provides the inputs of attempts and saves their outputs.

The engine calls a `Stager` before and after each attempt that has files or a sandbox. The backend
links files into the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import hashlib
import inspect
import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from rhapsody.data import (
    File,
    InputFile,
    InputFiles,
    Output,
    OutputDir,
    SavedFile,
    found_at,
    given_path,
    output_name,
    plain_name,
    staged_as,
)
from rhapsody.errors import CapabilityError, DataError
from rhapsody.identity import AttemptId
from rhapsody.sdk.threads import ThreadPool, in_thread
from rhapsody.staging.claims import Target
from rhapsody.staging.fetch import Fetcher
from rhapsody.staging.fsutil import disk_use, files_in, remove_directory
from rhapsody.staging.inheritance import FileState, Inheritance, file_state, inherit
from rhapsody.staging.outputs import Put, Results, names_of, without_place
from rhapsody.staging.runs import UidClaim, WorkDir
from rhapsody.staging.sandboxes import Disposition, Keep, SandboxKeeper
from rhapsody.task import AttemptInfo, Declaration, Sandbox, TaskDescription, Written
from rhapsody.undeclared import left_in

if TYPE_CHECKING:
    from rhapsody.backends.base import BaseExecutionBackend
    from rhapsody.plugins.specs import TaskFiles


class InputPlace(NamedTuple):
    """Location of an input, for the backend that links it and for functions that read it.

    Attributes:
        path: The path of the file, or `None` if this process cannot read it.
        producer: The attempt on the same backend from whose sandbox the file is linked; `None` if
            the file comes from elsewhere.
        missing: If the file is missing, the outcome of the task that wrote it in an earlier run;
            otherwise `None`.
        directory: True for a directory that a dependency created.
        state: The state of a file, with which a change is detected; `None` for a directory, or if
            this process cannot read the file.
        given: True for a file or directory that the program names, and that no task of the engine
            writes.
    """

    path: str | None
    producer: AttemptInfo | None = None
    missing: AttemptInfo | None = None
    directory: bool = False
    state: FileState | None = None
    given: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    """Locations of the inputs and outputs of an attempt, found before the attempt is submitted.

    Attributes:
        sources: The outcomes of the attempt's dependencies, without duplicates.
        staged: The path of each input in the sandbox, by the `id` of the input; see `staged_names`.
        places: The locations of the inputs, by their paths in the sandbox.
        copies: The paths, in the sandbox, of the inputs that are copied for each attempt.
        coming: The pending fetches of inputs into the cache, by the same paths.
        targets: The destinations of the outputs, by name.
        reads: For each file of another task that the attempt reads, the sandbox and the file's
            name.
        matches: The files that match each declared pattern; empty before the attempt has succeeded.
        linked: The states of undeclared files to which links in the sandbox may lead, by path.
        at_call: The paths, in the sandbox, of inputs whose states were taken at the call.
    """

    sources: tuple[AttemptInfo, ...]
    staged: Mapping[int, str]
    places: dict[str, InputPlace]
    copies: frozenset[str]
    coming: Mapping[str, asyncio.Task[str]]
    targets: dict[str, Target]
    reads: tuple[tuple[str, str], ...]
    matches: dict[str, tuple[str, ...]] = field(default_factory=dict)
    linked: dict[str, FileState] = field(default_factory=dict)
    at_call: frozenset[str] = frozenset()

    def missing(self) -> list[AttemptInfo]:
        """Return the outcomes of the tasks that wrote the missing inputs in earlier runs."""
        found = {
            place.missing.uid: place.missing for place in self.places.values() if place.missing
        }
        return list(found.values())

    def paths(self) -> dict[str, str | None]:
        """Return the inputs' paths by their paths in the sandbox.

        `None` marks inputs that this process cannot read.
        """
        return {name: place.path for name, place in self.places.items()}

    def given(self) -> list[str]:
        """Return the paths, in the sandbox, of the inputs that are neither made nor fetched."""
        return [name for name, place in self.places.items() if place.given]


def outcomes(producers: Mapping[int, Declaration]) -> dict[int, Written]:
    """Return the outputs that inputs stand for, by the `id` of the input.

    Tasks without an outcome, as in dry runs, are left out.
    """
    return {
        key: Written(attempts, declared.name, declared.bound)
        for key, declared in producers.items()
        if (attempts := tuple(left for each in declared.futures if (left := each._outcome)))
    }


def left_by(producer: AttemptInfo, name: str) -> str | None:
    """Return the path of a file in the sandbox of an ended task, or `None` if it is not found."""
    return left_place(producer, name).path


def left_place(producer: AttemptInfo, name: str) -> InputPlace:
    """Return the location of a file in the sandbox of an ended task on the same backend."""
    path = producer.files.path_of(name)
    found = _stat(path) if producer.files.sandbox else None
    if found is None:
        return InputPlace(None, producer)
    directory = stat.S_ISDIR(found.st_mode)
    return InputPlace(path, producer, directory=directory, state=_state_of(found))


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _state_of(found: os.stat_result | None) -> FileState | None:
    if found is None or not stat.S_ISREG(found.st_mode):
        return None
    return FileState.of(found)


def changed_inputs(resolved: Resolved) -> dict[str, str]:
    """Return the paths of inputs that have changed since they were found, by staged path.

    Directories, inputs that are copied, and files that this process cannot read are not checked.
    """
    changed = {
        name: place.path
        for name, place in resolved.places.items()
        if place.state is not None and place.path is not None and name not in resolved.copies
        if not _is_in_state(place.path, place.state)
    }
    undeclared = {
        path: path for path, state in resolved.linked.items() if file_state(path) != state
    }
    return changed | undeclared


def _is_in_state(path: str, state: FileState) -> bool:
    found = _state_of(_stat(path))
    if found is None or state.digest is None:
        return found == state
    return found == state._replace(digest=None) and _digest(path) == state.digest


def _digest(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return hashlib.blake2b(file.read(), digest_size=16).digest()
    except OSError:
        return None


def as_source(producer: AttemptInfo, left_out: Collection[str] = ()) -> dict[str, Any]:
    """Return the part of a task's description that a backend needs to link the task's files.

    Args:
        producer: The outcome of the task.
        left_out: Names of undeclared files that the dependent does not receive.
    """
    return {
        "uid": producer.uid,
        "sandbox": producer.files.sandbox,
        "metadata": {
            "dependencies": [],
            "input_files": [],
            "output_files": list(producer.files.output_files),
        },
        **({"left_out": sorted(left_out)} if left_out else {}),
    }


class Origin(NamedTuple):
    """Origin of an input. Exactly one of `producer`, `path` and `url` is not `None`.

    Attributes:
        name: The file's name at its origin.
        producer: The outcome of the task that wrote the file.
        path: The path of a file on disk.
        url: The URL of a remote file.
        copy: True if each attempt receives a copy.
        state: For a file on disk, see `InputPlace`.
    """

    name: str
    producer: AttemptInfo | None = None
    path: str | None = None
    url: str | None = None
    copy: bool = False
    state: FileState | None = None


def staged_names(
    task: TaskDescription,
    inputs: Sequence[InputFile],
    outputs: Sequence[Output],
    sources: Sequence[AttemptInfo],
    made_by: Mapping[int, Written],
    directory: str,
) -> dict[int, str]:
    """Return the path of each input relative to the task's sandbox, by the `id` of the input.

    This is the input's name, unless another file has that name in the sandbox: an input with the
    name of an output is renamed to `input-NAME`, and the second of several inputs with one name is
    staged in the directory `2`, the third one in `3`, and so on. The files that match a pattern are
    staged in one directory, and the path of the pattern is returned.

    Args:
        task: The task's description.
        inputs: The task's input files.
        outputs: The task's output files.
        sources: The outcomes of the task's dependencies.
        made_by: The outputs that inputs stand for, by the `id` of the input.
        directory: The directory at which relative paths start.

    Raises:
        DataError: Two files have the same explicit name, or an explicit name is given for several
            files.
    """
    if len(inputs) == 1 and not outputs and inputs[0].name is None:
        return {id(inputs[0]): inputs[0].filename}
    names = [file.name or file.filename for file in inputs]
    reserved = {*names, *(output.filename for output in outputs)}
    writers = chain.from_iterable(written.attempts for written in made_by.values())
    patterns = any(source.files.matches for source in (*sources, *writers))
    if len(reserved) == len(inputs) + len(outputs) and not patterns:
        return dict(zip(map(id, inputs), names, strict=True))
    found: dict[int, str] = {}
    used: dict[str, object] = dict.fromkeys((output.filename for output in outputs), "an output")
    for file in sorted(inputs, key=lambda file: file.name is None):  # explicit names come first
        attempts, declared = _writers(file, sources, made_by.get(id(file)))
        matched = _matched_by(declared, attempts)
        which: object = file.copy, file.remote_url or _path_on_disk(file, directory)
        if attempts:
            which = file.copy, declared, *(attempt.uid for attempt in attempts)
        if file.name is not None:
            found[id(file)] = _explicitly(task, file, which, used, several=bool(matched))
            continue
        inside = [path for path, _, _ in matched]
        name = file.filename
        if not inside:
            name = f"input-{name}" if used.get(name) == "an output" else name
            inside = [name]
        for number in count(1):
            folder = "" if number == 1 else f"{number}/"
            if number > 1 and str(number) in reserved:
                continue
            if all(used.get(folder + each, which) == which for each in inside):
                break
        used.update((folder + each, which) for each in inside)
        found[id(file)] = folder + name
    return found


def _explicitly(
    task: TaskDescription,
    file: InputFile,
    which: object,
    used: dict[str, object],
    *,
    several: bool,
) -> str:
    """Return the name that the user chose for an input, and add it to `used`."""
    name = file.name
    assert name is not None
    if several:
        raise DataError(
            f"task {task['name']!r}: name={name!r} names one file, but {file.filename!r} is a "
            "pattern; omit name="
        )
    if used.setdefault(name, which) != which:
        other = "an output" if used[name] == "an output" else "another input"
        raise DataError(
            f"task {task['name']!r}: {file!r} has the same name as {other} of the task; choose "
            "another name, or omit name="
        )
    return name


def origins(
    task: TaskDescription,
    inputs: Sequence[InputFile],
    sources: Sequence[AttemptInfo],
    made_by: Mapping[int, Written],
    staged: Mapping[int, str],
    directory: str,
    destinations: Mapping[str, str],
    states: Mapping[int, FileState] = MappingProxyType({}),
) -> dict[str, Origin]:
    """Return the origin of each file that a task reads, by its path in the sandbox.

    Args:
        task: The task's description.
        inputs: The task's input files.
        sources: The outcomes of the task's dependencies.
        made_by: The outputs that inputs stand for, by the `id` of the input.
        staged: The path of each input in the sandbox; see `staged_names`.
        directory: The directory at which relative paths start.
        destinations: See `Stager.destinations`.
        states: The states of inputs at the call, by the `id` of the input.

    Raises:
        DataError: A file has no origin or several origins.
    """
    return {
        path: origin
        for file in inputs
        for path, origin in _each(
            task,
            file,
            sources,
            made_by.get(id(file)),
            staged[id(file)],
            directory,
            destinations,
            states,
        )
    }


def _each(
    task: TaskDescription,
    file: InputFile,
    sources: Sequence[AttemptInfo],
    written: Written | None,
    staged: str,
    directory: str,
    destinations: Mapping[str, str],
    states: Mapping[int, FileState],
) -> Iterator[tuple[str, Origin]]:
    attempts, declared = _writers(file, sources, written)
    matched = _matched_by(declared, attempts)
    for path, producer, name in matched:
        origin = Origin(name, producer, copy=file.copy)
        yield os.path.join(os.path.dirname(staged), path), origin
    if not matched:
        wrote = [attempt for attempt in attempts if declared in attempt.files.output_files]
        if len(wrote) == 1:
            yield staged, Origin(declared, wrote[0], copy=file.copy)
        elif attempts:
            raise _writers_error(task, file, declared, wrote or attempts)
        else:
            origin = _outside(task, file, sources, directory, destinations, states)
            yield staged, origin._replace(copy=True) if file.copy else origin


def _writers(
    file: InputFile, sources: Sequence[AttemptInfo], written: Written | None
) -> tuple[Sequence[AttemptInfo], str]:
    """Return the attempts whose output an input stands for, and the output's name.

    Args:
        file: The input.
        sources: The outcomes of the task's dependencies.
        written: The output that the input stood for when the task was called, or `None`.
    """
    name = output_name(file)
    if name is not None and not (written is not None and written.bound):
        wrote = [s for s in sources if name in s.files.output_files or name in s.files.matches]
        if wrote or written is None:
            return wrote, name
    return ((), "") if written is None else (written.attempts, written.name)


def as_several(
    file: InputFile,
    bound: InputFile,
    sources: Sequence[AttemptInfo],
    written: Written | None = None,
) -> InputFiles | InputFile:
    """Return the object that a task receives for an input: one file or several.

    Args:
        file: The input.
        bound: The input, bound to the task's sandbox.
        sources: The outcomes of the task's dependencies.
        written: The output that the input stood for when the task was called, or `None`.
    """
    attempts, declared = _writers(file, sources, written)
    matched = _matched_by(declared, attempts)
    if matched:
        return InputFiles(bound, [path for path, _, _ in matched], directory=False)
    wrote = [s.files.path_of(declared) for s in attempts if declared in s.files.output_files]
    directory = wrote[0] if len(wrote) == 1 else ""
    if not os.path.isdir(directory):
        return bound
    staged = os.path.basename(bound.filename)
    names = (os.path.join(staged, each) for each in files_in(directory))
    return InputFiles(bound, names, directory=True)


def located(
    file: InputFile,
    resolved: Resolved,
    sources: Sequence[AttemptInfo],
    written: Written | None = None,
) -> InputFiles | InputFile:
    """Return the object that a function receives for an input that it reads in place.

    Args:
        file: The input.
        resolved: The locations of the task's inputs, all of which this process can read.
        sources: The outcomes of the task's dependencies.
        written: The output that the input stood for when the task was called, or `None`.
    """
    places, staged = resolved.places, resolved.staged[id(file)]
    attempts, declared = _writers(file, sources, written)
    matched = _matched_by(declared, attempts)
    if matched:
        inside = (places[os.path.join(os.path.dirname(staged), path)] for path, _, _ in matched)
        found = [place.path for place in inside if place.path is not None]
        pattern = os.path.join(os.path.dirname(found[0]), file.filename)
        return InputFiles(found_at(file, pattern), found, directory=False)
    place = places[staged]
    path = place.path or ""
    bound = found_at(file, path)
    if not place.directory:
        return bound
    inner = (os.path.join(path, each) for each in files_in(path))
    return InputFiles(bound, inner, directory=True)


def _matched_by(
    declared: str, attempts: Sequence[AttemptInfo]
) -> list[tuple[str, AttemptInfo, str]]:
    """Return the files that match a pattern, which tasks declared.

    Returns:
        For each file, the path under which it is staged, relative to the directory for all of them;
        the attempt that wrote it; and its name. The second file with a name is staged in the
        directory `2`, the third one in `3`, and so on.
    """
    found: dict[str, tuple[AttemptInfo, str]] = {}
    for attempt in attempts:
        for name in attempt.files.matches.get(declared, ()):
            path, number = name, 2
            while path in found:
                path, number = f"{number}/{name}", number + 1
            found[path] = attempt, name
    return [(path, *file) for path, file in found.items()]


def _writers_error(
    task: TaskDescription, file: InputFile, declared: str, attempts: Sequence[AttemptInfo]
) -> DataError:
    """Return the error for an output that several dependencies wrote, or a single one did not."""
    if len(attempts) > 1:
        return DataError(
            f"task {task['name']!r}: input file {file.filename!r} is written by two of its "
            f"dependencies, {attempts[0].task} and {attempts[1].task}; rename one of the "
            f"files, or pass future.file({declared!r}) of one of them"
        )
    return DataError(
        f"task {task['name']!r}: missing input file {file.filename!r}: task {attempts[0].task} "
        "declared it, but did not write it"
    )


def _path_on_disk(file: InputFile, directory: str) -> str:
    return os.path.normpath(os.path.join(directory, given_path(file)))


def _outside(
    task: TaskDescription,
    file: InputFile,
    sources: Sequence[AttemptInfo],
    directory: str,
    destinations: Mapping[str, str],
    states: Mapping[int, FileState],
) -> Origin:
    """Return the origin of an input that no task of the engine writes.

    Raises:
        DataError: There is no file at this path.
    """
    name = file.filename
    if file.remote_url is not None:
        return Origin(name, url=file.remote_url)
    expected = _path_on_disk(file, directory)
    if (state := states.get(id(file))) is not None:
        return Origin(name, path=expected, state=state)
    if (found := _stat(expected)) is not None:
        return Origin(name, path=expected, state=_state_of(found))
    if output_name(file) is not None and (place := destinations.get(name)) is not None:
        raise DataError(
            f"task {task['name']!r}: missing input file {name!r}: there is no file {expected!r}. "
            f"To read the output that a call declares with the destination {place!r}, pass "
            f"InputFile({place!r})"
        )
    cure = "Call the task that writes it before this one, or correct the path"
    other = next((source for source in sources if name in source.files.output_files), None)
    if other is not None:
        cure = (
            f"Its dependency {other.task} wrote {name!r}, which has another path: to read that "
            f"file, pass future.file({name!r})"
        )
    raise DataError(
        f"task {task['name']!r}: missing input file {name!r}: no earlier call declares it, and "
        f"there is no file {expected!r}. {cure}"
    )


_CACHE = ".fetched"

_SMALL = 65536
"""Maximum size of a file that is compared by its content, in bytes."""

_JUST_NOW_NS = 20_000_000
"""Age below which another change may leave a file with the same modification time."""

_THREADS = 4
"""Number of threads that copy and remove files."""


@dataclass(slots=True)
class _Links:
    """Files and sandboxes that an attempt uses.

    Attributes:
        sources: The references to the sandboxes that must not be removed while the attempt runs.
        fetched: True if inputs of the attempt were fetched into the cache.
        inheritance: The undeclared files that the attempt receives.
        needs: The sandboxes to which links in the attempt's sandbox may lead.
    """

    sources: tuple[Sandbox, ...] = ()
    fetched: bool = False
    inheritance: Inheritance | None = None
    needs: tuple[Sandbox, ...] = ()


class Stager:
    """Manager of the files and sandboxes of one engine's tasks.

    All methods are called on the engine's loop.

    Args:
        work_dir: The directory that contains the sandboxes. It is created with the first sandbox.
        keep: The sandboxes that stay on disk; see `Keep`.
        in_run: The engine's uid if `work_dir` is a `.rhapsody` directory. The engine then uses a
            directory of that name in the directory of this process's run.
        uid: The engine's uid if the program chose it: no other engine may use it at the same time,
            and sandboxes of an earlier engine are not reused.
        backends: The engine's backends, by the names that outcomes contain. Backends may be added
            later.
        results_dir: Base directory of saved files. Default: the current directory.
        fetch_timeout: The argument `timeout` of `Fetcher`.
        fetch_limit: The argument `limit` of `Fetcher`.

    Attributes:
        directory: The current directory when the engine was created, at which relative paths of
            inputs start.
        results: Files that tasks wrote and that are kept.
        destinations: Destinations of the declared outputs that cannot be found by their plain
            names, by these names; for messages.
        disk_use: After `close`, the size of the directory of runs in bytes; 0 if this engine has
            left nothing there.

    Raises:
        ValueError: An argument, or an environment variable that `Fetcher` reads, is invalid; or
            another engine uses the uid.
        OSError: The uid cannot be claimed in `work_dir`.
    """

    def __init__(
        self,
        work_dir: str | os.PathLike[str],
        keep: Keep = "results",
        *,
        in_run: str | None = None,
        uid: str | None = None,
        backends: Mapping[str, BaseExecutionBackend] | None = None,
        results_dir: Path | None = None,
        fetch_timeout: float | None = None,
        fetch_limit: int | str | None = None,
    ) -> None:
        self._keep: Keep = keep
        self._fetcher = Fetcher(
            Path(work_dir, _CACHE),
            timeout=fetch_timeout,
            limit=fetch_limit,
        )
        self._place = WorkDir(work_dir, in_run)
        self._settle_in()
        self._backends = {} if backends is None else backends
        self.directory: Path = _current(self.work_dir)
        needed = (Path(os.path.abspath(work_dir)), self.directory, Path(os.path.expanduser("~")))
        threads = ThreadPool(_THREADS, "rhapsody-files")
        self.results: Results = Results(results_dir or self.directory, needed, threads)
        self.destinations: dict[str, str] = {}
        self._threads = threads
        self._sandboxes = SandboxKeeper(keep, self.results.add, threads)
        self._links: dict[str, _Links] = {}
        self._originals: dict[str, FileState] = {}  # of undeclared files that may be linked
        self._cache_stays = keep == "all"
        self._claim: UidClaim | None = None
        self._taken: frozenset[str] = frozenset()
        self.disk_use: int = 0
        if uid is not None:
            self._claim_uid(uid)

    def _claim_uid(self, uid: str) -> None:
        try:
            self._claim = UidClaim(uid, str(self.settle()))
            names = os.listdir(self.work_dir)
        except BaseException:
            self.leave()
            raise
        self._taken = frozenset(name for name in names if name.startswith(f"{uid}."))

    @property
    def work_dir(self) -> Path:
        """The engine's directory, which may change until `settle` is called."""
        return self._place.path

    @property
    def earlier(self) -> str:
        """Pattern of the `work_dir` of earlier runs, as for `glob.glob`."""
        base = glob.escape(str(self._place.base))
        return base if self._place.base == self.work_dir else os.path.join(base, "*", "*")

    def settle(self) -> Path:
        """Create the run's directory, if any, and return `work_dir`; see `WorkDir.settle`."""
        self._place.settle()
        self._settle_in()
        return self.work_dir

    def _settle_in(self) -> None:
        self._root = f"{self.work_dir}{os.sep}"
        self._fetcher.directory = self.work_dir / _CACHE

    def sandbox_path(self, uid: str) -> str:
        """Return the path of an attempt's sandbox, without creating it.

        Raises:
            DataError: The uid cannot be the name of a directory in `work_dir`.
        """
        if uid == _CACHE:
            raise DataError(f"{uid!r} is reserved and cannot be a task's uid")
        if not self._place.settled:
            self.settle()
        name = plain_name(uid)
        if name in self._taken:  # a sandbox of an earlier engine with the same uid
            name = next(n for i in count(2) if (n := f"{name}~{i}") not in self._taken)
        return self._root + name

    def bind(
        self,
        file: File,
        sandbox: str,
        sources: Sequence[AttemptInfo] = (),
        written: Written | None = None,
        *,
        staged: str | None = None,
        by_path: bool = True,
    ) -> File | InputFiles:
        """Return the object that a task receives for a file; see `File.bound_to`.

        The object is an `InputFiles` if the file is a directory or a pattern that another task
        declared.

        Args:
            file: The file object.
            sandbox: The task's sandbox.
            sources: The outcomes of the task's dependencies.
            written: The output that the input stood for when the task was called, or `None`.
            staged: The path of an input relative to the sandbox; see `staged_names`. Default: its
                file name.
            by_path: See `File.bound_to`.
        """
        if not isinstance(file, InputFile):
            return file.bound_to(sandbox, by_path=by_path)
        bound = file if staged is None else staged_as(file, staged)
        bound = bound.bound_to(sandbox, by_path=by_path)
        return as_several(file, bound, sources, written)

    # Before an attempt.

    def staged_names(
        self,
        task: TaskDescription,
        inputs: Sequence[InputFile],
        outputs: Sequence[Output],
        sources: Sequence[AttemptInfo],
        made_by: Mapping[int, Written],
    ) -> dict[int, str]:
        """Return the path of each input in the sandbox; see the function `staged_names`."""
        return staged_names(task, inputs, outputs, sources, made_by, str(self.directory))

    def origins(
        self,
        task: TaskDescription,
        inputs: Sequence[InputFile],
        sources: Sequence[AttemptInfo],
        made_by: Mapping[int, Written],
        staged: Mapping[int, str],
        states: Mapping[int, FileState] = MappingProxyType({}),
    ) -> dict[str, Origin]:
        """Return the origins of a task's inputs; see the function `origins`."""
        directory = str(self.directory)
        return origins(task, inputs, sources, made_by, staged, directory, self.destinations, states)

    def states_at_call(self, inputs: Sequence[InputFile]) -> dict[int, FileState]:
        """Return the states of the regular files among the inputs of a call, by their `id`.

        Time stamps of many file systems have a resolution of some milliseconds. A small file that
        was written just now is therefore compared by its content.
        """
        states = {}
        for file in inputs:
            path = _path_on_disk(file, str(self.directory))
            if file.remote_url is None and (state := _state_of(_stat(path))) is not None:
                if state.size <= _SMALL and abs(time.time_ns() - state.mtime_ns) < _JUST_NOW_NS:
                    state = state._replace(digest=_digest(path))
                states[id(file)] = state
        return states

    def resolve(
        self,
        task: TaskDescription,
        backend: BaseExecutionBackend,
        inputs: Sequence[InputFile],
        outputs: Sequence[Output],
        sources: Sequence[AttemptInfo],
        made_by: Mapping[int, Written] = MappingProxyType({}),
        states: Mapping[int, FileState] = MappingProxyType({}),
    ) -> Resolved:
        """Find the files that an attempt reads, and start fetching the remote ones.

        If the returned object's `coming` is not empty, `fetched` must be awaited.

        Args:
            task: The attempt's description.
            backend: The backend to which the attempt will be submitted.
            inputs: The input files among the attempt's arguments.
            outputs: The output files among the attempt's arguments.
            sources: The outcomes of the attempt's dependencies, in argument order.
            made_by: The outputs that inputs stand for, by the `id` of the input.
            states: The states of inputs at the call, by the `id` of the input; see
                `states_at_call`.

        Returns:
            The locations of the files, and the fetches to wait for.

        Raises:
            DataError: An input is missing or ambiguous; or a file cannot be saved to its
                destination; see `Places.claim`.
            CapabilityError: The backend cannot link or save files, or an input cannot be copied
                from the backend of the task that wrote it.
        """
        sources = tuple({source.uid: source for source in sources}.values())
        self.require_capable(task, backend, inputs, outputs)
        places: dict[str, InputPlace] = {}
        coming: dict[str, asyncio.Task[str]] = {}
        reads: list[tuple[str, str]] = []
        staged = self.staged_names(task, inputs, outputs, sources, made_by)
        found = self.origins(task, inputs, sources, made_by, staged, states)
        copies = frozenset(to for to, origin in found.items() if origin.copy)
        if copies and not _takes_copies(backend):
            raise CapabilityError(
                f"task {task['name']!r} has an input with copy=True, but backend {backend.name!r} "
                "does not copy inputs; use another backend, or copy the file in the task"
            )
        for to, (name, producer, path, url, _, state) in found.items():
            if url is not None:
                coming[to] = self._fetcher.download(url, name)
            elif producer is None:
                self.results.claims.reads(task, str(path))
                places[to] = InputPlace(path, state=state, given=True)
            elif producer.files.paths is not None:  # a task of an earlier run
                place = left_place(producer, name)
                again = producer.files.regeneration is not None and place.path is None
                missing = producer if again else None
                places[to] = place._replace(
                    path=producer.files.path_of(name), producer=None, missing=missing
                )
            else:
                place = left_place(producer, name)
                on_it = self._is_on(backend, producer)
                copied_out = place.path is None and backend.capabilities.copies_files_out
                if on_it and to == name and to not in copies:
                    places[to] = place
                elif on_it and not copied_out:
                    # The backend would look for a file with the new name.
                    places[to] = _readable(task, place, name, to)
                elif place.path is None:
                    coming[to] = self._copied(task, producer, name)
                else:
                    places[to] = place._replace(producer=None)
            if producer is not None and producer.files.sandbox is not None:
                reads.append((producer.files.sandbox, name))
                self.results.is_read(AttemptId.of(producer.uid).task.label, name)
        writers = chain.from_iterable(written.attempts for written in made_by.values())
        sources = tuple({each.uid: each for each in (*sources, *writers)}.values())
        at_call = frozenset(map(staged.__getitem__, states))
        resolved = Resolved(
            sources, staged, places, copies, coming, {}, tuple(reads), at_call=at_call
        )
        if not coming:
            self._complete(task, resolved, outputs)
        return resolved

    async def fetched(
        self, task: TaskDescription, resolved: Resolved, outputs: Sequence[Output]
    ) -> None:
        """Wait for the files of an attempt that are being fetched.

        Args:
            task: The attempt's description.
            resolved: The object that `resolve` returned. The locations of the fetched files and the
                destinations of the outputs are added to it.
            outputs: The output files among the attempt's arguments.

        Raises:
            DataError: A file cannot be fetched, or a file cannot be saved to its destination; see
                `Places.claim`.
        """
        for name, fetch in resolved.coming.items():
            path = await asyncio.shield(fetch)
            resolved.places[name] = InputPlace(path, state=_state_of(_stat(path)))
        self._complete(task, resolved, outputs)

    def _complete(
        self, task: TaskDescription, resolved: Resolved, outputs: Sequence[Output]
    ) -> None:
        if outputs:
            resolved.targets.update(self.results.claims.claim(task, outputs))

    def in_place(
        self,
        backend: BaseExecutionBackend,
        resolved: Resolved,
        inputs: Sequence[InputFile],
    ) -> bool:
        """Return True if a function on this backend can read its inputs in place, without links.

        It cannot if an input has another name there, which the function may use.
        """
        if any(file.name is not None or file.copy for file in inputs):
            return False
        can = backend.capabilities
        shared = can.shared_file_system and not can.copies_files_out  # for all of its workers
        return shared and all(
            place.path is not None and os.path.basename(place.path) == os.path.basename(name)
            for name, place in resolved.places.items()
        )

    def link(
        self,
        task: TaskDescription,
        backend: BaseExecutionBackend,
        resolved: Resolved,
    ) -> None:
        """Link the files that an attempt reads into its sandbox. Called just before submission.

        These files stay on disk until `keep` is called for the attempt.

        Args:
            task: The attempt's description.
            backend: The backend to which the attempt will be submitted.
            resolved: The locations of the attempt's inputs.

        Raises:
            DataError: A file cannot be linked.
            OSError: The backend cannot create a link.
        """
        if "sandbox" not in task:
            return  # the attempt reads its inputs in place; `resolved` keeps them on disk
        references = (source.files.reference for source in resolved.sources)
        held = tuple(each for each in references if each is not None)
        self._links[task["uid"]] = _Links(held, fetched=bool(resolved.coming))
        try:
            for name, place in resolved.places.items():
                if name in resolved.copies:
                    continue  # see `copy`
                producer = place.producer
                try:
                    backend.link_explicit_data_deps(
                        src_task=None if producer is None else as_source(producer),
                        dst_task=task,
                        file_name=name,
                        file_path=place.path if producer is None else None,
                    )
                except (DataError, OSError) as error:
                    if "/" not in name:
                        raise
                    raise DataError(
                        f"backend {backend.name!r} cannot link input {name!r} of task "
                        f"{task['name']!r} into a directory of the sandbox ({error}); give each "
                        "input with this name a different name, as in InputFile(..., name='a.txt')"
                    ) from error
        except BaseException:
            self._links.pop(task["uid"], None)
            raise

    def require_capable(
        self,
        task: TaskDescription,
        backend: BaseExecutionBackend,
        inputs: Sequence[InputFile],
        outputs: Sequence[Output],
    ) -> None:
        """Raise a `CapabilityError` if a backend cannot handle the files of a task."""
        can = backend.capabilities
        several = [o.filename for o in outputs if isinstance(o, OutputDir) or o.many]
        if several and not can.shared_file_system:
            raise CapabilityError(
                f"task {task['name']!r} declares {', '.join(map(repr, several))}, but only single "
                f"files can be copied from the sandboxes of backend {backend.name!r}; use a "
                "backend that shares this file system, or pack the files into one"
            )
        saved = [output.filename for output in outputs if output.save]
        if saved and not (can.shared_file_system or can.copies_files_out):
            raise CapabilityError(
                f"task {task['name']!r} saves {', '.join(map(repr, saved))}, but this process "
                f"cannot read the sandboxes of backend {backend.name!r}; use another backend, or "
                "return the file's content"
            )
        if can.files or not (inputs or (outputs and not can.sandboxes)):
            return
        able = sorted(name for name, one in self._backends.items() if one.capabilities.files)
        raise CapabilityError(
            f"task {task['name']!r} declares files, but backend {backend.name!r} cannot link files "
            f"into sandboxes; use a backend that can, such as {', '.join(able) or 'local'}"
        )

    def _copied(self, task: TaskDescription, producer: AttemptInfo, name: str) -> asyncio.Task[str]:
        """Start copying a file out of a sandbox of another backend."""
        backend = self._backends.get(producer.backend or "")
        if backend is not None and backend.capabilities.copies_files_out:
            write = partial(backend.copy_file_out, as_source(producer), name)
            return self._fetcher.bring(f"{producer.backend}://{producer.uid}/{name}", name, write)
        if backend is not None and backend.capabilities.shared_file_system:
            raise DataError(
                f"task {task['name']!r} needs {name!r} of task {producer.task}, which is missing "
                f"from {producer.files.sandbox!r}"
            )
        raise CapabilityError(
            f"task {task['name']!r} needs {name!r} from a sandbox of backend "
            f"{producer.backend!r}, which this process cannot read; run both tasks on one backend, "
            "or return the file's content"
        )

    def has_left(self, source: AttemptInfo, backend: BaseExecutionBackend) -> bool:
        """Return True if a dependency may have left files that a task on a backend can receive."""
        sandbox, same = source.files.sandbox or "", self._is_on(backend, source)
        if os.path.isdir(sandbox):
            return (same or backend.capabilities.shared_file_system) and bool(left_in(sandbox))
        return same

    async def copy(
        self,
        task: TaskDescription,
        backend: BaseExecutionBackend,
        resolved: Resolved,
        left: Sequence[AttemptInfo] = (),
    ) -> None:
        """Copy files into an attempt's sandbox, on another thread. Called after `link`.

        Args:
            task: The attempt's description.
            backend: The backend to which the attempt will be submitted.
            resolved: The locations of the attempt's inputs, some of which are copied.
            left: The dependencies whose undeclared files are copied, unless an input has the same
                name; `has_left` is true for each of them.

        Raises:
            DataError: Two dependencies left files with the same name; an undeclared file that is
                too large to be copied has been changed; or a file cannot be copied.
        """
        links = self._links[task["uid"]]
        await self._threads.run(partial(self._copy, task, backend, resolved, left, links))

    def _copy(
        self,
        task: TaskDescription,
        backend: BaseExecutionBackend,
        resolved: Resolved,
        left: Sequence[AttemptInfo],
        links: _Links,
    ) -> None:
        link: Any = backend.link_explicit_data_deps  # `copy` is optional for backends
        try:
            for name in sorted(resolved.copies):
                path = resolved.places[name].path
                link(src_task=None, dst_task=task, file_name=name, file_path=path, copy=True)
            if left:
                self._copy_undeclared(task, backend, resolved, left, links)
        finally:
            if task["uid"] not in self._links and self._keep != "all":  # canceled meanwhile
                with contextlib.suppress(OSError):
                    remove_directory(task["sandbox"])

    def _copy_undeclared(
        self,
        task: TaskDescription,
        backend: BaseExecutionBackend,
        resolved: Resolved,
        left: Sequence[AttemptInfo],
        links: _Links,
    ) -> None:
        here = [source for source in left if os.path.isdir(source.files.sandbox or "")]
        taken = {name.partition("/")[0] for name in resolved.places}
        inheritance = links.inheritance = inherit(task["name"], here, taken)
        for path, state in inheritance.linked.items():
            if self._originals.get(path, state) != state:
                raise DataError(
                    f"task {task['name']!r} needs {path!r}, which another task has changed through "
                    "a link. Declare the file as an OutputFile of the task that writes it, and "
                    "pass it as InputFile(..., copy=True) to the task that changes it"
                )
            if path in inheritance.large:
                self._originals[path] = state
        resolved.linked.update(inheritance.linked)
        links.needs = tuple(
            source.files.reference
            for source in left
            if source.uid in inheritance.linked_uids and source.files.reference is not None
        )
        for source in left:
            left_out = inheritance.left_out.get(source.uid, ())
            backend.link_implicit_data_deps(as_source(source, left_out), task)

    def _is_on(self, backend: BaseExecutionBackend, source: AttemptInfo) -> bool:
        known = self._backends.get(source.backend or "")
        return source.backend == backend.name if known is None else known is backend

    # After an attempt.

    def changed_inputs(self, resolved: Resolved) -> dict[str, str]:
        """Return the inputs of an attempt that have changed; see `changed_inputs`.

        A fetched file that has changed is fetched again for later tasks.
        """
        changed = changed_inputs(resolved)
        for path in changed.values():
            self._fetcher.forget(path)
        return changed

    def changed_since_call(self, resolved: Resolved) -> dict[str, str]:
        """Return the inputs, including copied ones, whose states at the call have changed."""
        places = ((name, resolved.places[name]) for name in resolved.at_call)
        return {
            name: place.path
            for name, place in places
            if place.path is not None and place.state is not None
            if not _is_in_state(place.path, place.state)
        }

    def inherited(self, uid: str) -> Mapping[str, str]:
        """Return the undeclared files that an attempt received; see `ProducedFiles.inherited`."""
        links = self._links.get(uid)
        return {} if links is None or links.inheritance is None else links.inheritance.origins

    def given(self, task: TaskDescription, resolved: Resolved | None) -> set[str]:
        """Return the names of files that an attempt received and has not changed."""
        given = set() if resolved is None else set(resolved.places)
        links = self._links.get(task["uid"])
        if links is not None and links.inheritance is not None:
            given.update(links.inheritance.unchanged(task["sandbox"]))
        return given

    def was_read(self, resolved: Resolved) -> None:
        """Record that a successful attempt has read its inputs.

        Inputs that other tasks wrote are regarded as intermediate files from then on.
        """
        for sandbox, name in resolved.reads:
            self._sandboxes.read(sandbox, name)

    async def save(
        self,
        source: TaskDescription,
        backend: BaseExecutionBackend,
        targets: Mapping[str, Target],
        matches: Mapping[str, tuple[str, ...]],
    ) -> list[Path]:
        """Save the outputs of a successful attempt to their destinations.

        Args:
            source: The attempt's description, or its `uid`, `name` and `sandbox`.
            backend: The backend that ran the attempt.
            targets: The destinations of the outputs, by name.
            matches: The files that match each pattern among the names.

        Returns:
            The paths of the saved files and directories.

        Raises:
            DataError: An output could not be saved.
        """
        sandbox = source.get("sandbox") or ""
        puts: dict[Path, Put] = {}
        for name, (path, kind) in targets.items():
            if kind == "matches":
                for each in matches.get(name, ()):
                    puts[path / each] = Put(each, f"{sandbox}/{each}", "file", sandbox)
            elif backend.capabilities.shared_file_system:
                puts[path] = Put(name, os.path.join(sandbox, name), kind, sandbox)
            else:
                puts[path] = Put(name, partial(backend.copy_file_out, source, name), kind)
        await self.results.save(source, puts)
        for put in puts.values():
            self._sandboxes.saved(sandbox, put.name)
        return list(puts)

    def spare_inputs(self, task: TaskDescription, resolved: Resolved) -> None:
        """Keep the inputs of a failed attempt that has read them in place, without a sandbox."""
        if "sandbox" not in task and self._keep in ("results", "failed"):
            for source in resolved.sources:
                self.spare(source)
            self._cache_stays |= bool(resolved.coming)

    def discard(self, path: str) -> bool:
        """Remove a file from a sandbox, on another thread; return False if nothing is removed."""
        return self._keep != "all" and self._sandboxes.discard(path)

    def spare(self, outcome: AttemptInfo | None) -> None:
        """Keep the sandbox of an attempt even though the attempt succeeded."""
        if outcome is not None and outcome.files.reference is not None:
            outcome.files.reference.spare()

    def keep(
        self,
        task: TaskDescription,
        succeeded: bool,
        outputs: Sequence[Output] = (),
        result_is_path: bool = False,
        matches: Mapping[str, tuple[str, ...]] | None = None,
        recorded: bool = False,
    ) -> Sandbox | None:
        """Keep or remove an attempt's sandbox. Called once, when the attempt's work has ended.

        Args:
            task: The attempt's description.
            succeeded: False if the attempt failed. A canceled attempt has not failed.
            outputs: The output files among the attempt's arguments.
            result_is_path: True if the attempt's result is, or contains, a path into the
                sandbox; see `leads_into`.
            matches: The files that match each pattern among the outputs.
            recorded: True if the result is recorded, so that the outputs stay until the run
                succeeds.

        Returns:
            The reference that keeps the sandbox on disk; `None` if there is no sandbox or it is not
            removed before `close`.
        """
        links = self._links.pop(task["uid"], None) or _Links()
        sandbox = task.get("sandbox")
        if sandbox is None or not sandbox.startswith(self._root):
            return None
        files: dict[str, SavedFile] = {}
        if succeeded and outputs:
            files = without_place(task, sandbox, outputs, matches or {})
        if self._keep == "all":
            self.results.add(files.values())
            return None
        if sandbox.startswith((own := self.sandbox_path(task["uid"])) + os.sep):
            sandbox = own  # the backend started the attempt again, in a subdirectory
        if not succeeded and self._keep != "none":
            # The inputs are needed to find out why the attempt failed.
            for source in links.sources:
                source.spare()
            self._cache_stays |= links.fetched
            return None
        if result_is_path:
            self.results.add(files.values())
            self._sandboxes.note(sandbox, Disposition.STAY)
            for source in links.needs:
                source.spare()
            return None
        if not outputs:
            return self._sandboxes.hold(sandbox, Disposition.REMOVE, links.needs)
        self._declare(sandbox, outputs, matches or {}, files, recorded=recorded)
        return self._sandboxes.hold(sandbox, Disposition.PRODUCT, links.needs)

    def _declare(
        self,
        sandbox: str,
        outputs: Sequence[Output],
        matches: Mapping[str, tuple[str, ...]],
        results: Mapping[str, SavedFile],
        *,
        recorded: bool,
    ) -> None:
        """Record which declared outputs are kept after the run.

        Outputs with a destination and temporary outputs are kept only until the run has succeeded.
        """
        rest = [o for o in outputs if o.save or o.temporary]
        stay = [output for output in outputs if output not in rest]
        self._sandboxes.declare(
            sandbox, names_of(stay, matches), names_of(rest, matches), results, recorded=recorded
        )

    def take_up(
        self, task: TaskDescription, outputs: Sequence[Output], files: TaskFiles
    ) -> Sandbox | None:
        """Decide which of a task's files from an earlier run to keep; see `keep`.

        Args:
            task: The description of the task, which does not run.
            outputs: The output files among the task's arguments.
            files: The task's files that exist.

        Returns:
            The reference that keeps the files on disk; `None` if they are not removed.
        """
        sandbox = files.sandbox
        self._place.use(sandbox)
        unsaved = {
            name: SavedFile(Path(files.paths[name]), file.task, file.uid)
            for name, file in without_place(task, sandbox, outputs, files.matches).items()
        }
        self.results.miss(file for name, file in unsaved.items() if name in files.missing)
        if self._keep == "all" or files.stays or not os.path.isdir(sandbox):
            self.results.add(unsaved.values())
            return None
        self._declare(sandbox, outputs, files.matches, unsaved, recorded=True)
        return self._sandboxes.hold(sandbox, Disposition.PRODUCT)

    def replaced(self, outcome: AttemptInfo) -> None:
        """Record that files of an earlier run were regenerated: the others need not be kept."""
        for name in outcome.files.output_files:
            self._sandboxes.saved(outcome.files.sandbox or "", name)

    async def save_again(
        self, task: TaskDescription, targets: Mapping[str, Target], files: TaskFiles
    ) -> list[Path]:
        """Save a task's files from an earlier run, except those that are already up to date.

        Args:
            task: The description of the task, which does not run.
            targets: The destinations of the outputs, by name.
            files: The task's files.

        Returns:
            The paths of the saved files and directories.

        Raises:
            DataError: A file could not be saved.
        """
        puts: dict[Path, Put] = {}
        for name, (path, kind) in targets.items():
            if kind == "matches":
                for each in files.matches.get(name, ()):
                    puts[path / each] = Put(each, files.paths[each], "file")
            else:
                puts[path] = Put(name, files.paths[name], kind)
        there = {Path(place) for place in files.places.values()}
        await self.results.save(task, puts, there)
        for put in puts.values():
            self._sandboxes.saved(files.sandbox, put.name)
        return list(puts)

    async def close(self, *, well: bool = True) -> None:
        """Remove sandboxes, fetched files and empty directories that are not kept.

        The removal does not block the loop. A second call has no effect.

        Args:
            well: True if the run succeeded. Otherwise the outputs of recorded tasks stay.
        """
        self._links.clear()
        await self._sandboxes.close(well=well)  # first, because links may lead into the cache
        await self._fetcher.close(remove=not self._cache_stays)
        if self._claim is not None:
            self._claim.release()
        await in_thread(partial(self._place.close, self.results.saved), or_here=True)
        if self._place.settled and self.work_dir.exists():
            self.disk_use = await in_thread(partial(disk_use, self._place.base), or_here=True)

    def leave(self) -> None:
        """Unregister the engine from its run; see `WorkDir.leave`."""
        self._place.leave()


def _readable(task: TaskDescription, place: InputPlace, name: str, to: str) -> InputPlace:
    """Return the location of another task's file, as a path that is linked under another name.

    Raises:
        DataError: This process cannot read the file.
    """
    if place.path is None:
        raise DataError(
            f"task {task['name']!r}: input {name!r} cannot be named {to!r}, because the sandbox "
            "that contains it cannot be read on this machine; rename the file in the task that "
            "writes it"
        )
    return place._replace(producer=None)


def _takes_copies(backend: BaseExecutionBackend) -> bool:
    """Return True if a backend can copy an input into a sandbox."""
    parameters = inspect.signature(backend.link_explicit_data_deps).parameters.values()
    return any(each.name == "copy" or each.kind is each.VAR_KEYWORD for each in parameters)


def _current(other: Path) -> Path:
    """Return the current directory, or `other` if the current directory was removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return other
